"""Interrupts that wait until a step is through which must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM, where the program handles them, take effect after the block.

    Only the main thread is interrupted by a handler, and only it can change one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[signal.Signals, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        came.append((signal.Signals(number), frame))

    handlers: dict[signal.Signals, Any] = {}
    try:
        for interrupt in _INTERRUPTS:
            handler = signal.getsignal(interrupt)
            if callable(handler):
                handlers[interrupt] = handler
                signal.signal(interrupt, wait)
        yield
    finally:
        for interrupt, handler in handlers.items():
            signal.signal(interrupt, handler)
        for number, frame in came[:1]:
            handlers[number](number, frame)
