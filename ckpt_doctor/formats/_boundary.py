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
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_doctor.formats._damaged import Damaged


class _Thread(threading.local):
    """Libraries call back in the thread that called them."""

    failure: BaseException | None = None


_thread = _Thread()


def remember(error: BaseException) -> None:
    """Keep what went wrong in a stream that a library reads, for the boundary round the library; the first counts."""
    if _thread.failure is None:
        _thread.failure = error


@contextmanager
def library_errors(raised: tuple[type[Exception], ...], damaged: Callable[[Exception], Damaged]) -> Iterator[None]:
    """Turn what a library raises into `Damaged`.

    Args:
        raised: What the library raises on damaged bytes.
        damaged: Says what such an exception means.

    Raises:
        Damaged: The library gives up on the bytes, or a stream beneath it did.
        BaseException: What else a stream beneath it raised.
    """
    _thread.failure = None
    try:
        yield
    except raised as error:
        failure = _taken(error)
        if failure is not None:
            raise failure  # noqa: B904 - as it was
        raise damaged(error) from error
    except BaseException as error:
        _taken(error)
        raise
    failure = _taken(None)
    if failure is not None:
        raise failure


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
