"""`ckpt-doctor explain`: what does this code mean?"""

from __future__ import annotations

import click

from ckpt_doctor.cli.completion import CodeOrName
from ckpt_doctor.cli.options import Command
from ckpt_doctor.cli.terminal import Terminal


@click.command(cls=Command)
@click.argument("code", metavar="[CODE]", type=CodeOrName(), required=False)
@click.pass_obj
def explain(terminal: Terminal, code: str | None) -> int:
    """Explain a rule by its code or name; without CODE, list all rules."""
    from ckpt_doctor.rules import RULES
    from ckpt_doctor.selection import rule_of

    if code is None:
        widest = max(len(rule.name) for rule in RULES)
        rows = [f"{rule.code}  {rule.name.ljust(widest)}  {rule.severity:<7}  {rule.repair}\n" for rule in RULES]
        terminal.report("".join(rows) + "\n`ckpt-doctor explain CODE` shows the cause, the repair and its risks.\n")
        return 0
    rule = rule_of(code)
    heading = f"{rule.code} {rule.name} ({rule.severity}; fix: {rule.repair})"
    text = rule.documentation.removeprefix(f"{rule.code}: ")
    terminal.report(f"{heading}\n\n{text[:1].upper()}{text[1:]}\n")
    return 0
