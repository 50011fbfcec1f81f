"""`ckpt-doctor diff`: are these two checkpoints the same?"""

from __future__ import annotations

import click

from ckpt_doctor.cli.completion import Files
from ckpt_doctor.cli.options import Command
from ckpt_doctor.cli.terminal import Terminal


@click.command(cls=Command)
@click.argument("a", metavar="A", type=Files())
@click.argument("b", metavar="B", type=Files())
@click.option(
    "--tolerance", metavar="X", type=float, default=0.0, help="Largest absolute difference that counts as equal."
)
@click.option("--format", "report", type=click.Choice(["text", "json"]), default="text", help="Report format.")
@click.pass_obj
def diff(terminal: Terminal, a: str, b: str, tolerance: float, report: str) -> int:
    """Compare two checkpoints of any formats, variable by variable.

    Exit code: 0 equal, 1 different, 2 not compared.
    """
    from ckpt_doctor.comparison import diff as compare
    from ckpt_doctor.reports import diff as text
    from ckpt_doctor.reports import json

    result = compare(a, b, tolerance=tolerance)
    terminal.report(json.render_diff(result) if report == "json" else text.render(result, terminal.style()))
    return 0 if result.equal else 1
