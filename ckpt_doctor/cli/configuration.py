"""Options from `.ckpt-doctor.toml` or `[tool.ckpt-doctor]` in `pyproject.toml`.

The nearest of the two, from the working folder upwards, counts; `.ckpt-doctor.toml` before `pyproject.toml`. Keys are
the names of options; they hold for every command that has the option, and a table of a command's name holds for that
command alone. A key that means nothing is an error: a typo must not switch a gate off.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from ckpt_doctor.cli.options import long_name
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import ScanOptions, options_of
from ckpt_doctor.options.kinds import suggestion

# Options whose files and paths, in a configuration, are those beside it, wherever the command runs.
_BESIDE = {option.flag.lstrip("-") for option in options_of(ScanOptions) if option.beside}


def load(group: click.Group) -> dict[str, Any]:
    """Return the defaults for `group` and its commands as click wants them; empty where no file says anything.

    Raises:
        BadRequest: The file is no TOML, or says what it cannot.
    """
    found = _nearest(Path.cwd())
    if found is None:
        return {}
    path, table = found
    general = {name: value for name, value in table.items() if name not in group.commands}
    unknown = general.keys() - {name for command in (group, *group.commands.values()) for name in _options(command)}
    _refuse(path, unknown, [name for command in (group, *group.commands.values()) for name in _options(command)])
    defaults = _defaults(path, group, general)
    for name, command in group.commands.items():
        own = table.get(name, {})
        if not isinstance(own, dict):
            raise BadRequest(f"{path}: {name} is a command and needs a table, [{name}]")
        _refuse(path, own.keys() - _options(command).keys(), list(_options(command)))
        defaults[name] = _defaults(path, command, general | own)
    return defaults


def _nearest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    for parent in (folder, *folder.parents):
        own = parent / ".ckpt-doctor.toml"
        if own.is_file():
            return own, _parse(own)
        project = parent / "pyproject.toml"
        if project.is_file():
            # Another tool's mistake in it is no business of ours; without our table the file is passed by.
            text = project.read_text(encoding="utf-8", errors="replace")
            if "ckpt-doctor" in text:
                tools = _parse(project).get("tool")
                table = tools.get("ckpt-doctor") if isinstance(tools, dict) else None
                if table is not None and not isinstance(table, dict):
                    raise BadRequest(f"{project}: ckpt-doctor needs a table, [tool.ckpt-doctor]")
                if table is not None:
                    return project, table
    return None


def _parse(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"{path}: no TOML: {error}") from error


def _options(command: click.Command) -> dict[str, click.Option]:
    return {long_name(p): p for p in command.params if isinstance(p, click.Option) and not p.is_eager}


def _refuse(path: Path, unknown: set[str], known: list[str]) -> None:
    for name in sorted(unknown):
        raise BadRequest(f"{path}: no such option: {name!r}{suggestion(name.replace('_', '-'), known)}")


def _defaults(path: Path, command: click.Command, table: dict[str, Any]) -> dict[str, Any]:
    options = _options(command)
    return {
        str(options[name].name): _value(path, name, options[name], value)
        for name, value in table.items()
        if name in options
    }


def _value(path: Path, name: str, option: click.Option, value: Any) -> Any:
    """Return a TOML value as the option takes it on the command line."""
    if option.is_flag != isinstance(value, bool):
        wanted = "true or false" if option.is_flag else "a value"
        raise BadRequest(f"{path}: {name} must be {wanted}, not {value!r}")
    if option.is_flag:
        return value
    if isinstance(value, dict):
        value = [f"{_beside(path, key) if name in _BESIDE else key}={_joined(one)}" for key, one in value.items()]
    if option.multiple:
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        raise BadRequest(f"{path}: {name} takes one value, not a list")
    return _beside(path, value) if name in _BESIDE and isinstance(value, str) else str(value)


def _joined(value: Any) -> str:
    return ",".join(str(one) for one in value) if isinstance(value, list) else str(value)


def _beside(path: Path, name: str) -> str:
    """Return a file or pattern that a configuration at `path` names, from the working folder."""
    if "://" in name or path.parent == Path.cwd():
        return name
    return os.path.join(os.path.relpath(path.parent), name)  # noqa: PTH118 - pathlib would strip `./`
