"""The first bytes of an HDF5 file: is it one, and is it whole?

HDF5 keeps no checksum of its data, so a lost tail can only be noticed by length. The superblock holds the absolute
offset of the first byte after all data; a file that ends before it was cut. The signature lies at offset 0, or, behind
a user block, at 512, 1024, 2048 … bytes.

Source: HDF5 File Format Specification 3.0, II.A (superblock versions 0 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from ckpt_doctor.formats._damaged import Damaged

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What the signature becomes when a text-mode copy turns CR LF into LF (or LF into CR LF): it was chosen to show this.
MANGLED_SIGNATURES = (b"\x89HDF\n\x1a\n", b"\x89HDF\r\r\n\x1a\r\n", b"\x89HDF\r\n\x1a\r\n")

# A user block is a power of two from 512 up; Keras writes none, people who prepend one write a small one.
_SIGNATURE_OFFSETS = (0, *(512 << k for k in range(12)))
_LONGEST_SUPERBLOCK = 24 + 4 + 4 * 8


@dataclass(frozen=True)
class Superblock:
    """What the superblock says about the file.

    Attributes:
        version: 0 to 3.
        offset: Where the signature lies, in bytes from the start of the file: the size of the user block.
        end: Offset in bytes from the start of the file of the first byte after all data.
        is_open: Whether the file is marked as open for writing: it was not closed, or copied before it was.
        base: What is added to an address of HDF5 to get an offset from the start of the file, in bytes.
        offset_size: Size of the addresses in the file, in bytes.
        length_size: Size of the lengths in the file, in bytes.
    """

    version: int
    offset: int
    end: int
    is_open: bool
    base: int
    offset_size: int
    length_size: int


def has_signature(head: bytes) -> bool:
    """Return whether the signature stands in `head`, the first bytes of a file, where HDF5 looks for it."""
    return any(head.startswith(SIGNATURE, offset) for offset in _SIGNATURE_OFFSETS if offset < len(head))


def is_mangled(head: bytes) -> bool:
    """Return whether `head` starts with the signature as a text-mode copy leaves it."""
    return head.startswith(MANGLED_SIGNATURES)


def read_superblock(file: BinaryIO) -> Superblock | None:
    """Return the superblock of an open file, or None where no signature is found.

    Raises:
        Damaged: There is a signature, and what follows is no superblock.
    """
    for offset in _SIGNATURE_OFFSETS:
        file.seek(offset)
        block = file.read(_LONGEST_SUPERBLOCK)
        if block.startswith(SIGNATURE):
            return _parse(block, offset)
        if len(block) < _LONGEST_SUPERBLOCK:
            break
    return None


def _parse(block: bytes, offset: int) -> Superblock:
    """Parse the bytes from the signature on."""
    if len(block) < 24:
        raise Damaged("not-a-checkpoint", f"the superblock at byte {offset} is cut off after {len(block)} bytes")
    version = block[8]
    if version > 3:
        raise Damaged("not-a-checkpoint", f"superblock version {version}; 0 to 3 are known")
    if version < 2:
        offset_size, length_size, flags = block[13], block[14], block[20]
        addresses = 24 if version == 0 else 28
    else:
        offset_size, length_size, flags = block[9], block[10], block[11]
        addresses = 12
    for what, size in (("offsets", offset_size), ("lengths", length_size)):
        if size not in (2, 4, 8):
            raise Damaged("not-a-checkpoint", f"{what} of {size} bytes; 2, 4 or 8 are known")
    # Base address, then free space (0, 1) or superblock extension (2, 3), then end of file.
    fields = [block[start : start + offset_size] for start in (addresses, addresses + 2 * offset_size)]
    if len(fields[1]) < offset_size:
        raise Damaged("not-a-checkpoint", f"the superblock at byte {offset} is cut off after {len(block)} bytes")
    base, end = (int.from_bytes(field, "little") for field in fields)
    return Superblock(version, offset, end, bool(flags & 1), base, offset_size, length_size)
