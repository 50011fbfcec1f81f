"""`ckpt-doctor` itself: the commands, the options of all of them, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

import click

import ckpt_doctor
from ckpt_doctor.cli import completion, configuration
from ckpt_doctor.cli.demo_command import demo
from ckpt_doctor.cli.diff_command import diff
from ckpt_doctor.cli.explain_command import explain
from ckpt_doctor.cli.fix_command import fix
from ckpt_doctor.cli.ls_command import ls
from ckpt_doctor.cli.options import Group, set_environment_variables
from ckpt_doctor.cli.scan_command import scan
from ckpt_doctor.cli.streams import to_stderr
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.errors import CkptDoctorError, written_before


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        Terminal().report(f"ckpt-doctor, version {ckpt_doctor.__version__}\n")
        context.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def ckpt_doctor_group() -> None:
    """Find and repair what is broken in TensorFlow and Keras checkpoints.

    Every option can also come from CKPT_DOCTOR_<OPTION>, or from [tool.ckpt-doctor] in pyproject.toml or
    .ckpt-doctor.toml; the command line overrides both.
    """


for _command in (scan, fix, ls, diff, explain, demo):
    ckpt_doctor_group.add_command(_command)
set_environment_variables(ckpt_doctor_group)


def run(argv: Sequence[str]) -> int:
    """Run one command line; bad input becomes one message on stderr and exit code 2."""
    try:
        # A mistake in a configuration file must not take completion from the shell, or end its start.
        defaults = {} if completion.prepare() else configuration.load(ckpt_doctor_group)
        code = ckpt_doctor_group.main(list(argv), prog_name="ckpt-doctor", standalone_mode=False, default_map=defaults)
    except click.Abort as abort:
        raise (abort.__cause__ if isinstance(abort.__cause__, KeyboardInterrupt) else KeyboardInterrupt) from abort
    except click.ClickException as error:
        message = StringIO()
        error.show(message)
        to_stderr(message.getvalue().rstrip("\n"))
        return 2
    except CkptDoctorError as error:
        _complain(str(error))
        return _no_verdict(error)
    except OSError as error:  # A full disk, a lost permission: the machine's fault, and no verdict.
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        return _no_verdict(error)
    return code if isinstance(code, int) else 0


def _no_verdict(error: BaseException) -> int:
    """Return the exit code of an error; 2 says of `fix` that nothing was written."""
    return 2 if written_before(error) is None else 1


def _complain(message: str) -> None:
    to_stderr(f"ckpt-doctor: {message}")
