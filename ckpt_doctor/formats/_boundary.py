"""Where our code ends and a library begins.

Damaged bytes make h5py, zipfile and NumPy raise all that Python has, `TypeError` and `KeyError` among it. A boundary is
set round each call into such a library, and round nothing else, so that the same exceptions out of our own code stay
what they are: bugs.

A library calls back into streams of ours. What goes wrong in these is remembered here and raised at the boundary as it
was, whatever the library made of it: a library may swallow or translate an exception that it did not expect.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from ckpt_doctor.formats._damaged import Damaged


class _Thread(threading.local):
    """Libraries call back in the thread that called them."""

    failure: BaseException | None = None


_thread = _Thread()


def remember(error: BaseException) -> None:
    """Keep what went wrong in a stream that a library reads, for the boundary round the library; the first counts."""
    if _thread.failure is None:
        _thread.failure = error


def library_errors(
    raised: tuple[type[Exception], ...], damaged: Callable[[Exception], Damaged]
) -> AbstractContextManager[None]:
    """Return a block in which what a library raises becomes `Damaged`.

    Args:
        raised: What the library raises on damaged bytes.
        damaged: Says what such an exception means.

    Raises:
        Damaged: The library gives up on the bytes, or a stream beneath it did.
        BaseException: What else a stream beneath it raised.
    """
    return _Boundary(raised, damaged)


class _Boundary(AbstractContextManager[None]):
    """See `library_errors`; no generator, because a file of a thousand arrays passes through ten thousand of them."""

    __slots__ = ("_damaged", "_raised")

    def __init__(self, raised: tuple[type[Exception], ...], damaged: Callable[[Exception], Damaged]) -> None:
        self._raised = raised
        self._damaged = damaged

    def __enter__(self) -> None:
        _thread.failure = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if error is None and _thread.failure is None:
            return
        failure = _taken(error)
        if error is None or isinstance(error, self._raised):
            if failure is not None:
                raise failure  # As it was.
            if isinstance(error, Exception):
                raise self._damaged(error) from error


def _taken(error: BaseException | None) -> BaseException | None:
    """Return what was remembered, and forget it.

    The library's frames in the tracebacks let go of what they hold: HDF5 would otherwise close it when whoever keeps
    the exception does so to the interpreter's end, and call Python when there is none (h5py 3.14).
    """
    failure, _thread.failure = _thread.failure, None
    for each in (error, failure):
        if each is not None:
            traceback.clear_frames(each.__traceback__)  # Of those that have ended.
    return failure
