"""Texts of variable length in an HDF5 file, read by own code.

Such a text is stored as a length and a place in a global heap. HDF5 allocates what the length says and then copies what
the heap holds, so that one wrong byte in either makes it write beyond its memory (`H5HG_read` in H5HG.c, 1.14.6). Keras
keeps the model's config and every name in attributes of this kind; here both sizes are compared.

Source: HDF5 File Format Specification 3.0: III.E (global heap), IV.A.1 (object headers), IV.A.2.m (attribute message).
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.formats._hdf5_errors import beyond_the_end, structure
from ckpt_doctor.formats._hdf5_guard import check_heap
from ckpt_doctor.formats._hdf5_superblock import Superblock
from ckpt_doctor.formats._streams import Handle, read_bytes

_ATTRIBUTE, _ATTRIBUTE_INFO, _CONTINUATION = 0x0C, 0x15, 0x10
_MOST_BLOCKS = 4096
_LONGEST_BLOCK = 1 << 28


class Texts:
    """Reads texts from the bytes of one file.

    Args:
        handle: The file.
        superblock: Its superblock.
    """

    def __init__(self, handle: Handle, superblock: Superblock) -> None:
        self._handle = handle
        self._block = superblock
        self._heaps: dict[int, dict[int, bytes]] = {}

    @property
    def reference_size(self) -> int:
        """Size in the file of the reference to one text, in bytes: a length, an address, an index."""
        return 4 + self._block.offset_size + 4

    def of_attribute(self, address: int, name: str, count: int) -> list[bytes] | None:
        """Return the texts in an attribute.

        Args:
            address: Where the object's header lies, as HDF5 counts addresses.
            name: The attribute's name.
            count: How many texts it holds.

        Returns:
            The texts; None where the attribute is not in the header itself (HDF5 keeps many or large ones elsewhere,
            behind checksums).

        Raises:
            Damaged: The bytes are damaged.
        """
        wanted = name.encode()
        elsewhere = False
        for kind, flags, body in self._messages(address):
            if kind == _ATTRIBUTE:
                found = _attribute_data(body, wanted)
                if found is not None:
                    if flags & 2:
                        raise structure(f"attribute {name}: a shared message")
                    return self.at(found, count)
            elsewhere = elsewhere or kind == _ATTRIBUTE_INFO
        if elsewhere:
            return None
        raise structure(f"attribute {name}: not in the header of its object")

    def at(self, references: bytes, count: int) -> list[bytes]:
        """Return the texts that a row of references leads to.

        Raises:
            Damaged: A length is not that of the text.
        """
        size = self.reference_size
        if len(references) < count * size:
            raise structure(f"{count} texts in {len(references)} bytes")
        return [self._text(references[start : start + size]) for start in range(0, count * size, size)]

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` in the file, counted from its start.

        Raises:
            Damaged: They are not there.
        """
        data = read_bytes(self._handle, offset, length)
        if len(data) != length:
            raise beyond_the_end(f"{length} bytes at {offset} are incomplete")
        return data

    def _text(self, reference: bytes) -> bytes:
        length = int.from_bytes(reference[:4], "little")
        address = int.from_bytes(reference[4 : 4 + self._block.offset_size], "little")
        index = int.from_bytes(reference[4 + self._block.offset_size :], "little")
        if not length:
            return b""
        heap = self._heaps.get(address)
        if heap is None:
            heap = self._heaps[address] = self._heap(address)
        stored = heap.get(index)
        if stored is None or len(stored) != length:
            found = "none" if stored is None else f"{len(stored)} bytes"
            raise structure(f"damaged text: {length} bytes are promised, {found} stored")
        return stored.partition(b"\0")[0]

    def _heap(self, address: int) -> dict[int, bytes]:
        """Return the objects of the global heap at an address, by index."""
        start = self._block.base + address
        header = self.read(start, 16)
        size = int.from_bytes(header[8 : 8 + self._block.length_size], "little")
        if not header.startswith(b"GCOL") or not 16 <= size <= _LONGEST_BLOCK:
            raise structure(f"no heap of texts at byte {start}")
        block = self.read(start, size)
        check_heap(block, self._block.length_size)
        objects = {}
        position = 16
        while position + 16 <= size:
            index = int.from_bytes(block[position : position + 2], "little")
            length = int.from_bytes(block[position + 8 : position + 8 + self._block.length_size], "little")
            if not index:
                break
            objects[index] = block[position + 16 : position + 16 + length]
            position += 16 + (length + 7) // 8 * 8
        return objects

    def _messages(self, address: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield kind, flags and body of every message in an object's header."""
        start = self._block.base + address
        head = self.read(start, 16)
        if head.startswith(b"OHDR"):
            flags = head[5]
            position = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            size = int.from_bytes(self.read(start + position, width), "little")
            blocks = [(start + position + width, size)]
            prefix = 6 if flags & 4 else 4
            ends = 0, 0
        elif head[0] == 1:
            blocks = [(start + 16, int.from_bytes(head[8:12], "little"))]
            prefix = 8
            ends = 0, 0
        else:
            raise structure(f"no object header at byte {start}")
        for count, (offset, length) in enumerate(blocks):
            if count > _MOST_BLOCKS or length > _LONGEST_BLOCK:
                raise structure(f"damaged object header at byte {start}")
            yield from self._in_block(self.read(offset, length)[ends[0] : length - ends[1]], prefix, blocks)
            if prefix < 8:
                ends = 4, 4  # A block of continuation has a signature before and a checksum behind it.

    def _in_block(self, block: bytes, prefix: int, blocks: list[tuple[int, int]]) -> Iterator[tuple[int, int, bytes]]:
        """Yield the messages of one block; where one says that there is another block, note it."""
        position = 0
        while position + prefix <= len(block):
            if prefix == 8:
                kind = int.from_bytes(block[position : position + 2], "little")
                size = int.from_bytes(block[position + 2 : position + 4], "little")
                flags = block[position + 4]
            else:
                kind = block[position]
                size = int.from_bytes(block[position + 1 : position + 3], "little")
                flags = block[position + 3]
            body = block[position + prefix : position + prefix + size]
            position += prefix + size
            if kind == _CONTINUATION:
                split = self._block.offset_size
                where = int.from_bytes(body[:split], "little")
                length = int.from_bytes(body[split : split + self._block.length_size], "little")
                blocks.append((self._block.base + where, length))
            else:
                yield kind, flags, body


def _attribute_data(body: bytes, wanted: bytes) -> bytes | None:
    """Return the data of an attribute message; None where it is of another name."""
    version = body[0] if body else 0
    if version not in (1, 2, 3) or len(body) < 8:
        return None
    sizes = [int.from_bytes(body[start : start + 2], "little") for start in (2, 4, 6)]
    position = 9 if version == 3 else 8
    if body[position : position + sizes[0]].partition(b"\0")[0] != wanted:
        return None
    if version > 1 and body[1]:
        raise structure(f"attribute {wanted.decode()}: of a shared type")
    # Version 1 pads each part to a multiple of eight bytes.
    return body[position + sum((size + 7) // 8 * 8 if version == 1 else size for size in sizes) :]
