"""`ckpt-doctor scan`: what is wrong with these checkpoints?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_doctor.cli.completion import Files, Report
from ckpt_doctor.cli.fields import options_from, with_jobs
from ckpt_doctor.cli.gate_options import Gate, failing
from ckpt_doctor.cli.options import Command
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.options import DataOptions, GateOptions, ScanOptions
from ckpt_doctor.reports import REPORTS

if TYPE_CHECKING:
    from ckpt_doctor.result import AuditResult


@click.command(cls=Command)
@click.argument("paths", metavar="PATH...", type=Files(), nargs=-1, required=True)
@click.option("--format", "report", type=click.Choice(list(REPORTS)), default="text", help="Report format.")
@click.option("--output", metavar="FILE", type=Files(), help="Write the report to FILE instead of stdout.")
@options_from(GateOptions)
@options_from(ScanOptions)
@click.option(
    "--write-baseline", metavar="FILE", type=Files(), help="Write the current findings to FILE as the baseline."
)
@click.option(
    "--report",
    "reports",
    metavar="FORMAT=FILE",
    type=Report(),
    multiple=True,
    help="Also write a report in this format.",
)
@options_from(DataOptions)
@click.pass_obj
def scan(
    terminal: Terminal,
    /,
    paths: tuple[str, ...],
    report: str,
    output: str | None,
    write_baseline: str | None,
    reports: tuple[str, ...],
    **given: Any,
) -> int:
    """Find broken batch-norm statistics and damaged files, and report the cause.

    PATH is a checkpoint prefix or any of its files, a SavedModel, a Keras file, a folder to search, or a glob. scan
    changes nothing, except that it completes or rolls back an interrupted repair. Only --data needs TensorFlow: it
    runs the model and compares the statistics with the data.

    Exit code: 0 nothing found, 1 findings, 2 a path could not be checked.
    """
    from ckpt_doctor.audit import scan as scan_paths

    gate = Gate(GateOptions.of(with_jobs(given)), write_baseline, reports)
    gate.check(report, output, paths)
    with terminal.progress() as listener:
        result = scan_paths(paths, progress=listener, **gate.scan_options(report))
    result = gate.finish(terminal, result, report)
    terminal.report(REPORTS[report](result, gate.style(terminal.style(output))), output)
    for error in result.errors:
        terminal.message(f"{error.path}: {error.message}")
    if not result.checkpoints and not result.errors and not gate.options.skip_non_checkpoints:
        terminal.message(f"{', '.join(paths)}: no checkpoint found; nothing was scanned")
    if gate.options.strict:
        for one in result.coverage.unopened:
            first = f"{one.paths[0]} and {len(one.paths) - 1:,} more" if len(one.paths) > 1 else one.paths[0]
            terminal.message(f"--strict: {first}: not opened: {one.reason}")
    return exit_code_by(result, gate.options)


def exit_code_by(result: AuditResult, options: GateOptions) -> int:
    """Return the exit code that options ask for."""
    if not result.checkpoints and not result.errors and options.skip_non_checkpoints:
        return 1 if options.strict and result.coverage.unopened else 0
    return exit_code(result, fail_on=options.fail_on, strict=options.strict)


def exit_code(result: AuditResult, *, fail_on: str, strict: bool) -> int:
    """Return 2 where there is no verdict on something, 1 for findings at or above `fail_on`, else 0.

    `strict` also fails, with 1, where something was not judged: a layer, or a file that may hold a model and was not
    opened.
    """
    if result.errors or not result.checkpoints:
        return 2
    if any(finding.severity in failing(fail_on) for one in result.checkpoints for finding in one.findings):
        return 1
    return 1 if strict and (result.summary.not_judged or result.coverage.unopened) else 0
