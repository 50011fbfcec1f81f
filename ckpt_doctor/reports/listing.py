"""The variables of a checkpoint for people: one line each, the name last, so that grep and long names do well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_doctor.reports._page import Page, count, size, visible
from ckpt_doctor.reports.interface import Style

if TYPE_CHECKING:
    from ckpt_doctor.listing import ListedVariable, Listing

_STATISTICS = ("min", "max", "mean", "std", "nonfinite", "zeros")


def render(listing: Listing, style: Style) -> str:
    """Return the table, without a heading line when there is nothing in it."""
    page = Page(style)
    heading = ["dtype", "shape", "bytes", "role", *(_STATISTICS if listing.stats else ())]
    rows = [_row(variable, listing.stats) for variable in listing.variables]
    if rows:
        widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
        page.line(_aligned([*heading, "name"], widths), color="bold")
        for row, variable in zip(rows, listing.variables, strict=True):
            name = visible(variable.name)
            if variable.unreadable:
                name += f"  (unreadable: {visible(variable.unreadable)})"
            page.line(_aligned([*row, name], widths))
    shown = count(listing.stored, "variable")
    if len(rows) != listing.stored:
        values = sum(variable.bytes for variable in listing.variables)
        shown = f"{len(rows):,} of {shown} ({size(values)})"
    page.line(f"{visible(listing.path)}: {listing.format}, {shown}, {size(listing.bytes)}", color="bold")
    return str(page)


def _row(variable: ListedVariable, stats: bool) -> list[str]:
    shape = "x".join(str(length) for length in variable.shape) or "scalar"
    row = [variable.dtype, shape, str(variable.bytes), variable.role]
    if stats:
        row += [_number(getattr(variable.statistics, field, None)) for field in _STATISTICS]
    return row


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def _aligned(cells: list[str], widths: list[int]) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]])
