"""Options of the command line, made from the fields of `ckpt_doctor.options`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ckpt_doctor.cli.completion import type_of
from ckpt_doctor.options import Option, Options, own_options_of
from ckpt_doctor.options import kinds as k

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MOST_JOBS = 8  # Beyond that the disk or the memory bus is what one waits for.


def options_from(kind: type[Options]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds the options which a class has beyond the class it derives from, in their order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(own_options_of(kind)):
            command = _decorator(option)(command)
        return command

    return decorate


def with_jobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what click gives for the options, with the number of jobs where none was said."""
    return {**given, "jobs": given["jobs"] or min(os.cpu_count() or 1, _MOST_JOBS)}


def _decorator(option: Option) -> Callable[[_Command], _Command]:
    if isinstance(option.kind, k.Flag):
        return click.option(option.flag, option.parameter, is_flag=True, help=option.help)
    if option.kind.repeatable:
        type_ = type_of(option.metavar)
        return click.option(
            option.flag, option.name, metavar=option.metavar, type=type_, multiple=True, help=option.help
        )
    default = option.default if option.shell is ... else option.shell
    return click.option(
        option.flag,
        option.name,
        metavar=option.metavar,
        type=_type(option.kind) or type_of(option.metavar),
        default=default,
        show_default=default is not None,
        help=option.help,
    )


def _type(kind: k.Kind) -> click.ParamType[Any] | None:
    """Return what click checks itself, so that it shows it in its help; all else is checked where it is kept."""
    if isinstance(kind, k.Choice):
        return click.Choice(kind.values)
    if isinstance(kind, k.Whole):
        return click.IntRange(min=kind.least)
    if isinstance(kind, k.Above):
        return click.FloatRange(min=kind.limit, min_open=True)
    return None
