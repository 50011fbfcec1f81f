"""`ckpt-doctor scan`: what is wrong with these checkpoints?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ckpt_doctor.cli.data_options import data_options, tidied
from ckpt_doctor.cli.gate_options import Gate, failing, gate_options
from ckpt_doctor.cli.options import Command, pairs
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.finding import SEVERITIES
from ckpt_doctor.reports import REPORTS

if TYPE_CHECKING:
    from ckpt_doctor.result import AuditResult

_MOST_JOBS = 8  # Beyond that the disk or the memory bus is what one waits for.


@click.command(cls=Command)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--format", "report", type=click.Choice(list(REPORTS)), default="text", help="Form of the report.")
@click.option("--output", metavar="FILE", help="Write the report to FILE instead of stdout.")
@click.option("--select", metavar="CODES", multiple=True, help="Only these rules: BN101,CK or a name.")
@click.option("--ignore", metavar="CODES", multiple=True, help="Not these rules.")
@click.option("--severity", metavar="CODE=LEVEL", multiple=True, help="Another severity for a rule.")
@click.option(
    "--fail-on",
    type=click.Choice([*SEVERITIES, "never"]),
    default="error",
    show_default=True,
    help="Exit 1 for findings of this severity or above.",
)
@gate_options
@click.option("--quick", is_flag=True, help="Index and batch-norm statistics only; no checksums of the rest.")
@click.option("--strict", is_flag=True, help="Exit 1 too where something about batch norm was not judged.")
@click.option("--all", "all_listed", is_flag=True, help="Every checkpoint a `checkpoint` file lists, not the latest.")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), help="How many to read at a time.")
@click.option("--meta", metavar="FILE", help="A .meta that describes the model.")
@data_options
@click.option(
    "--tolerance", metavar="X", type=float, default=1.0, show_default=True, help="Widens the limits of BN401."
)
@click.pass_obj
def scan(
    terminal: Terminal,
    /,
    paths: tuple[str, ...],
    report: str,
    output: str | None,
    fail_on: str,
    strict: bool,
    min_severity: str,
    per_path_ignores: tuple[str, ...],
    baseline: str | None,
    write_baseline: str | None,
    reports: tuple[str, ...],
    **how: Any,
) -> int:
    """Say what is wrong with checkpoints, and why.

    PATH is a checkpoint prefix or any of its files, a SavedModel, a Keras file, a folder to search, or a glob. Nothing
    is ever written to them, and TensorFlow is not needed, except for --data, which runs the model and compares.

    Exit code: 0 nothing found, 1 findings, 2 no verdict.
    """
    from ckpt_doctor.audit import scan as scan_paths

    gate = Gate(min_severity, per_path_ignores, baseline, write_baseline, reports, fail_on)
    gate.check(report, output, paths)
    with terminal.progress() as listener:
        result = scan_paths(paths, progress=listener, **audit_options(how), **gate.scan_options(report))
    result = gate.finish(terminal, result, report)
    terminal.report(REPORTS[report](result, gate.style(terminal.style(output))), output)
    for error in result.errors:
        terminal.message(f"{error.path}: {error.message}")
    if not result.checkpoints and not result.errors:
        terminal.message(f"{', '.join(paths)}: no checkpoint in it; nothing was scanned")
    return exit_code(result, fail_on=fail_on, strict=strict)


def audit_options(how: dict[str, Any]) -> dict[str, Any]:
    """Return what click gives for the options that say how to scan as what `ckpt_doctor.scan` takes."""
    names = ("select", "ignore", "severity", "quick", "all_listed", "jobs", "meta", "tolerance", "data", "model")
    options = {name: how[name] for name in names}
    options["severity"] = pairs("--severity", how["severity"])
    options["jobs"] = how["jobs"] or min(os.cpu_count() or 1, _MOST_JOBS)
    options["data_options"] = tidied({name: value for name, value in how.items() if name not in names})
    return options


def exit_code(result: AuditResult, *, fail_on: str, strict: bool) -> int:
    """Return 2 where there is no verdict on something, 1 for findings at or above `fail_on`, else 0."""
    if result.errors or not result.checkpoints:
        return 2
    if any(finding.severity in failing(fail_on) for one in result.checkpoints for finding in one.findings):
        return 1
    return 1 if strict and result.summary.not_judged else 0
