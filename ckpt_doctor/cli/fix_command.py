"""`ckpt-doctor fix`: repair the batch-norm statistics of this checkpoint."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import click

from ckpt_doctor.cli.data_options import data_options, tidied
from ckpt_doctor.cli.options import Command, bytes_of
from ckpt_doctor.cli.terminal import Terminal, check_output
from ckpt_doctor.errors import BadRequest

METHODS = ("auto", "layerwise", "training", "debias", "copy")
FORMATS = ("text", "json", "html")


@click.command(cls=Command)
@click.argument("checkpoint", metavar="CHECKPOINT")
@data_options
@click.option("--output", metavar="PATH", help="Where to write the repaired checkpoint: a prefix, folder or file.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --output.")
@click.option("--in-place", is_flag=True, help="Repair the checkpoint itself; a backup is kept.")
@click.option("--no-backup", is_flag=True, help="With --in-place: keep no backup.")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True, help="How to estimate.")
@click.option("--layers", metavar="GLOB", multiple=True, help="Only, or also, layers of these names.")
@click.option("--cache-memory", metavar="SIZE", default="2GB", show_default=True, help="Activations held in memory.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="f(predict, data) -> float; a repair may not lower it.")
@click.option("--metric-data", metavar="DATA", help="What the metric is measured on; else --data.")
@click.option("--force", is_flag=True, help="Repair layers that were trained in inference mode.")
@click.option("--dry-run", is_flag=True, help="Say what would be set; write nothing.")
@click.option("--full-verify", is_flag=True, help="Checksum every byte of what was written.")
@click.option("--format", "report", type=click.Choice(FORMATS), default="text", help="Form of the report.")
@click.option("--receipt", metavar="FILE", help="Also write the JSON report to FILE.")
@click.pass_obj
def fix(
    terminal: Terminal,
    /,
    checkpoint: str,
    output: str | None,
    overwrite: bool,
    in_place: bool,
    no_backup: bool,
    method: str,
    layers: tuple[str, ...],
    cache_memory: str,
    metric: str | None,
    metric_data: str | None,
    force: bool,
    dry_run: bool,
    full_verify: bool,
    report: str,
    receipt: str | None,
    **data: Any,
) -> int:
    """Repair the batch-norm statistics of a checkpoint from data.

    Only layers that `scan` finds broken are changed; everything else stays byte for byte what it was.

    Exit code: 0 repaired, or nothing to repair; 1 not everything was; 2 refused or failed, nothing written.
    """
    _check(output, overwrite=overwrite, in_place=in_place, no_backup=no_backup, dry_run=dry_run)
    check_output("--receipt", receipt)
    from ckpt_doctor.repair import fix as repair
    from ckpt_doctor.reports import html, json
    from ckpt_doctor.reports import repair as text

    if report == "html":
        html.check_installed()

    with terminal.progress() as listener:
        result = repair(
            checkpoint,
            output=output,
            in_place=in_place,
            backup=not no_backup,
            overwrite=overwrite,
            method=method,
            layers=layers,
            cache_memory=bytes_of("--cache-memory", cache_memory),
            metric=metric,
            metric_data=metric_data,
            force=force,
            dry_run=dry_run,
            full_verify=full_verify,
            progress=listener,
            **tidied(data),
        )
    if receipt is None and result.needs_receipt and result.output is not None:
        receipt = receipt_beside(result.output)
        terminal.message(f"{receipt}: a receipt, without which a scan could not tell that the statistics are new")
    if receipt is not None and result.output is not None:
        Path(receipt).write_text(json.render_repair(result, terminal.style()), encoding="utf-8")
    render = {"text": text.render, "json": json.render_repair, "html": html.render_repair}[report]
    terminal.report(render(result, terminal.style()))
    return 0 if result.complete else 1


def receipt_beside(output: str) -> str:
    """Return a name for a receipt beside a checkpoint that no other file has."""
    for number in itertools.count():
        path = f"{output.rstrip('/')}.receipt{number or ''}.json"
        if not os.path.lexists(path):
            return path
    raise AssertionError("counting has no end")


def _check(output: str | None, *, overwrite: bool, in_place: bool, no_backup: bool, dry_run: bool) -> None:
    """Refuse options that contradict each other before anything is read."""
    if in_place and output is not None:
        raise BadRequest("--in-place and --output PATH contradict each other; give one")
    if not in_place and output is None and not dry_run:
        raise BadRequest("where to? give --output PATH, --in-place (a backup is kept) or --dry-run")
    if no_backup and not in_place:
        raise BadRequest("--no-backup needs --in-place; --output leaves the checkpoint as it is")
    if overwrite and output is None:
        raise BadRequest("--overwrite needs --output PATH")
