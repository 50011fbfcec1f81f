"""What a checkpoint of many entries and many files costs: counted, not timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, ValuesView
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_doctor.checkpoint import same_values
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import _checksum, _table, format_of, open_checkpoint
from ckpt_doctor.formats._bundle import Bundle
from ckpt_doctor.formats._descriptors import MOST_OPEN
from ckpt_doctor.formats._storage import open_source
from ckpt_doctor.formats.tensor_bundle import bundle_of
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.formats.test_opened_once import descriptors, needs_proc

V1 = Path(__file__).parents[2] / "fixtures" / "formats" / "v1" / "sample"
SLICED = Path(__file__).parents[2] / "fixtures" / "formats" / "bundle_shards" / "sample"


def bundle(folder: Path, entries: int, shards: int) -> str:
    """Write a bundle of vectors that hold their own number, spread over data files."""
    data = [bytearray() for _ in range(shards)]
    header = pb.BundleHeader(num_shards=shards, version=pb.VersionDef(producer=1))
    items = [(b"", header.SerializeToString())]
    for number in range(entries):
        value, shard = np.full(2, number, np.float32).tobytes(), number % shards
        entry = pb.BundleEntry(dtype=1, shard_id=shard, offset=len(data[shard]), size=8, crc32c=_checksum.masked(value))
        entry.shape.dim.add(size=2)
        data[shard] += value
        items.append((b"v%06d" % number, entry.SerializeToString()))
    (folder / "m.index").write_bytes(_table.build(sorted(items)))
    for number, content in enumerate(data):
        (folder / f"m.data-{number:05d}-of-{shards:05d}").write_bytes(content)
    return str(folder / "m")


class Counted(dict[Any, Any]):
    """A dict that counts how often all of it is gone through."""

    passes = 0

    def values(self) -> ValuesView[Any]:
        self.passes += 1
        return super().values()

    def items(self) -> Any:
        self.passes += 1
        return super().items()

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("shards", [1, 50])
def test_a_bundle_is_gone_through_a_few_times_however_many_files_it_has(tmp_path: Path, shards: int) -> None:
    opened = Bundle(path := bundle(tmp_path, 100, shards), path)
    opened.records = records = Counted(opened.records)
    opened.variables()
    assert not list(opened.damages())
    assert not list(opened.verify())
    assert records.passes <= 15


def test_slices_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle(str(SLICED), str(SLICED))
    partitioned = sum(bool(record.slices) for record in opened.records.values())
    assert partitioned
    calls: Counter[bytes] = Counter()
    real = Bundle.slice_keys
    monkeypatch.setattr(Bundle, "slice_keys", lambda self, record: calls.update([record.key]) or real(self, record))
    opened.variables()
    list(opened.damages())
    list(opened.verify())
    assert len(calls) == partitioned
    assert max(calls.values()) <= 4  # The slices' own, the stored size, and twice the damages.


@needs_proc
def test_a_bundle_of_many_files_holds_few_descriptors(tmp_path: Path) -> None:
    shards = 3 * MOST_OPEN
    path = bundle(tmp_path, 2 * shards, shards)
    before = descriptors()
    checkpoint = open_checkpoint(path)
    assert not checkpoint.damages
    assert not list(format_of(checkpoint).verify(checkpoint))
    for number, variable in enumerate(checkpoint.variables):
        assert same_values(variable.read(), np.full(2, number, np.float32))
    assert len(bundle_of(checkpoint).shard_numbers()) == shards
    assert descriptors() <= before + MOST_OPEN


def test_a_file_that_was_replaced_while_its_descriptor_was_given_back(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old one")
    source: Any = open_source(str(path))
    source.release()
    assert bytes(source.read(0, 3)) == b"old"
    (tmp_path / "y").write_bytes(b"new one")
    (tmp_path / "y").replace(path)
    assert bytes(source.read(0, 3)) == b"old"
    source.release()
    with pytest.raises(BadRequest, match="was replaced while it was read"):
        source.read(0, 3)
    path.unlink()
    with pytest.raises(BadRequest, match="was removed while it was read"):
        list(source.chunks(0, 3))


def test_a_block_is_unpacked_once_for_all_values_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(V1)
    blocks: Counter[int] = Counter()
    real = _table._entries

    def counted(block: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
        blocks[offset] += 1
        return real(block, offset)

    monkeypatch.setattr(_table, "_entries", counted)
    variables = sorted(checkpoint.variables, key=lambda variable: variable.name)
    assert len(variables) > 5
    for variable in variables:
        variable.read()
    (table,) = [shard.table for shard in checkpoint.attributes["shards"]]
    assert sum(blocks.values()) <= len(table.blocks)
