"""What a repair did, for people."""

from __future__ import annotations

from ckpt_doctor.repair_result import RepairedLayer, RepairResult
from ckpt_doctor.reports._page import Page, count, names
from ckpt_doctor.reports.interface import Style

_LAYERS_SHOWN = 12


def render(result: RepairResult, style: Style) -> str:
    """Return what was set, what was left and where it was written; a dry run in the same words."""
    page = Page(style)
    if not result.layers and not result.left:
        page.paragraph(f"{result.checkpoint}: nothing to repair; nothing was written", color="green")
        for note in result.notes:
            page.paragraph(note, indent=2, hanging=2)
        return str(page)
    verb = "would set" if result.dry_run else "set"
    page.paragraph(f"{result.checkpoint}: {verb} the statistics of {count(len(result.layers), 'layer')}", color="bold")
    if result.samples:
        page.paragraph(
            f"method {result.method}, {count(result.samples, 'sample')} in {_batches(result.batches)}", indent=2
        )
    elif result.method:
        page.paragraph(f"method {result.method}, no data used", indent=2)
    if result.layers:
        _table(page, result, style)
    for left in result.left:
        page.paragraph(f"skipped: {left.name}: {left.reason}", indent=2, hanging=2, color="yellow")
    for note in result.notes:
        page.paragraph(note, indent=2, hanging=2)
    if result.metric:
        page.paragraph(f"metric: {result.metric.before:.6g} before, {result.metric.after:.6g} after", indent=2)
    page.blank()
    _verdict(page, result)
    return str(page)


def _table(page: Page, result: RepairResult, style: Style) -> None:
    shown = result.layers if style.detail == "more" else result.layers[:_LAYERS_SHOWN]
    heading = ["mean", "variance", "residual", "std.error", "layer"]
    rows = [_row(layer) for layer in shown]
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(4)]
    page.blank()
    page.paragraph("mean and variance: medians over the channels of a layer, before -> after", indent=2, hanging=2)
    for row, color in [(heading, "bold"), *((row, "") for row in rows)]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        page.line("  " + "  ".join([*cells, row[-1]]), color=color)
    if len(shown) < len(result.layers):
        rest = [layer.name for layer in result.layers[len(shown) :]]
        page.paragraph(f"and {count(len(rest), 'layer')} {names(rest, style)}; -v shows all", indent=2, hanging=2)
    page.blank()


def _row(layer: RepairedLayer) -> list[str]:
    before, after = layer.before, layer.after
    return [
        _change(before.mean.median if before else None, after.mean.median if after else None),
        _change(before.variance.median if before else None, after.variance.median if after else None),
        "-" if layer.residual is None else f"{layer.residual:.1e}",
        "-" if layer.standard_error is None else f"{layer.standard_error:.1e}",
        layer.name,
    ]


def _change(before: float | None, after: float | None) -> str:
    return f"{'none' if before is None else f'{before:.3g}'} -> {'none' if after is None else f'{after:.3g}'}"


def _verdict(page: Page, result: RepairResult) -> None:
    unchanged = f"{count(result.unchanged_variables, 'other variable')} unchanged, byte for byte"
    if result.dry_run:
        ready = "everything would be repaired" if result.complete else "not everything could be repaired"
        page.paragraph(f"dry run: {ready}; nothing was written", color="green" if result.complete else "yellow")
        return
    page.paragraph(f"{unchanged}; {result.seconds:.1f} s")
    for backup in result.backups:
        page.paragraph(f"backup: {backup}", hanging=2)
    if result.complete:
        said = "written and scanned clean" if result.clean else "written; all targeted defects are gone"
        page.paragraph(f"{said}: {result.output}", hanging=2, color="green")
    else:
        page.paragraph(f"written, but not everything is repaired: {result.output}", hanging=2, color="yellow")


def _batches(number: int) -> str:
    return f"{number:,} batch" if number == 1 else f"{number:,} batches"
