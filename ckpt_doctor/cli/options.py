"""What all commands have in common: options of the terminal, environment variables, suggestions."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import click

from ckpt_doctor.cli.debug_log import debug_log
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.errors import BadRequest


def _tell_terminal(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Set what an option of every command says; one that is already fed the command counts behind it too."""
    terminal = context.obj if isinstance(context.obj, Terminal) else Terminal()
    context.obj = dataclasses.replace(terminal, **{str(parameter.name): True}) if value else terminal


def _terminal_options() -> list[click.Parameter]:
    """Return the options that every command takes, and the group itself: a command has its own copies."""
    return [
        click.Option(names, is_flag=True, expose_value=False, callback=_tell_terminal, help=text)
        for names, text in (
            (["-q", "--quiet"], "Print findings only."),
            (["-v", "--verbose"], "Do not abbreviate lists and messages; show the debug log."),
            (["--no-color"], "Do not print colours, even on a terminal."),
            (["--no-progress"], "Do not show a progress bar, even on a terminal."),
        )
    ]


def _show_help(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Write the help as reports are written: click would exit with 1, which means findings, if its reader is gone."""
    if value and not context.resilient_parsing:
        Terminal().report(f"{context.get_help()}\n")
        context.exit()


class _Helpful(click.Command):
    """A command with `--help`."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option `--help`."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option


class Command(_Helpful):
    """A command; the options of the terminal may stand behind its name as well as before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _terminal_options()

    def invoke(self, context: click.Context) -> Any:
        """Run the command, with the debug log where it was asked for."""
        try:
            with debug_log(isinstance(context.obj, Terminal) and context.obj.verbose):
                return super().invoke(context)
        except BrokenPipeError as error:
            # Stdout does not raise it (see `streams`); click would take it for stdout's and exit with 1.
            raise OSError(str(error)) from error
        except SystemExit as end:
            # Nothing of ours raises it: `--model` and `--data` run code of the user's. Its 0 would read as a verdict.
            raise BadRequest(f"the code that was run ended the program, by sys.exit({end.code!r}); no verdict") from end


class Group(_Helpful, click.Group):
    """A group that keeps its commands in the order of their use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _terminal_options()

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order in which they were added."""
        del context
        return list(self.commands)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one, say which is near."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", context) from error


def environment_variable(option: click.Option) -> str:
    """Return the variable that stands for an option in every command: `--fail-on` is `CKPT_DOCTOR_FAIL_ON`."""
    return "CKPT_DOCTOR_" + long_name(option).replace("-", "_").upper()


def long_name(option: click.Option) -> str:
    """Return an option's name without its dashes: `fail-on`."""
    return max(option.opts, key=len).lstrip("-")


def set_environment_variables(group: click.Group) -> None:
    """Let every option of every command come from its environment variable.

    click's own prefix would put the command's name into it; one variable for `--format` of all commands is what the
    documentation promises.
    """
    for command in (group, *group.commands.values()):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_eager:
                parameter.envvar = environment_variable(parameter)
