"""Layers whose variables have words of their author's own: `b0_mean` and `b0_var` beside `b0_gamma`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ckpt_doctor.naming.reading import AFFINE, STATISTICS, is_other_normalization, possible_roles


def layers_in_own_words(
    free: Mapping[str, tuple[int, ...]],
    groups: Mapping[str, Mapping[str, str]],
    fits: Callable[[Mapping[str, str]], bool],
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the layers of which four vectors have names that end in words for gamma, beta, mean and variance.

    Args:
        free: Names of variables without a layer, to their shapes.
        groups: The known layers, to their known roles and names.
        fits: Whether variables, by their roles, can be those of one layer.

    Yields:
        The layer, and role to name of the variables that it gets.
    """
    candidates: dict[str, dict[str, dict[str, str]]] = {}
    for name in sorted(free):
        if len(free[name]) == 1:
            for layer, role, stem in possible_roles(name):
                candidates.setdefault(layer, {}).setdefault(role, {})[stem] = name
    taken: set[str] = set()
    # `a/b0_mean` is of `a/b0` before it is one that `a` calls `b0_mean`.
    for layer, words in sorted(candidates.items(), key=lambda entry: "" not in entry[1].get("moving_mean", ())):
        known = groups.get(layer, {})
        stems = set(words.get("moving_mean", ())) & set(words.get("moving_variance", ()))
        if set(known) - set(AFFINE) or len(stems) != 1 or is_other_normalization(layer):
            continue
        (stem,) = stems
        roles = {
            role: words.get(role, {}).get(stem) or words.get(role, {}).get("", "")
            for role in (*AFFINE, *STATISTICS)
            if role not in known
        }
        if all(name in free and name not in taken for name in roles.values()) and fits({**known, **roles}):
            taken.update(roles.values())
            yield layer, roles
