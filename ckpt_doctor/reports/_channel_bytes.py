"""The values of channels as the HTML page carries them: three bytes each, and no more than fit.

The upper three bytes of a float32, rounded to nearest: four and a half digits, the whole range, NaN and infinities; and
exactly four characters of base64.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence

from ckpt_doctor.result import ChannelValues

# A series of one layer: its name, its means and its variances, either of them None where there are none.
Series = tuple[str, str | None, str | None]

# With tables and text the page of any model stays below three million bytes.
_MOST_CHARACTERS = 2_300_000
_LARGEST = 3.4028235e38


def fitting(
    layers: Iterable[tuple[str, bool, Sequence[tuple[str, ChannelValues | None]]]],
) -> tuple[dict[str, list[Series]], int]:
    """Return the series of as many layers as fit, and how many did not.

    Args:
        layers: Key, whether it is to come before those that are not, and the names and values of its series.
    """
    found: dict[str, list[Series]] = {}
    left_out = used = 0
    for key, _, all_series in sorted(layers, key=lambda layer: not layer[1]):
        series = [(name, encoded(one.mean), encoded(one.variance)) for name, one in all_series if one is not None]
        if not series:
            continue
        characters = sum(len(text) for one in series for text in one if text is not None)
        if used + characters > _MOST_CHARACTERS:
            left_out += 1
            continue
        used += characters
        found[key] = series
    return found, left_out


def encoded(values: Sequence[float] | None) -> str | None:
    """Return the values, most significant byte first, as base64; None for none."""
    if values is None:
        return None
    return base64.b64encode(b"".join(_three_bytes(value) for value in values)).decode("ascii")


def _three_bytes(value: float) -> bytes:
    if value != value:
        return b"\x7f\xc0\x00"
    if abs(value) > _LARGEST:  # Infinite, or a float64 that a float32 cannot hold.
        return b"\x7f\x80\x00" if value > 0 else b"\xff\x80\x00"
    (bits,) = struct.unpack(">I", struct.pack(">f", value))
    rounded = min(bits + 0x80, (bits & 0x80000000) | 0x7F7FFFFF)  # Never up to infinity.
    return struct.pack(">I", rounded)[:3]
