"""The command line: arguments in, exit code out. The only place that prints, and that decides an exit code.

One file a command. Modules of this folder import nothing heavy at their top: `--help` and `--version` must be fast.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# What becomes of an exception that is no message to the user: a mistake of ours, below its traceback.
INTERNAL_ERROR = "ckpt-doctor: internal error: {error}; please report it with the lines above"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 healthy, 1 findings, 2 no verdict, 130 interrupted.

    A crash of Python would exit 1, which here means findings; so nothing leaves this function but a code.
    """
    try:
        # Imported here, so that a broken installation too is reported as what it is.
        from ckpt_doctor.cli.group import run

        return run(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - the one place: whatever it is, it must not read as a verdict
        import traceback

        traceback.print_exc()
        summary = "".join(traceback.format_exception_only(error)).strip()
        print(INTERNAL_ERROR.format(error=summary), file=sys.stderr)
        return 2


def entry_point() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(main())
