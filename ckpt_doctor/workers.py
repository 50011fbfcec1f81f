"""Processes that do one thing at a time within limits of time and memory, and may die of it.

A library in C that reads files from strangers can crash, hang, or ask for all the memory there is. Here that ends one
process, which is replaced, and the caller hears of it.
"""

from __future__ import annotations

import importlib
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ckpt_doctor.errors import BadRequest

_Result = TypeVar("_Result")
# What a process is ended with by the system, in words.
_SIGNALS = {signal.SIGKILL: "was killed, which is what the system does where memory runs out"}
_READY = "ready"
_START = (
    "import sys; sys.path[:] = {path!r}; from ckpt_doctor.workers import serve; "
    "serve({descriptor}, {memory}, {module!r})"
)


class Gone(Exception):
    """A process did not do what it was asked to; the message says why."""


class Workers:
    """Processes that are started when they are needed and used again; as a context manager it ends them.

    Args:
        timeout: Seconds that one call may take; None: as long as it takes.
        max_memory: Bytes that a process may ask for beyond what it has when it starts; None: no limit.
        module: The module whose functions are called; a process starts by loading it.

    Raises:
        BadRequest: This system cannot limit the memory of a process.
    """

    def __init__(self, timeout: float | None, max_memory: int | None, module: str) -> None:
        if max_memory is not None and not sys.platform.startswith("linux"):
            raise BadRequest("--max-memory: only Linux can limit the memory of a process; --timeout works everywhere")
        self._timeout = timeout
        self._max_memory = max_memory
        self._module = module
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._idle.empty():
            self._idle.get().end()

    def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Return what a function of a module returns, called in another process. Threads may call at the same time.

        Raises:
            Gone: The process crashed, took too long, or was refused memory.
        """
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self._max_memory, self._module)
        try:
            result: _Result = worker.call(function, arguments, self._timeout)
        except BaseException:
            worker.end()
            raise
        self._idle.put(worker)
        return result


class _Worker:
    def __init__(self, max_memory: int | None, module: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            code = _START.format(path=sys.path, descriptor=theirs.fileno(), memory=max_memory, module=module)
            # A session of its own: Ctrl-C at the terminal is for the parent, which ends this.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._is_ready = False

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float | None) -> Any:
        try:
            # Starting Python and NumPy is not what the limit of time is for.
            self._is_ready = self._is_ready or self._connection.recv() == _READY
            self._connection.send((function, arguments))
            if not self._connection.poll(timeout):
                raise Gone(f"took longer than {timeout:g} s (--timeout)")
            done, result = self._connection.recv()
        except (EOFError, OSError):
            raise Gone(self._why_it_ended()) from None
        if not done:
            raise Gone(result)
        return result

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _why_it_ended(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "does not answer any more"
        if code >= 0:
            return f"ended with exit code {code}"
        number = signal.Signals(-code)
        return _SIGNALS.get(number, f"crashed ({number.name}), in a library that reads the file: do not trust it")


def serve(descriptor: int, max_memory: int | None, module: str) -> None:
    """Do what is asked through a socket until it is closed: the main program of a worker.

    Args:
        descriptor: The socket.
        max_memory: See `Workers`.
        module: What is loaded first: memory and time are limited beyond that.
    """
    importlib.import_module(module)
    connection = Connection(descriptor)
    if max_memory is not None:
        _limit_memory(max_memory)
    connection.send(_READY)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except MemoryError:
            answer = (False, "needs more memory than it may have (--max-memory)")
        connection.send(answer)


def _limit_memory(max_memory: int) -> None:
    """Let this process ask for so much memory beyond what it has.

    RLIMIT_DATA counts what is private and can be written (Linux 4.7 and later): the arrays of NumPy, and not the files
    that are mapped to be read. Threads of libraries reserve address space when they start, which is counted as well, so
    the limit is put on top of what is there. Source: setrlimit(2), proc_pid_status(5), `VmData`.
    """
    import resource

    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    kibibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (kibibytes * 1024 + max_memory, resource.RLIM_INFINITY))
