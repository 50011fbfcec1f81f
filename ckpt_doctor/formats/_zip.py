"""Zip archives: one member as a stream, the checks of all, and a copy with one member changed.

A stored member is read where it lies, through a window into the archive; a deflated one is unpacked once, into memory
or a nameless temporary file, after its declared size was found plausible. Every member has a CRC-32.

Source: APPNOTE.TXT 6.3.10, 4.3.7 (local file header).
"""

from __future__ import annotations

import copy
import io
import logging
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ckpt_doctor.checkpoint import DefectKind
from ckpt_doctor.formats._boundary import library_errors
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._streams import (
    FileHandle,
    Handle,
    MemoryHandle,
    Window,
    open_binary,
    open_handle,
    read_bytes,
    stream,
)

_log = logging.getLogger(__name__)

SIGNATURE = b"PK\x03\x04"

# What zipfile was seen to raise on damaged bytes. NotImplementedError is a RuntimeError, UnicodeDecodeError a
# ValueError. No MemoryError: sizes are checked before anything is unpacked.
_RAISED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    OSError,
)

# The guard of keras/src/saving/saving_lib.py for extraction (`_reject_zip_extract_bomb`).
_BOMB_FLOOR_BYTES = 1 << 28
_BOMB_EXPANSION = 100
_IN_MEMORY_BYTES = 1 << 28
_CHUNK = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class NoDirectory(Damaged):
    """The directory that ends a zip archive is not found."""


def zip_errors(what: str) -> AbstractContextManager[None]:
    """Return the boundary that is set round each call into zipfile, and round nothing else.

    Args:
        what: What is read, for messages: `archive` or `member`.

    Raises:
        NoDirectory: The directory is not found.
        Damaged: zipfile gives up on the bytes.
    """

    def damaged(error: Exception) -> Damaged:
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, EOFError):
            return Damaged("truncated", f"ends too early: {said}")
        if "not a zip file" in said:
            return NoDirectory("truncated", said)
        if "CRC-32" in said or "Error -3" in said:
            return _failed(said)
        return Damaged("not-a-checkpoint", f"damaged zip {what}: {said}")

    return library_errors(_RAISED, damaged)


def _failed(reason: str) -> Damaged:
    return Damaged("checksum-mismatch", f"stored bytes fail their check: {reason}")


def _refused(reason: str) -> Damaged:
    return Damaged("not-a-checkpoint", f"damaged zip member: {reason}")


class Archive:
    """A zip archive; its directory is read once.

    Attributes:
        path: Where it lies.
        handle: Its bytes.
        infos: All members, in the order of the directory.
        members: The same by name; of two of one name the last counts, as for zipfile.

    Raises:
        FileNotFoundError: It is not there.
        Damaged: Its directory is damaged or cut off.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.handle = open_handle(path)
        self._zip = _archive_on(stream(self.handle))
        self.infos = self._zip.infolist()
        self.members = {info.filename: info for info in self.infos}
        _log.debug("%s: zip archive of %d members", path, len(self.infos))

    def pieces(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield the content of a member; whoever takes all of it has its CRC-32 and its length checked.

        Raises:
            Damaged: Its CRC-32 is not the stored one; or see `check_member`.
        """
        check_member(info)
        found = 0
        with zip_errors("member"):
            member = self._zip.open(info)
        with member:
            while True:
                with zip_errors("member"):
                    piece = member.read(_CHUNK)
                if not piece:
                    break
                found += len(piece)
                yield piece
        if found != info.file_size:
            raise _failed(f"{info.file_size} bytes are declared, {found} are stored")

    def check(self, info: zipfile.ZipInfo) -> None:
        """Read a member whole.

        Raises:
            Damaged: See `pieces`.
        """
        if not (info.file_size or info.compress_size or info.CRC):
            return  # Nothing, as declared; zipfile takes 50 microseconds to find that out.
        for _ in self.pieces(info):
            pass

    def text(self, info: zipfile.ZipInfo) -> str:
        """Return the text in a small member.

        Raises:
            Damaged: See `pieces`; or it is not UTF-8.
        """
        content = b"".join(self.pieces(info))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _refused(str(error)) from error


def _archive_on(file: BinaryIO) -> zipfile.ZipFile:
    with zip_errors("archive"):
        return zipfile.ZipFile(file)


def first_name(head: bytes) -> str | None:
    """Return the name of the first member from the first bytes of an archive; None where they hold none."""
    if len(head) < _LOCAL_HEADER.size or not head.startswith(SIGNATURE):
        return None
    length = _LOCAL_HEADER.unpack_from(head)[9]
    return head[_LOCAL_HEADER.size : _LOCAL_HEADER.size + length].decode("utf-8", "replace")


def check_member(info: zipfile.ZipInfo) -> None:
    """Refuse what would not be read whole.

    Raises:
        Damaged: The member is encrypted, compressed by another method than deflate, or a bomb.
    """
    if info.flag_bits & 1:
        raise _refused("the member is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(f"compression method {info.compress_type}; 0 (stored) and 8 (deflated) are read")
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise _refused(f"stored, and {info.compress_size} bytes are to hold {info.file_size}")
    if info.file_size > _BOMB_FLOOR_BYTES and info.file_size > _BOMB_EXPANSION * info.compress_size:
        raise _refused(f"declares {info.file_size} bytes, {info.compress_size} are stored; not unpacked")


class Member:
    """One member of an archive, which is checked and unpacked once.

    Args:
        archive: The archive.
        info: The member.
    """

    def __init__(self, archive: Archive, info: zipfile.ZipInfo) -> None:
        self.where = f"{archive.path}!{info.filename}"
        self._archive = archive
        self._info = info
        self._lock = threading.Lock()
        self._trusted = False
        self._failure: tuple[DefectKind, str] | None = None
        self._unpacked: Handle | None = None

    def open(self) -> Handle:
        """Return its content: a stored one where it lies, another one unpacked.

        Raises:
            Damaged: The archive is damaged; or see `check_member`.
        """
        check_member(self._info)
        if self._info.compress_type == zipfile.ZIP_STORED:
            archive = self._archive.handle
            return Window(archive, _data_offset(archive, self._info), self._info.file_size)
        with self._once():
            return self._unpack()

    def check(self) -> None:
        """Compare its CRC-32 with the stored one, once.

        Raises:
            Damaged: They differ; or see `check_member`.
        """
        with self._once():
            if self._info.compress_type != zipfile.ZIP_STORED:
                self._unpack()
            elif not self._trusted:
                self._archive.check(self._info)
                self._trusted = True

    @contextmanager
    def _once(self) -> Iterator[None]:
        """Let one thread at a time read all of it, and none again after it was found damaged."""
        with self._lock:
            if self._failure is not None:
                raise Damaged(*self._failure)
            try:
                yield
            except Damaged as error:
                self._failure = error.kind, error.reason
                raise

    def _unpack(self) -> Handle:
        """Unpack it once; zipfile compares the CRC-32 at its end."""
        if self._unpacked is None:
            check_member(self._info)
            if self._info.file_size <= _IN_MEMORY_BYTES:
                self._unpacked = MemoryHandle(self.where, b"".join(self._archive.pieces(self._info)))
            else:
                import tempfile  # Loads `random` and more, which few scans need.

                file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the handle
                for piece in self._archive.pieces(self._info):
                    file.write(piece)
                self._unpacked = FileHandle(self.where, file)
        return self._unpacked


def _data_offset(archive: Handle, info: zipfile.ZipInfo) -> int:
    """Return where a member's bytes start, in bytes from the start of the archive."""
    header = read_bytes(archive, info.header_offset, _LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(SIGNATURE):
        raise _refused(f"no local header of {info.filename!r} at byte {info.header_offset}")
    fields = _LOCAL_HEADER.unpack(header)
    return info.header_offset + _LOCAL_HEADER.size + int(fields[9]) + int(fields[10])


def copy_with(source: str, target: Path, name: str, content: BinaryIO) -> None:
    """Write a copy of an archive in which one member has another content.

    All other members are copied with their headers as they are; order, dates, comments and compression stay.

    Args:
        source: The archive.
        target: An empty file.
        name: The member that changes.
        content: Its new content, from the start of the stream.

    Raises:
        Damaged: The archive is damaged.
    """
    with open_binary(source) as file, _archive_on(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [archive.start_dir]
        with zipfile.ZipFile(target, "w") as out:
            out.comment = archive.comment
            assert out.fp is not None
            _copy_bytes(file, 0, infos[0].header_offset, cast("BinaryIO", out.fp))
            out.start_dir = out.fp.tell()
            for info, end in zip(infos, ends, strict=True):
                new = copy.copy(info)
                if info.filename == name:
                    _write_member(out, new, content)
                    continue
                # zipfile writes the directory from its list when it closes; the bytes go in as they are.
                out.fp.seek(out.start_dir)
                new.header_offset = out.start_dir
                _copy_bytes(file, info.header_offset, end, cast("BinaryIO", out.fp))
                out.start_dir = out.fp.tell()
                out.filelist.append(new)
                out.NameToInfo[new.filename] = new
            # The directory keeps its own order.
            places = {info.filename: index for index, info in enumerate(archive.infolist())}
            out.filelist.sort(key=lambda info: places[info.filename])


def _write_member(out: zipfile.ZipFile, info: zipfile.ZipInfo, content: BinaryIO) -> None:
    """Write one member anew under its old name, date and compression."""
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    info.extra = b""
    info.file_size = size
    with out.open(info, "w", force_zip64=size >= 1 << 31) as member:
        while piece := content.read(_CHUNK):
            member.write(piece)


def _copy_bytes(source: BinaryIO, start: int, end: int, target: BinaryIO) -> None:
    """Copy a range of bytes."""
    source.seek(start)
    while start < end:
        piece = source.read(min(_CHUNK, end - start))
        if not piece:
            raise Damaged("truncated", f"ends at byte {start}, {end} bytes are needed")
        target.write(piece)
        start += len(piece)
