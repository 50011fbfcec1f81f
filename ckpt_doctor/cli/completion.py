"""What Tab completes: names of files, codes of rules, severities, forms of reports.

click's scripts for bash, zsh and fish ask the program itself, and complete nothing that it does not name; files they
complete themselves where the answer says so. Source: click, shell_completion.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ckpt_doctor.finding import SEVERITIES

if TYPE_CHECKING:  # Needed only where a shell asks.
    from click.shell_completion import CompletionItem

# The variable by which a shell's script asks, for a program of this name.
VARIABLE = "_CKPT_DOCTOR_COMPLETE"


class Files(click.types.StringParamType):
    """A file, a folder, a prefix of files."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Let the shell complete names of files."""
        del ctx, param
        return [_item(incomplete, kind="file")]


class Codes(click.types.StringParamType):
    """Codes of rules with commas between them."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the last code."""
        del ctx, param
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [_item(f"{before}{comma}{code}", name) for code, name in _rules(last).items() if code not in given]


class CodeOrName(click.types.StringParamType):
    """The code or the name of one rule."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete codes, and names where one was begun."""
        del ctx, param
        rules = _rules("")
        by_code = [_item(code, name) for code, name in _rules(incomplete).items()]
        names = [name for name in rules.values() if incomplete and name.startswith(incomplete)]
        return by_code + [_item(name) for name in names]


class Levels(click.types.StringParamType):
    """A rule and its severity."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the code, and behind the `=` the severity."""
        del ctx, param
        code, sign, level = incomplete.partition("=")
        if not sign:
            return [_item(f"{known}=", name) for known, name in _rules(code).items()]
        return [_item(f"{code}={known}") for known in SEVERITIES if known.startswith(level)]


class Report(click.types.StringParamType):
    """The form of a report and its file."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the form; behind the `=` the shell completes files."""
        del ctx, param
        from ckpt_doctor.reports import REPORTS

        form, sign, _ = incomplete.partition("=")
        if sign:
            return [_item(incomplete, kind="file")]
        return [_item(f"{known}=") for known in REPORTS if known.startswith(form)]


# Of an option, what is between its name and its help says what its values are.
_BY_METAVAR: dict[str, click.ParamType[str]] = {
    "CODES": Codes(),
    "CODE=LEVEL": Levels(),
    **dict.fromkeys(("FILE", "PATH", "DATA", "MODEL", "MODULE:FUNCTION", "PATH=CODES"), Files()),
}


def type_of(metavar: str | None) -> click.ParamType[str] | None:
    """Return the type of an option's values by how its help calls them; None where nothing is completed."""
    return _BY_METAVAR.get(metavar or "")


def prepare() -> bool:
    """Return whether a shell asks what to complete, prepared to answer."""
    if not os.environ.get(VARIABLE):
        return False
    from click.shell_completion import add_completion_class

    from ckpt_doctor.cli.completion_bash import Bash

    add_completion_class(Bash, "bash")
    return True


def _rules(beginning: str) -> dict[str, str]:
    """Return code → name of the rules whose codes begin so."""
    from ckpt_doctor.rules import RULES  # Takes longer to load than most answers need.

    return {rule.code: rule.name for rule in RULES if rule.code.startswith(beginning.upper())}


def _item(value: str, text: str | None = None, kind: str = "plain") -> CompletionItem[str]:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, type=kind, help=text)
