"""What the HTML page shows, as its template wants it: every word and number here, every tag there."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckpt_doctor.reports._channel_bytes import Series
from ckpt_doctor.reports._explanation import Explanation
from ckpt_doctor.reports._next_step import NextStep
from ckpt_doctor.result import PathError, UnusedSuppression


@dataclass(frozen=True)
class Column:
    """A column of a table; one of numbers is aligned to the right and sorted by `Cell.key`."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number to sort by, the class of a badge around it, the id that it leads to."""

    text: str
    key: float | None = None
    badge: str = ""
    link: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its cells, what the filter calls it, the key of its plots."""

    cells: tuple[Cell, ...]
    status: str
    plot: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts and filters."""

    label: str
    noun: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def statuses(self) -> tuple[str, ...]:
        """What there is to filter by."""
        return tuple(dict.fromkeys(row.status for row in self.rows))


@dataclass(frozen=True)
class RuleName:
    """A rule by its code and name."""

    code: str
    name: str


@dataclass(frozen=True)
class GroupView:
    """Findings that are read as one."""

    severity: str
    rules: tuple[RuleName, ...]
    whom: str
    messages: tuple[str, ...]
    layers: tuple[str, ...]
    cause: str | None


@dataclass(frozen=True)
class Item:
    """One line of a list."""

    name: str
    text: str


@dataclass(frozen=True)
class Listing:
    """A list that is folded away."""

    title: str
    lines: tuple[Item, ...]


@dataclass(frozen=True)
class Section:
    """All about one checkpoint."""

    id: str
    path: str
    verdict: str
    verdict_class: str
    facts: str
    remarks: tuple[str, ...] = ()
    groups: tuple[GroupView, ...] = ()
    step: NextStep | None = None
    listings: tuple[Listing, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    total: str
    checkpoints: tuple[Section, ...]
    values: dict[str, list[Series]]
    notes: tuple[str, ...] = ()
    errors: tuple[PathError, ...] = ()
    unused: tuple[UnusedSuppression, ...] = ()
    coverage: Listing | None = None
    overview: Table | None = None
    explained: dict[str, Explanation] = field(default_factory=dict)
