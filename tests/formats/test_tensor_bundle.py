"""Tensor bundles: the contract on samples of TensorFlow, and what is special about them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array, same_values
from ckpt_doctor.errors import BadRequest, RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import _checksum, _table, format_of, open_checkpoint
from ckpt_doctor.formats._bundle_values import encode
from ckpt_doctor.formats._slices import key_of
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.formats import raw_bundle
from tests.formats.contract import FEW_FAILURES, Expected, FormatContract, altered, copy_into, snapshot
from tests.independent import write_bundle

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats"


class BundleContract(FormatContract):
    format_name = "tensor-bundle"
    has_checksums = True
    sample: str

    def make(self, folder: Path) -> str:
        copy_into(folder, *(SAMPLES / self.sample).glob("sample*"))
        return str(folder / "sample")

    def expected(self) -> Expected:
        return raw_bundle.expected(SAMPLES / self.sample)

    def raw_values(self, path: str) -> dict[str, Array]:
        return raw_bundle.bundle(path)

    def target(self, folder: Path) -> Path:
        return folder / "fixed.ckpt-7"

    def new_variable(self) -> tuple[str, Array] | None:
        return "added/moving_mean", np.arange(5, dtype=np.float32)

    def files(self, path: str) -> list[Path]:
        # A graph has no checksum; what it says is judged elsewhere.
        return [file for file in super().files(path) if file.suffix != ".meta"]


class TestTypes(BundleContract):
    sample = "bundle_dtypes"


class TestShardsAndSlices(BundleContract):
    sample = "bundle_shards"
    samples, header = 60, 16


class TestTensorFlow1(BundleContract):
    sample = "tf1_bundle"
    samples, header = 60, 16
    failures = FEW_FAILURES


class TestObjects(BundleContract):
    sample = "bundle_module"
    failures = FEW_FAILURES

    def new_variable(self) -> tuple[str, Array] | None:
        return "net/moving_variance/.ATTRIBUTES/VARIABLE_VALUE", np.arange(3, dtype=np.float32)


def make_bundle(folder: Path, variables: dict[str, Array], *, big_endian: bool = False, name: str = "m") -> str:
    """Write a bundle from nothing; TensorFlow on this machine writes no big-endian ones."""
    data = bytearray()
    header = pb.BundleHeader(num_shards=1, endianness=int(big_endian))
    header.version.producer = 1
    items = {b"": header.SerializeToString()}
    for key, value in variables.items():
        content, crc = encode(value, big_endian=big_endian)
        number = raw_bundle.NAMES.index("string" if value.dtype == object else value.dtype.name)
        entry = pb.BundleEntry(dtype=number, offset=len(data), size=len(content), crc32c=crc)
        entry.shape.CopyFrom(pb.TensorShape(dim=[pb.TensorShape.Dim(size=size) for size in value.shape]))
        items[key.encode()] = entry.SerializeToString()
        data += content
    (folder / f"{name}.data-00000-of-00001").write_bytes(data)
    (folder / f"{name}.index").write_bytes(_table.build(sorted(items.items())))
    return str(folder / name)


def test_big_endian(tmp_path: Path) -> None:
    values = {
        "f": np.array([1.5, -2], ">f4"),
        "c": np.array([1 + 2j], np.complex64),
        "i": np.array([258], np.int16),
        "s": np.array([b"abc", b""], object),
    }
    plain = {name: value.astype(value.dtype.newbyteorder("=")) for name, value in values.items()}
    path = make_bundle(tmp_path, plain, big_endian=True)
    assert b"\x3f\xc0\x00\x00" in Path(f"{path}.data-00000-of-00001").read_bytes()
    checkpoint = open_checkpoint(path)
    assert not list(format_of(checkpoint).verify(checkpoint))
    for variable in checkpoint.variables:
        assert same_values(variable.read(), plain[variable.name])
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes({"f": plain["f"] + 1}))
    written = open_checkpoint(tmp_path / "out")
    assert written.variable("f").read().tolist() == [2.5, -1]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["", ".index", ".data-00000-of-00003", ".data-00002-of-00003"])
def test_any_file_of_a_checkpoint_names_it(form: str) -> None:
    prefix = SAMPLES / "bundle_shards" / "sample"
    assert open_checkpoint(f"{prefix}{form}").path == str(prefix)


def test_a_file_that_is_named_index_and_nothing_else(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, {"x": np.zeros(3, np.float32)}, name="")
    assert path == str(tmp_path)
    for given in (tmp_path, tmp_path / ".index", tmp_path / ".data-00000-of-00001"):
        checkpoint = open_checkpoint(given)
        assert checkpoint.path == str(tmp_path / ".index")
        assert [variable.name for variable in checkpoint.variables] == ["x"]


def test_thirty_thousand_entries(tmp_path: Path) -> None:
    values = {f"scope_{number % 97}/layer_{number}/gamma": np.full(1, number, np.float32) for number in range(30_000)}
    path = make_bundle(tmp_path, values)
    checkpoint = open_checkpoint(path)
    assert len(checkpoint.variables) == 30_000
    name = "scope_3/layer_100/gamma"
    assert checkpoint.variable(name).read().tolist() == [100.0]  # type: ignore[union-attr]
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes({name: np.zeros(1, np.float32)}))
    written = open_checkpoint(tmp_path / "out")
    assert [variable.name for variable in written.variables] == [variable.name for variable in checkpoint.variables]
    assert written.variable(name).read().tolist() == [0.0]  # type: ignore[union-attr]


def test_missing_shard_leaves_names_and_the_other_shards(tmp_path: Path) -> None:
    copy_into(tmp_path, *(SAMPLES / "bundle_shards").glob("sample*"))
    (tmp_path / "sample.data-00001-of-00003").unlink()
    checkpoint = open_checkpoint(tmp_path / "sample")
    (damage,) = checkpoint.damages
    assert damage.kind == "missing-shard"
    assert damage.where.endswith("sample.data-00001-of-00003")
    assert set(damage.variables) == {"part", "wide"}
    assert not list(format_of(checkpoint).verify(checkpoint))
    assert checkpoint.variable("plain").read().tolist() == [1, 1, 1]  # type: ignore[union-attr]
    with pytest.raises(UnreadableCheckpoint, match="is not there"):
        checkpoint.variable("part").read()  # type: ignore[union-attr]
    with pytest.raises(RepairRefused, match="damaged"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "git-LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
        (b"\x80\x04\x95" + b"\0" * 60, "pickle"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "HDF5"),
        (b"404: Not Found, try again later", "text file"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    copy_into(tmp_path, *(SAMPLES / "bundle_module").glob("sample*"))
    data = tmp_path / "sample.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(content)
    (damage,) = open_checkpoint(tmp_path / "sample").damages
    assert damage.kind == "not-a-checkpoint"
    assert words in damage.message
    data.write_bytes(whole)
    (tmp_path / "sample.index").write_bytes(content)
    with pytest.raises(UnreadableCheckpoint, match=words) as caught:
        open_checkpoint(tmp_path / "sample.index")
    assert [damage.kind for damage in caught.value.damages] == ["not-a-checkpoint"]


def test_a_table_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(_table.build([(b"some", b"thing")]))
    with pytest.raises(UnreadableCheckpoint, match="no header") as caught:
        open_checkpoint(tmp_path / "x")
    assert caught.value.damages[0].kind == "not-a-checkpoint"


@pytest.mark.parametrize(
    "entry",
    [
        pb.BundleEntry(dtype=1, size=1 << 60, offset=1 << 61),
        pb.BundleEntry(dtype=7, size=3),
        pb.BundleEntry(dtype=1, size=-1),
        pb.BundleEntry(dtype=1, shard_id=5),
        pb.BundleEntry(dtype=999, size=4),
        pb.BundleEntry(dtype=20, size=4),
        pb.BundleEntry(dtype=21, size=4),
        pb.BundleEntry(dtype=1, size=4, slices=[pb.TensorSlice(extent=[pb.TensorSlice.Extent(start=1, length=9)])]),
        pb.BundleEntry(dtype=1, size=4, slices=[pb.TensorSlice(extent=[pb.TensorSlice.Extent()])]),
    ],
)
@pytest.mark.parametrize("shape", [(), (1 << 40, 1 << 40), (-1,), (2,) * 300, (1,) * 100, (0,), (0, 1 << 62, 1 << 62)])
def test_hostile_entries_are_damage(tmp_path: Path, entry: pb.BundleEntry, shape: tuple[int, ...]) -> None:
    entry = pb.BundleEntry.FromString(entry.SerializeToString())
    entry.shape.CopyFrom(pb.TensorShape(dim=[pb.TensorShape.Dim(size=size) for size in shape]))
    header = pb.BundleHeader(num_shards=1)
    items = [(b"", header.SerializeToString()), (b"x", entry.SerializeToString())]
    (tmp_path / "m.index").write_bytes(_table.build(items))
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(8))
    try:
        checkpoint = open_checkpoint(tmp_path / "m")
    except UnreadableCheckpoint:
        return
    damages = [*checkpoint.damages, *format_of(checkpoint).verify(checkpoint)]
    with pytest.raises(UnreadableCheckpoint):
        checkpoint.variables[0].read()
    assert damages or entry.dtype in (1, 20, 999)


def test_slices_that_claim_more_than_there_is(tmp_path: Path) -> None:
    whole = 1 << 50
    entry = pb.BundleEntry(dtype=1, shape=pb.TensorShape(dim=[pb.TensorShape.Dim(size=whole)]))
    items = {b"": pb.BundleHeader(num_shards=1).SerializeToString()}
    for start in (0, whole // 2):
        extent = pb.TensorSlice.Extent(start=start, length=whole // 2)
        entry.slices.add().extent.append(extent)
        part = pb.BundleEntry(dtype=1, size=whole * 2, shape=pb.TensorShape(dim=[pb.TensorShape.Dim(size=whole // 2)]))
        items[key_of(b"x", ((start, whole // 2),))] = part.SerializeToString()
    items[b"x"] = entry.SerializeToString()
    (tmp_path / "m.index").write_bytes(_table.build(sorted(items.items())))
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(8))
    checkpoint = open_checkpoint(tmp_path / "m")
    assert [damage.variables for damage in checkpoint.damages] == [("x",)]
    with pytest.raises(UnreadableCheckpoint, match="slices need more"):
        checkpoint.variables[0].read()


def test_appending_leaves_old_bytes_and_hard_links_alone(tmp_path: Path) -> None:
    path = BundleContractOf("bundle_dtypes").make(tmp_path)
    data = Path(f"{path}.data-00000-of-00001")
    old = data.read_bytes()
    name = "block_1/a_long_scope/weights"
    value = raw_bundle.expected(SAMPLES / "bundle_dtypes")[name][1]
    inode = data.stat().st_ino
    checkpoint = open_checkpoint(path)
    format_of(checkpoint).rewrite_in_place(checkpoint, Changes({name: altered(value)}), backup=False)
    assert data.stat().st_ino == inode
    assert data.read_bytes()[: len(old)] == old

    # Through a link the same change goes to a file of its own.
    link = tmp_path / "elsewhere"
    os.link(data, link)
    linked = link.read_bytes()
    checkpoint = open_checkpoint(path)
    format_of(checkpoint).rewrite_in_place(checkpoint, Changes({name: value}), backup=False)
    assert link.read_bytes() == linked
    assert data.stat().st_ino != inode
    assert same_values(open_checkpoint(path).variable(name).read(), value)  # type: ignore[union-attr]

    # And so does one through a symbolic link, which is replaced.
    stored = tmp_path / "store"
    data.rename(stored)
    data.symlink_to(stored)
    kept = stored.read_bytes()
    checkpoint = open_checkpoint(path)
    format_of(checkpoint).rewrite_in_place(checkpoint, Changes({name: altered(value)}), backup=False)
    assert stored.read_bytes() == kept
    assert not data.is_symlink()
    assert same_values(open_checkpoint(path).variable(name).read(), altered(value))  # type: ignore[union-attr]


def test_at_every_instant_of_a_change_in_place_a_whole_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every call that changes what a reader sees, all values are the old ones or all are the new ones."""
    path = BundleContractOf("bundle_dtypes").make(tmp_path)
    expected = raw_bundle.expected(SAMPLES / "bundle_dtypes")
    name = "scalar"
    new = altered(expected[name][1])
    seen = []

    def look() -> None:
        raw = raw_bundle.bundle(path)
        seen.append(same_values(raw.pop(name), new))
        assert all(same_values(raw[other], expected[other][1]) for other in raw)

    for call in ("fsync", "replace", "link", "unlink"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, real=real, **k: (look(), real(*a, **k))[1])
    checkpoint = open_checkpoint(path)
    format_of(checkpoint).rewrite_in_place(checkpoint, Changes({name: new}))
    monkeypatch.undo()
    look()
    assert seen == sorted(seen)
    assert {False, True} <= set(seen)


def test_backups_are_never_overwritten(tmp_path: Path) -> None:
    path = BundleContractOf("bundle_module").make(tmp_path)
    name = "net/gamma/.ATTRIBUTES/VARIABLE_VALUE"
    kept = []
    for number in range(3):
        checkpoint = open_checkpoint(path)
        value = np.full(3, number, np.float32)
        kept += format_of(checkpoint).rewrite_in_place(checkpoint, Changes({name: value}))
    assert [file.name for file in kept] == ["sample.index.bak", "sample.index.bak1", "sample.index.bak2"]
    Path(f"{path}.index").write_bytes(kept[0].read_bytes())
    restored = {variable.name: variable.read() for variable in open_checkpoint(path).variables}
    for known, (_, value) in raw_bundle.expected(SAMPLES / "bundle_module").items():
        assert same_values(restored[known], value)


def test_meta_is_copied_or_replaced(tmp_path: Path) -> None:
    path = BundleContractOf("tf1_bundle").make(tmp_path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.producer == "TensorFlow 1.15.5"
    assert checkpoint.descriptions.meta_graph == Path(f"{path}.meta").read_bytes()
    form = format_of(checkpoint)
    form.rewrite(checkpoint, tmp_path / "same", Changes())
    assert (tmp_path / "same.meta").read_bytes() == checkpoint.descriptions.meta_graph
    form.rewrite(checkpoint, tmp_path / "other", Changes(meta_graph=b"\x0a\x00"))
    assert (tmp_path / "other.meta").read_bytes() == b"\x0a\x00"
    form.rewrite_in_place(checkpoint, Changes(meta_graph=b"\x0a\x00"))
    assert Path(f"{path}.meta").read_bytes() == b"\x0a\x00"
    assert Path(f"{path}.meta.bak").read_bytes() == checkpoint.descriptions.meta_graph


def test_overwriting_removes_what_the_older_checkpoint_leaves(tmp_path: Path) -> None:
    three = open_checkpoint(BundleContractOf("bundle_shards").make(tmp_path))
    form = format_of(three)
    target = tmp_path / "out"
    form.rewrite(three, target, Changes(meta_graph=b"\x0a\x00"))
    one = open_checkpoint(SAMPLES / "bundle_module" / "sample")
    form.rewrite(one, target, Changes(), overwrite=True)
    assert sorted(name for name in snapshot(tmp_path) if name.startswith("out")) == [
        "out.data-00000-of-00001",
        "out.index",
    ]


def test_a_checkpoint_that_changed_meanwhile_is_not_rewritten(tmp_path: Path) -> None:
    path = BundleContractOf("bundle_module").make(tmp_path)
    stale = open_checkpoint(path)
    name = "net/gamma/.ATTRIBUTES/VARIABLE_VALUE"
    fresh = open_checkpoint(path)
    format_of(fresh).rewrite_in_place(fresh, Changes({name: np.zeros(3, np.float32)}))
    with pytest.raises(BadRequest, match="changed by another program"):
        format_of(stale).rewrite(stale, tmp_path / "out", Changes())


def test_object_graph_gives_labels_and_takes_new_variables(tmp_path: Path) -> None:
    path = BundleContractOf("bundle_module").make(tmp_path)
    checkpoint = open_checkpoint(path)
    labels = {variable.name: variable.label for variable in checkpoint.variables}
    assert labels["net/gamma/.ATTRIBUTES/VARIABLE_VALUE"] == "gamma"
    assert [variable.name for variable in checkpoint.bookkeeping] == ["_CHECKPOINTABLE_OBJECT_GRAPH"]
    name = "net/moving_variance/.ATTRIBUTES/VARIABLE_VALUE"
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes({name: np.ones(3, np.float32)}))
    graph = pb.TrackableObjectGraph.FromString(open_checkpoint(tmp_path / "out").descriptions.object_graph or b"")
    children = {child.local_name: child.node_id for child in graph.nodes[graph.nodes[0].children[0].node_id].children}
    assert graph.nodes[children["moving_variance"]].attributes[0].checkpoint_key == name
    nowhere = "no/such/object/.ATTRIBUTES/VARIABLE_VALUE"
    with pytest.raises(RepairRefused, match="can own it"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "no", Changes({nowhere: np.ones(3, np.float32)}))


def test_strings_of_four_gigabytes_have_lengths_of_eight_bytes() -> None:
    from ckpt_doctor.formats._bundle_values import _lengths_checksum

    small = _checksum.extend(0, (5).to_bytes(4, "little"))
    assert _lengths_checksum([5], False) == small
    assert _lengths_checksum([1 << 32], False) == _checksum.extend(0, (1 << 32).to_bytes(8, "little"))


class BundleContractOf(BundleContract):
    """The sample as a plain object, for tests outside the contract."""

    __test__ = False

    def __init__(self, sample: str) -> None:
        self.sample = sample


def test_small_values_that_are_read_together_are_checked_one_by_one(tmp_path: Path) -> None:
    values = {f"v{number:02}": np.full(64, number, np.float32) for number in range(20)}
    write_bundle(tmp_path / "model", values)
    data = tmp_path / "model.data-00000-of-00001"
    changed = bytearray(data.read_bytes())
    changed[7 * 256] ^= 1
    changed[12 * 256 + 255] ^= 1
    data.write_bytes(changed)
    checkpoint = open_checkpoint(tmp_path / "model")
    damages = list(format_of(checkpoint).verify(checkpoint))
    assert [(damage.kind, damage.variables) for damage in damages] == [
        ("checksum-mismatch", ("v07",)),
        ("checksum-mismatch", ("v12",)),
    ]
    assert [damage.where for damage in damages] == [f"{data}, byte {7 * 256}", f"{data}, byte {12 * 256}"]
    for variable in checkpoint.variables:
        if variable.name in ("v07", "v12"):
            with pytest.raises(UnreadableCheckpoint, match="checksum"):
                variable.read()
        else:
            np.testing.assert_array_equal(variable.read(), values[variable.name])


def test_a_file_that_is_cut_short_after_it_was_opened_is_judged_value_by_value(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", {f"v{number:02}": np.full(64, number, np.float32) for number in range(20)})
    checkpoint = open_checkpoint(tmp_path / "model")
    os.truncate(tmp_path / "model.data-00000-of-00001", 10 * 256)
    damages = list(format_of(checkpoint).verify(checkpoint))
    assert [damage.kind for damage in damages] == ["truncated"] * 10
    assert [damage.variables for damage in damages] == [(f"v{number}",) for number in range(10, 20)]


def test_what_was_verified_is_what_is_read(tmp_path: Path) -> None:
    values = {"small": np.arange(10, dtype=np.float32), "large": np.arange(10_000, dtype=np.float32)}
    write_bundle(tmp_path / "model", values)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert not list(format_of(checkpoint).verify(checkpoint))
    data = tmp_path / "model.data-00000-of-00001"
    with data.open("r+b") as file:  # What stands in its place now was never verified.
        file.write(bytes(len(data.read_bytes())))
    small, large = (checkpoint.variable(name) for name in ("small", "large"))
    assert small is not None
    assert large is not None
    np.testing.assert_array_equal(small.read(), values["small"])
    with pytest.raises(UnreadableCheckpoint, match="checksum"):
        large.read()
