"""`ckpt-doctor ls`: what is in this checkpoint?"""

from __future__ import annotations

import click

from ckpt_doctor.cli.completion import Files
from ckpt_doctor.cli.options import Command
from ckpt_doctor.cli.terminal import Terminal


@click.command(cls=Command)
@click.argument("checkpoint", metavar="CHECKPOINT", type=Files())
@click.option("--grep", metavar="REGEX", help="List only names that match.")
@click.option("--stats", is_flag=True, help="Read the values: min, max, mean, std, non-finite, zeros.")
@click.option("--format", "report", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@click.pass_obj
def ls(terminal: Terminal, checkpoint: str, grep: str | None, stats: bool, report: str) -> int:
    """List the variables of a checkpoint: type, shape, size, role, name."""
    from ckpt_doctor.listing import list_variables
    from ckpt_doctor.reports import json, listing

    found = list_variables(checkpoint, grep=grep, stats=stats)
    terminal.report(json.render_listing(found) if report == "json" else listing.render(found, terminal.style()))
    return 0
