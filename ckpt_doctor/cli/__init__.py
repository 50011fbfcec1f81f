"""The command line: arguments in, exit code out. The only place that prints, and that decides an exit code.

One file a command. Modules of this folder import nothing heavy at their top: `--help` and `--version` must be fast.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

# What becomes of an exception that is no message to the user: a mistake of ours, below its traceback.
INTERNAL_ERROR = "ckpt-doctor: internal error: {error}; please report it with the lines above"


class Terminated(BaseException):
    """SIGTERM came."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 healthy, 1 findings, 2 no verdict, 130 and 143 by a signal.

    A crash of Python would exit 1, which here means findings; so nothing leaves this function but a code.
    """
    try:
        # Imported here, so that a broken installation too is reported as what it is.
        from ckpt_doctor.cli.group import run

        return run(sys.argv[1:] if argv is None else list(argv))
    except (KeyboardInterrupt, Terminated) as stop:
        terminated = isinstance(stop, Terminated)
        _tell(f"{'terminated' if terminated else 'interrupted'}{_written(stop)}")
        return 143 if terminated else 130
    except Exception as error:  # noqa: BLE001 - the one place: whatever it is, it must not read as a verdict
        import traceback

        summary = "".join(traceback.format_exception_only(error)).strip()
        _tell(traceback.format_exc() + INTERNAL_ERROR.format(error=summary) + _written(error))
        # 2 says of `fix` that nothing was written.
        return 1 if _written(error) else 2


def _tell(text: str) -> None:
    from ckpt_doctor.cli.streams import to_stderr_as_it_is  # Loads nothing that a broken installation may lack.

    to_stderr_as_it_is(text)


def _written(error: BaseException) -> str:
    from ckpt_doctor.errors import written_before

    path = written_before(error)
    return "" if path is None else f"; {path} is repaired and in place"


def entry_point() -> None:
    """Run the command line and leave with its exit code.

    Ctrl-C and SIGTERM end the program in order, whatever the parent does with them: a shell script that starts it in
    the background lets it ignore Ctrl-C, and a plain SIGTERM would leave what is half done to the next run.
    """
    from ckpt_doctor.cli.streams import drop_unwritten, open_closed_streams

    open_closed_streams()
    with contextlib.suppress(ValueError):  # Not the main thread.
        handle_signals()
    try:
        sys.exit(main())
    finally:
        drop_unwritten()


def handle_signals() -> None:
    """Let Ctrl-C and SIGTERM end what is under way by an exception, in the main thread."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
