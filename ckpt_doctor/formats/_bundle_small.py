"""The small values of a bundle: read many at a time, and kept once their checksums are found right.

A network has thousands of vectors of a few hundred bytes, which lie in rows. A system call for each of them, once to
verify it and once to read it, costs more than everything else that a scan does to it.
"""

from __future__ import annotations

from ckpt_doctor.formats._bundle_index import Record
from ckpt_doctor.formats._local_file import OutOfBounds
from ckpt_doctor.formats._storage import Source

# A batch-norm vector of 4,096 channels; what is larger costs more to checksum than to ask for.
LARGEST = 16 << 10
# Read at once: small beside a kernel that may lie behind a vector and is then read in vain.
WINDOW = 64 << 10
# Kept of one bundle: 64 MB are 65,536 vectors of 256 channels.
MOST_KEPT = 64 << 20


class Window:
    """Reads small ranges of one data file, in the order in which they lie.

    Args:
        source: The data file.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._start = 0
        self._data = b""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range.

        Args:
            offset: In bytes from the start of the file.
            length: In bytes.

        Raises:
            OutOfBounds: The file ends before it.
        """
        start = offset - self._start
        if start < 0 or start + length > len(self._data):
            try:
                self._data = bytes(self.source.read(offset, max(length, min(WINDOW, self.source.size - offset))))
            except OutOfBounds:  # The file was cut short since it was opened; what is left of it is judged alone.
                return bytes(self.source.read(offset, length))
            self._start, start = offset, 0
        return self._data[start : start + length]


class Verified:
    """Values whose checksums were found right: later readers get these very bytes.

    Attributes:
        values: Key of the entry to the bytes.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._room = MOST_KEPT

    def keep(self, record: Record, data: bytes) -> None:
        """Keep the bytes of an entry, while there is room."""
        if len(data) <= self._room and record.key not in self.values:
            self.values[record.key] = data
            self._room -= len(data)
