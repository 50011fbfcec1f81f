"""The order of names that hold numbers: `ckpt-200` before `ckpt-1000`, `vars/9` before `vars/10`."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Python refuses to parse a number of 4,300 digits, which a damaged name may be.
_NUMBER = re.compile(r"[0-9]{1,300}")


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that compares runs of digits as numbers and everything else as text."""
    return tuple((0, int(part)) if _NUMBER.fullmatch(part) else (1, part) for part in re.split(r"([0-9]+)", name))


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Return names or paths in natural order; of names that are equal as numbers (`1`, `01`) the text decides."""
    return sorted(names, key=lambda name: (natural_key(name), name))
