"""Stdin, stdout and stderr, whatever the caller left of them: closed, full, read by nobody.

A report that cannot be written to a full disk is an error. A message that cannot be written to stderr is not: nobody
is left to tell it to, and it must not change the exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO, TypeGuard


def open_closed_streams() -> None:
    """Connect those of stdin, stdout and stderr that are closed (`>&-`) with the null device.

    The system gives a file that is opened the lowest free descriptor. Without this, a checkpoint would be opened as
    descriptor 1 or 2, and what a C library prints to stderr would be written into it. The C library of a privileged
    program does the same (glibc, csu/check_fds.c: `__libc_check_standard_fds`).
    """
    for descriptor, name, mode in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            # Also for processes that are started, as these three are by default.
            os.set_inheritable(descriptor, True)
        if descriptor and getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - open to the end


def is_open(stream: TextIO | None) -> TypeGuard[TextIO]:
    """Return whether a stream can be written; it is None if Python was started without it."""
    return stream is not None and not stream.closed


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; a missing one is not."""
    return is_open(stream) and stream.isatty()


def write_report(text: str) -> None:
    """Write a text to stdout if it is open; a reader who has seen enough (`| head`) is not an error.

    Raises:
        OSError: It cannot be written: the disk is full.
    """
    stream = sys.stdout
    if is_open(stream):
        with contextlib.suppress(BrokenPipeError):
            stream.write(encodable(text, stream))
            stream.flush()


def to_stderr(text: str) -> None:
    """Write lines to stderr; names in them come from files that anyone may have made."""
    from ckpt_doctor.reports._page import harmless

    to_stderr_as_it_is(harmless(text))


def to_stderr_as_it_is(text: str) -> None:
    """Write lines to stderr that no file had a say in."""
    stream = sys.stderr
    if is_open(stream):
        with contextlib.suppress(OSError):  # See the top of this file.
            stream.write(f"{encodable(text, stream)}\n")
            stream.flush()


def encodable(text: str, stream: TextIO) -> str:
    """Return a text as a stream can write it: signs that its encoding lacks are escaped."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def drop_unwritten() -> None:
    """Drop what stdout and stderr hold and cannot write, at the end of the program.

    Python flushes both once more when it ends; where that fails, it complains and exits with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if not is_open(stream):
            continue
        try:
            stream.flush()
        except OSError:  # Who wrote it has reported it, or could not.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
