"""Scopes that are not called like their layers, in legacy Keras files.

TensorFlow 1 has one graph for a session, and a scope that is taken gets a number: in the second model of a session, and
in one that is loaded after it was made, the layer `bn` keeps `bn_1/gamma:0`, and `bn_1` then `bn_1_1/gamma:0`.
The order of the weights of a model inside another depends on what of it is frozen; the names do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

Path = tuple[str, ...]
# What TensorFlow adds to a name that is taken (tensorflow/python/framework/ops.py: `unique_name`).
_NUMBER = re.compile(r"_\d+$")


def numbered_scopes(layers: Iterable[Path], listed: Mapping[str, Sequence[str]]) -> dict[Path, str]:
    """Return the scope of the weights of each layer whose group has scopes of other names than its layers.

    Args:
        layers: The paths of all batch norms of the config: names of the models around one, outermost
            first, and its own name last.
        listed: The scopes of batch-norm weights that each group of the file lists.

    Returns:
        Path of a layer to its scope. Nothing for a group whose scopes are those of its layers, or fit in no one way.
    """
    groups: dict[str, list[Path]] = {}
    for path in layers:
        groups.setdefault(path[0], []).append(path)
    found: dict[Path, str] = {}
    for group, paths in groups.items():
        scopes = list(listed.get(group, ()))
        if {scope.rpartition("/")[2] for scope in scopes} == {path[-1] for path in paths}:
            continue
        if len(scopes) == len(paths) == 1:
            found[paths[0]] = scopes[0]
        elif len(scopes) == len(paths):
            found |= _paired(paths, scopes)
    return found


def _paired(paths: Sequence[Path], scopes: Sequence[str]) -> dict[Path, str]:
    """Return the only way in which every layer has one scope that may be its own; nothing where there are several."""
    by_name: dict[str, set[Path]] = {}
    for path in paths:
        by_name.setdefault(path[-1], set()).add(path)
    owners: dict[str, set[Path]] = {}
    possible: dict[Path, set[str]] = {path: set() for path in paths}
    for scope in scopes:
        name = scope.rpartition("/")[2]
        owners[scope] = by_name.get(name, set()) | by_name.get(_NUMBER.sub("", name), set())
        for path in owners[scope]:
            possible[path].add(scope)
    found: dict[Path, str] = {}
    certain = [scope for scope, paths_of in owners.items() if len(paths_of) == 1]
    certain += [next(iter(scopes_of)) for scopes_of in possible.values() if len(scopes_of) == 1]
    while certain:
        scope = certain.pop()
        if scope not in owners:
            continue
        alone = [path for path in owners[scope] if possible[path] == {scope}]
        candidates = alone or list(owners[scope])
        if len(candidates) != 1:
            return {}
        (path,) = candidates
        found[path] = scope
        for other in owners.pop(scope) - {path}:
            possible[other].discard(scope)
            if len(possible[other]) == 1:
                certain.append(next(iter(possible[other])))
        for other_scope in possible.pop(path) - {scope}:
            owners[other_scope].discard(path)
            if len(owners[other_scope]) == 1:
                certain.append(other_scope)
    return found if len(found) == len(paths) else {}
