"""Two checkpoints compared, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_doctor.reports._page import Page, count
from ckpt_doctor.reports.interface import Style

if TYPE_CHECKING:
    from ckpt_doctor.comparison import Difference, DiffResult

_SHOWN = 20


def render(result: DiffResult, style: Style) -> str:
    """Return what differs, the first few of each kind, and the verdict."""
    page = Page(style)
    if style.detail != "less":
        page.paragraph(f"- {result.a}")
        page.paragraph(f"+ {result.b}")
    for kind in ("missing", "added", "shape", "dtype", "values", "unreadable"):
        alike = [difference for difference in result.differences if difference.kind == kind]
        if not alike:
            continue
        page.blank()
        page.paragraph(f"{_HEADINGS[kind]}: {len(alike)}", color="bold")
        shown = alike if style.detail == "more" else alike[:_SHOWN]
        for difference in shown:
            page.paragraph(_line(difference), indent=2, hanging=4)
        if len(shown) < len(alike):
            page.paragraph(f"and {len(alike) - len(shown)} more; -v shows all", indent=2)
    page.blank()
    within = f" within {result.tolerance:g}" if result.tolerance else ""
    verdict = f"equal{within}" if result.equal else "different"
    compared = count(result.compared, "variable")
    page.paragraph(f"{verdict}: {compared} compared, {len(result.differences)} differ", color="bold")
    return str(page)


_HEADINGS = {
    "missing": "only in the first",
    "added": "only in the second",
    "shape": "another shape",
    "dtype": "another type",
    "values": "other values",
    "unreadable": "cannot be read",
}


def _line(difference: Difference) -> str:
    name = difference.name + (f" (there {difference.other_name})" if difference.other_name else "")
    match difference.kind:
        case "missing" | "unreadable":
            return f"{name}: {difference.before}"
        case "added":
            return f"{name}: {difference.after}"
        case "values":
            largest = "not finite" if difference.largest is None else f"{difference.largest:.3g}"
            return f"{name}: {difference.differing:,} of {difference.size:,} values, largest difference {largest}"
        case _:
            return f"{name}: {difference.before}, there {difference.after}"
