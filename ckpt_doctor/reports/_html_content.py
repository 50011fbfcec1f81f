"""From a result to the content of the HTML page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ckpt_doctor.coverage import KINDS
from ckpt_doctor.finding import SEVERITIES
from ckpt_doctor.repair_result import RepairedLayer, RepairResult, Spread
from ckpt_doctor.reports._channel_bytes import fitting
from ckpt_doctor.reports._explanation import explanations
from ckpt_doctor.reports._groups import Group, cause_of, grouped, message_of
from ckpt_doctor.reports._html_view import Cell, Column, GroupView, Item, Listing, Page, Row, RuleName, Section, Table
from ckpt_doctor.reports._next_step import next_step
from ckpt_doctor.reports._page import count, visible
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.reports.text import facts, looked_at, total
from ckpt_doctor.result import AuditResult, ChannelValues, CheckpointResult, LayerSummary, LayerValues

_NONE = Cell("-")
_PATHS_SHOWN = 100


def page_of_scan(result: AuditResult, style: Style) -> Page:
    """Return the page of a scan; quiet leaves out the sections of what is healthy."""
    shown = [
        (f"c{number}", checkpoint)
        for number, checkpoint in enumerate(result.checkpoints)
        if style.detail != "less" or checkpoint.findings or checkpoint.not_judged
    ]
    shown.sort(key=lambda pair: _rank(pair[1]))  # What is wrong comes first.
    values, left_out = fitting(
        (f"{key}l{number}", layer.status != "ok", _series(checkpoint.values.get(layer.name)))
        for key, checkpoint in shown
        for number, layer in enumerate(checkpoint.batch_norm_layers)
    )
    codes = {finding.rule for checkpoint in result.checkpoints for finding in checkpoint.findings}
    return Page(
        title=_title(result),
        total=total(result),
        checkpoints=tuple(_section(key, checkpoint, set(values)) for key, checkpoint in shown),
        values=values,
        notes=_left_out(left_out),
        errors=result.errors,
        unused=result.unused_suppressions,
        coverage=_coverage(result),
        overview=_overview(shown) if len(shown) > 1 else None,
        explained={rule.code: rule for rule in explanations(sorted(codes))} if codes else {},
    )


def page_of_repair(result: RepairResult) -> Page:
    """Return the page of a repair."""
    verb = "would be repaired" if result.dry_run else "repaired"
    title = f"{count(len(result.layers), 'layer')} {verb}, {len(result.left)} skipped" if result.method else "No repair"
    values, left_out = fitting(
        (f"r{number}", True, [("before", layer.before_values), ("after", layer.after_values)])
        for number, layer in enumerate(result.layers)
    )
    done = "would be " * result.dry_run + "repaired" if result.complete else "not whole"
    known = [f"method {result.method}"] if result.method else ["nothing to repair"]
    if result.samples:
        known.append(f"{count(result.samples, 'sample')}, {result.batches:,} batches")
    known += [f"{count(result.unchanged_variables, 'other variable')} unchanged", f"{result.seconds:.1f} s"]
    remarks = [f"Written: {result.output}"] if result.output else ["Nothing was written."]
    remarks += [f"Backup: {backup}" for backup in result.backups]
    if result.metric:
        remarks.append(f"Metric: {result.metric.before:.6g} before, {result.metric.after:.6g} after")
    left = Listing(
        f"{count(len(result.left), 'layer')} skipped",
        tuple(Item(visible(one.name), visible(one.reason)) for one in result.left),
    )
    section = Section(
        id="c0",
        path=visible(result.checkpoint),
        verdict=done,
        verdict_class="ok" if result.complete else "warning",
        facts=", ".join(known),
        remarks=tuple(visible(text) for text in (*remarks, *result.notes)),
        listings=(left,) if result.left else (),
        table=_repair_table(result.layers, set(values)) if result.layers else None,
    )
    return Page(title, visible(result.checkpoint), (section,), values, notes=_left_out(left_out))


def _coverage(result: AuditResult) -> Listing | None:
    """Return what was looked at, over the list of what was passed over and why."""
    books = result.coverage
    if not books.files and not books.passed_over:
        return None
    lines = []
    for one in books.passed_over:
        shown = one.paths[:_PATHS_SHOWN]
        more = f" (and {len(one.paths) - len(shown):,} more)" if len(shown) < len(one.paths) else ""
        sign = "; a model may be in it" if one.unopened else ""
        name = KINDS[one.kind].counted(one.files + one.folders)
        text = f"{one.reason}{sign}"
        lines.append(Item(name, visible(f"{text}: {', '.join(shown)}{more}" if shown else text)))
    return Listing(looked_at(result), tuple(lines))


def _title(result: AuditResult) -> str:
    sick = sum(bool(one.findings) for one in result.checkpoints)
    if not sick:
        return "Nothing found" if result.checkpoints else "Nothing was scanned"
    if len(result.checkpoints) == 1:
        return f"{count(len(result.checkpoints[0].findings), 'finding')} in 1 checkpoint"
    return f"Findings in {sick} of {count(len(result.checkpoints), 'checkpoint')}"


def _left_out(layers: int) -> tuple[str, ...]:
    if not layers:
        return ()
    return (
        f"The plots of {count(layers, 'layer')} are omitted to keep this page small; scan fewer checkpoints at a time.",
    )


def _rank(checkpoint: CheckpointResult) -> int:
    if checkpoint.findings:
        return SEVERITIES.index(checkpoint.findings[0].severity)
    return len(SEVERITIES) + (not checkpoint.not_judged)


def _verdict(checkpoint: CheckpointResult) -> tuple[str, str]:
    """Return the verdict in a word or two, and the class of its badge."""
    if checkpoint.findings:
        worst = checkpoint.findings[0].severity
        number = sum(finding.severity == worst for finding in checkpoint.findings)
        return count(number, worst), worst
    return ("not judged", "unknown") if checkpoint.not_judged else ("ok", "ok")


def _overview(shown: Sequence[tuple[str, CheckpointResult]]) -> Table:
    columns = ["checkpoint", "verdict", "layers", *(f"{severity}s" for severity in SEVERITIES), "suppressed"]
    rows = []
    for key, one in shown:
        words, badge = _verdict(one)
        counts = [len(one.batch_norm_layers)]
        counts += [sum(finding.severity == severity for finding in one.findings) for severity in SEVERITIES]
        counts.append(len(one.suppressed))
        numbers = (Cell(str(number), number) for number in counts)
        rows.append(Row((Cell(visible(one.path), link=key), Cell(words, badge=badge), *numbers), badge))
    return Table(
        "Checkpoints", "checkpoint", tuple(Column(title, n > 1) for n, title in enumerate(columns)), tuple(rows)
    )


def _section(key: str, checkpoint: CheckpointResult, plotted: set[str]) -> Section:
    words, badge = _verdict(checkpoint)
    listings = []
    if checkpoint.not_judged:
        places = tuple(Item(visible(one.where), visible(one.reason)) for one in checkpoint.not_judged)
        listings.append(Listing(f"{count(len(places), 'place')} not judged", places))
    if checkpoint.suppressed:
        hidden = tuple(
            Item(
                f"{one.finding.rule} {one.finding.name}",
                visible(f"{one.finding.message} ({one.by}: {one.where})"),
            )
            for one in checkpoint.suppressed
        )
        listings.append(Listing(f"{count(len(hidden), 'finding')} suppressed", hidden))
    return Section(
        id=key,
        path=visible(checkpoint.path),
        verdict=words,
        verdict_class=badge,
        facts=visible(", ".join(facts(checkpoint))),
        groups=tuple(_group(group, checkpoint) for group in grouped(checkpoint.findings)),
        step=next_step(checkpoint),
        listings=tuple(listings),
        table=_layers(key, checkpoint, plotted) if checkpoint.batch_norm_layers else None,
    )


def _group(group: Group, checkpoint: CheckpointResult) -> GroupView:
    first = group.kinds[0][0]
    whom: list[str] = [] if first.certainty == "proven" else [first.certainty]
    if group.layers:
        whom.append(count(len(group.layers), "layer") if len(group.layers) > 1 else visible(group.layers[0]))
    return GroupView(
        severity=first.severity,
        rules=tuple(RuleName(kind[0].rule, kind[0].name) for kind in group.kinds),
        whom=", ".join(whom),
        messages=tuple(visible(message_of(kind)) for kind in group.kinds),
        layers=tuple(visible(name) for name in group.layers),
        cause=cause_of(group, checkpoint.findings),
    )


def _layers(key: str, checkpoint: CheckpointResult, plotted: set[str]) -> Table:
    measured = any(values.measured and values.stored for values in checkpoint.values.values())
    # Columns that would say nothing, or the same in every row, only take room.
    epsilon = any(layer.epsilon is not None for layer in checkpoint.batch_norm_layers)
    names = ["layer", "status", "known from", "channels", *(["mean off", "variance off"] if measured else [])]
    names += ["mean min", "median", "max"]
    names += ["variance min", "median", "max"]
    names += ["epsilon"] if epsilon else []
    rows = []
    for number, layer in enumerate(checkpoint.batch_norm_layers):
        values = checkpoint.values.get(layer.name)
        stored = values.stored if values else None
        cells = [
            Cell(visible(layer.name)),
            Cell(layer.status, badge=_status_class(checkpoint, layer)),
            Cell(layer.evidence),
            _number(layer.channels),
            *(_distance(values, layer.epsilon or 0.0) if measured else ()),
            *_spread(stored.mean if stored else None),
            *_spread(stored.variance if stored else None),
            *([_number(layer.epsilon)] if epsilon else []),
        ]
        plot = f"{key}l{number}"
        rows.append(Row(tuple(cells), layer.status, plot if plot in plotted else ""))
    return Table(
        f"Batch-norm layers of {visible(checkpoint.path)}",
        "layer",
        tuple(Column(name, n > 2) for n, name in enumerate(names)),
        tuple(rows),
    )


def _status_class(checkpoint: CheckpointResult, layer: LayerSummary) -> str:
    if layer.status == "ok":
        return "ok"
    return next((f.severity for f in checkpoint.findings if f.name == layer.status), "unknown")


def _repair_table(layers: Sequence[RepairedLayer], plotted: set[str]) -> Table:
    names = ["layer", "method", "mean before", "mean after", "variance before", "variance after"]
    names += ["residual", "standard error"]
    rows = []
    for number, layer in enumerate(layers):
        before, after = layer.before, layer.after
        cells = (
            Cell(visible(layer.name)),
            Cell(layer.method),
            _median(before.mean if before else None),
            _median(after.mean if after else None),
            _median(before.variance if before else None),
            _median(after.variance if after else None),
            _number(layer.residual),
            _number(layer.standard_error),
        )
        plot = f"r{number}"
        rows.append(Row(cells, layer.method, plot if plot in plotted else ""))
    columns = tuple(Column(name, n > 1) for n, name in enumerate(names))
    return Table("Repaired layers; mean and variance are medians over channels", "layer", columns, tuple(rows))


def _series(values: LayerValues | None) -> list[tuple[str, ChannelValues | None]]:
    return [("stored", values.stored), ("measured", values.measured)] if values else []


def _median(spread: Spread | None) -> Cell:
    return _NONE if spread is None else _number(spread.median)


def _spread(values: Sequence[float] | None) -> tuple[Cell, Cell, Cell]:
    """Return the cells of the least, the middle and the greatest finite value."""
    finite = [value for value in values or () if math.isfinite(value)]
    if not finite:
        return (_NONE, _NONE, _NONE)
    return (_number(min(finite)), _number(statistics.median(finite)), _number(max(finite)))


def _distance(values: LayerValues | None, epsilon: float) -> tuple[Cell, Cell]:
    """Return how far the data are from what is stored: medians over channels, as BN401 judges them."""
    if values is None or values.stored is None or values.measured is None:
        return (_NONE, _NONE)
    stored, measured = values.stored, values.measured
    rows = zip(stored.mean or (), stored.variance or (), measured.mean or (), measured.variance or (), strict=False)
    shifts, ratios = [], []
    for mean, variance, seen_mean, seen_variance in rows:
        if all(math.isfinite(one) for one in (mean, variance, seen_mean, seen_variance)) and variance + epsilon > 0:
            shifts.append(abs(seen_mean - mean) / math.sqrt(variance + epsilon))
            ratios.append((seen_variance + epsilon) / (variance + epsilon))
    if not shifts:
        return (_NONE, _NONE)
    shift, ratio = statistics.median(shifts), statistics.median(ratios)
    return (Cell(f"{shift:.2g} sd", shift), Cell(f"x {ratio:.3g}", ratio))


def _number(value: float | int | None) -> Cell:
    return _NONE if value is None else Cell(f"{value:.3g}" if isinstance(value, float) else f"{value}", value)
