"""`ckpt-doctor fix`: repair the batch-norm statistics of this checkpoint."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import click

from ckpt_doctor.cli.completion import Files
from ckpt_doctor.cli.fields import options_from
from ckpt_doctor.cli.options import Command
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.errors import BadRequest, tell_written
from ckpt_doctor.options import DataOptions, RepairOptions

if TYPE_CHECKING:
    from ckpt_doctor.repair_result import RepairResult

FORMATS = ("text", "json", "html")


@click.command(cls=Command)
@click.argument("checkpoint", metavar="CHECKPOINT", type=Files())
@options_from(DataOptions)
@options_from(RepairOptions)
@click.option("--format", "report", type=click.Choice(FORMATS), default="text", help="Report format.")
@click.option("--receipt", metavar="FILE", type=Files(), help="Also write the JSON report to FILE.")
@click.pass_obj
def fix(terminal: Terminal, /, checkpoint: str, report: str, receipt: str | None, **given: Any) -> int:
    """Repair the batch-norm statistics of a checkpoint, from data if needed.

    fix changes only layers that `scan` finds broken; everything else stays the same, byte for byte.

    Exit code: 0 repaired, or nothing to repair; 1 not everything is repaired; 2 refused or failed, nothing written.
    """
    options = RepairOptions.of(given)
    options.check_destination()
    from ckpt_doctor.formats.report_file import check_report
    from ckpt_doctor.repair import fix as repair
    from ckpt_doctor.repair.writing import check_receipt
    from ckpt_doctor.reports import html

    if receipt is not None:
        check_receipt(receipt, checkpoint, options.output)
        check_report("--receipt", receipt)
    if report == "html":
        html.check_installed()

    with terminal.progress() as listener:
        result = repair(checkpoint, progress=listener, **options.only(RepairOptions))
    try:
        return _told(terminal, result, report, receipt)
    except OSError as error:
        if result.output is None:
            raise
        # Exit code 2 would say that nothing was written.
        terminal.message(
            f"{result.output} is repaired and in place, but the report cannot be written: {error.strerror}"
        )
        return 1
    except BaseException as error:
        if result.output is not None:
            tell_written(error, result.output)
        raise


def _told(terminal: Terminal, result: RepairResult, report: str, receipt: str | None) -> int:
    """Write the receipt and the report, and return the exit code."""
    from ckpt_doctor.formats.report_file import write_report
    from ckpt_doctor.reports import html, json
    from ckpt_doctor.reports import repair as text

    if receipt is None and result.needs_receipt and result.output is not None:
        receipt = receipt_beside(result.output)
        terminal.message(f"{receipt}: the receipt; scan needs it to tell that the statistics are new")
    unwritten = False
    if receipt is not None and result.output is not None:
        try:
            write_report("--receipt", receipt, json.render_repair(result, terminal.style()))
        except BadRequest as error:
            # Exit code 2 says that nothing was written.
            terminal.message(f"{result.output} is repaired, but its receipt cannot be written: {error}")
            unwritten = True
    render = {"text": text.render, "json": json.render_repair, "html": html.render_repair}[report]
    terminal.report(render(result, terminal.style()))
    return 0 if result.complete and not unwritten else 1


def receipt_beside(output: str) -> str:
    """Return a name for a receipt beside a checkpoint that no other file has."""
    for number in itertools.count():
        path = f"{output.rstrip('/')}.receipt{number or ''}.json"
        if not os.path.lexists(path):
            return path
    raise AssertionError("counting has no end")
