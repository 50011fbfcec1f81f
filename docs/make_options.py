"""Write `docs/options.md` from the declarations of the options themselves: `python docs/make_options.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.options import DataOptions, GateOptions, Option, RepairOptions, ScanOptions, own_options_of
from ckpt_doctor.options.kinds import Choice, Flag

PAGE = Path(__file__).parent / "options.md"

_HEAD = """\
<!-- Written by docs/make_options.py from the options themselves; change those. -->
# The options

Every option of the command line can also come from the environment (`--fail-on` is `CKPT_DOCTOR_FAIL_ON`) and from a
configuration file (`fail-on = "warning"`, see [Policy](gate.md#policy)). The command line overrides the environment,
and the environment overrides the file.

In [Python](python.md), `scan` and `fix` take the options below by the name in the column "Python", and read neither the
environment nor files. The [pytest fixture and the Keras callback](gate.md#pytest) take those of `scan` and of "What
fails a scan", and read both; options that you pass count first, `strict=False` and `select=[]` too. If the Python name
differs from the option, both work: `all_listed` and `all`, `inputs` and `input`.

A wrong name, type or value is an error, with a suggestion if there is a similar name: exit code 2 on the command line,
`BadRequest` in Python. An option marked with `…` may be repeated; Python takes one text or several, and a mapping if
the command line takes `NAME=VALUE`.

bash (4.4 or newer), zsh and fish complete commands, options, files, codes of rules and severities. Add one of these
lines to the start file of your shell (`~/.bashrc`, `~/.zshrc`, `~/.config/fish/completions/ckpt-doctor.fish`):

```
eval "$(_CKPT_DOCTOR_COMPLETE=bash_source ckpt-doctor)"
eval "$(_CKPT_DOCTOR_COMPLETE=zsh_source ckpt-doctor)"
_CKPT_DOCTOR_COMPLETE=fish_source ckpt-doctor | source
```
"""

_TABLES = (
    ("Model and data", "Of `fix`, and of `scan` with `--data`.", DataOptions),
    ("Scan", "", ScanOptions),
    ("What fails a scan", "Of the command line, the pytest fixture and the Keras callback.", GateOptions),
    ("Repair", "", RepairOptions),
)


def page() -> str:
    """Return the text of the page."""
    parts = [_HEAD]
    for title, where, kind in _TABLES:
        rows = "\n".join(map(_row, own_options_of(kind)))
        table = f"| option | Python | default | what |\n|---|---|---|---|\n{rows}"
        parts += [f"## {title}", where, table] if where else [f"## {title}", table]
    parts += [
        "## On the command line only",
        "| command | option | what |\n|---|---|---|\n" + "\n".join(_shell_rows()),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(option: Option) -> str:
    word = "\\|".join(option.kind.values) if isinstance(option.kind, Choice) else option.metavar
    name = f"{option.flag} {word}" if word else option.flag
    more = " …" if option.kind.repeatable else ""
    python, text = (f"{option.name}=False", option.help) if option.negative else (option.name, option.text)
    return f"| `{name}`{more} | `{python}` | {_default(option)} | {_cell(text)} |"


def _default(option: Option) -> str:
    if isinstance(option.kind, Flag) or option.default in (None, (), {}):
        return ""
    if option.shell is None:
        return f"`{option.default}`; on the command line one a processor, at most 8"
    return f"`{option.default if option.shell is ... else option.shell}`"


def _shell_rows() -> Iterator[str]:
    """Yield a row for every option that no class above declares."""
    everywhere = [one for one in ckpt_doctor_group.params if not one.is_eager]
    for parameter in everywhere:
        yield _shell_row("every command", parameter)
    declared = {"scan": (DataOptions, ScanOptions, GateOptions), "fix": (DataOptions, RepairOptions)}
    known = {max(one.opts, key=len) for one in everywhere}
    for name, command in ckpt_doctor_group.commands.items():
        above = {option.flag for kind in declared.get(name, ()) for option in own_options_of(kind)}
        for parameter in command.params:
            if isinstance(parameter, click.Option) and max(parameter.opts, key=len) not in above | known:
                yield _shell_row(f"`{name}`", parameter)


def _shell_row(where: str, parameter: click.Parameter) -> str:
    choices = "\\|".join(parameter.type.choices) if isinstance(parameter.type, click.Choice) else ""
    word = "/".join(parameter.opts) + (f" {parameter.metavar or choices}" if parameter.metavar or choices else "")
    more = " …" if parameter.multiple else ""
    return f"| {where} | `{word}`{more} | {_cell(parameter.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
