"""Processes that cannot outlive the test that starts them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(argv: Sequence[Any], *, seconds: float = 120, **options: Any) -> Iterator[subprocess.Popen]:
    """Start a process; kill it after `seconds`, which ends every read from it, and at the end of the block."""
    process = subprocess.Popen(argv, **options)
    watch = threading.Timer(seconds, process.kill)
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        process.kill()
        process.wait(timeout=10)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
