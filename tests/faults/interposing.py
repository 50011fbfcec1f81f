"""Stands between the package and the operating system: every call that changes a file passes here first."""

from __future__ import annotations

import builtins
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Hook = Callable[[str], None]

_CALLS = "fsync link rename replace unlink remove mkdir rmdir symlink truncate chmod sendfile write".split()
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Raw(io.FileIO):
    """A file whose writes are announced; its buffer writes when it is full, flushed or closed."""

    hook: Hook
    done: Hook

    def write(self, data: Any) -> int:
        self.hook("file write")
        count = super().write(data)
        self.done("file write")
        return count


@contextmanager
def interposed(before: Hook, after: Hook = lambda _: None) -> Iterator[None]:
    """Announce every call that changes files, by its name, before it is made and after.

    Writes of the HDF5 library are its own; they lie between the announced ones.
    """
    real: dict[tuple[Any, str], Any] = {}

    def replace(owner: Any, name: str, value: Any) -> None:
        real[owner, name] = getattr(owner, name)
        setattr(owner, name, value)

    def announced(name: str) -> Any:
        function = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            before(name)
            result = function(*arguments, **options)
            after(name)
            return result

        return call

    plain_os_open, plain_open = os.open, io.open

    def os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if not flags & _WRITES:
            return plain_os_open(path, flags, *arguments, **options)
        before("open")
        descriptor = plain_os_open(path, flags, *arguments, **options)
        after("open")
        return descriptor

    def open_(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return plain_open(file, mode, *arguments, **options)
        before("open")
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), options.get("closefd", True), options.get("opener"))
        raw.hook, raw.done = before, after
        after("open")
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding=options.get("encoding") or "utf-8", newline=options.get("newline"))

    try:
        for name in _CALLS:
            replace(os, name, announced(name))
        replace(os, "open", os_open)
        replace(io, "open", open_)
        replace(builtins, "open", open_)
        yield
    finally:
        for (owner, name), value in real.items():
            setattr(owner, name, value)


def copied(source: Path, target: Path) -> Path:
    """Copy a folder with its links, second names and times."""
    names: dict[int, Path] = {}
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        status = path.lstat()
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            copy.mkdir()
        elif status.st_ino in names:
            os.link(names[status.st_ino], copy)
        else:
            shutil.copy2(path, copy)
            names[status.st_ino] = copy
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder with what is in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
