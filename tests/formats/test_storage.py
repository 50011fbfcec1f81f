"""Reading bytes from paths and URLs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_doctor.errors import BadRequest, MissingExtra
from ckpt_doctor.formats import _storage, format_of, open_checkpoint
from ckpt_doctor.formats._local_file import CHUNK, OutOfBounds
from ckpt_doctor.formats._storage import open_source
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.formats.interface import Changes
from tests.formats import raw_bundle

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of objects in fsspec's memory, filled with a copy of the samples."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"
    for file in SAMPLES.rglob("*"):
        if file.is_file() and "keras" not in file.parts:
            system.pipe_file(f"{root}/{file.relative_to(SAMPLES).as_posix()}", file.read_bytes())
    yield f"memory:/{root}"
    system.rm(root, recursive=True)


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_pieces_make_up_the_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "x").write_bytes(content)
    source = open_source(str(tmp_path / "x"))
    assert source.size == size
    assert bytes(source.read(0, size)) == content
    assert b"".join(map(bytes, source.chunks(0, size))) == content
    for bad in ((0, size + 1), (size, 1), (-1, 1)):
        with pytest.raises(OutOfBounds):
            source.read(*bad)
        with pytest.raises(OutOfBounds):
            list(source.chunks(*bad))


def test_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    """With a memory map this would end the process."""
    (tmp_path / "x").write_bytes(bytes(3 * CHUNK))
    source = open_source(str(tmp_path / "x"))
    (tmp_path / "x").write_bytes(b"short")
    for read in (lambda: source.read(CHUNK, CHUNK), lambda: list(source.chunks(0, 3 * CHUNK))):
        with pytest.raises(OutOfBounds):
            read()


def test_absent_folder_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(str(tmp_path / "no"))
    with pytest.raises(BadRequest, match="is a folder"):
        open_source(str(tmp_path))
    with pytest.raises(BadRequest):
        open_checkpoint("a\0b")
    with pytest.raises(BadRequest):
        open_checkpoint("x" * 5000)


def test_remote_bundle_is_read_in_the_ranges_that_are_asked_for(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    asked: list[tuple[str, int, int]] = []
    real = MemoryFileSystem.cat_file

    def noted(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        assert start is not None
        assert end is not None
        asked.append((path.rsplit("/", 1)[1], start, end))
        return bytes(real(self, path, start=start, end=end, **options))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    checkpoint = open_checkpoint(f"{bucket}/bundle_dtypes/sample")
    assert {name for name, _, _ in asked} == {"sample.index"}
    variable = checkpoint.variable("scalar")
    assert variable is not None
    assert variable.read() == 2.5
    assert [(name, end - start) for name, start, end in asked if name != "sample.index"] == [
        ("sample.data-00000-of-00001", 4)
    ]


@pytest.mark.parametrize(
    "path",
    ["bundle_shards/sample", "bundle_shards/sample.index", "v1/sample", "v1_shards/sample-00000-of-00002"],
)
def test_remote_checkpoints_equal_local_ones(bucket: str, path: str) -> None:
    checkpoint = open_checkpoint(f"{bucket}/{path}")
    expected = raw_bundle.expected(SAMPLES / path.split("/")[0])
    assert {variable.name for variable in checkpoint.variables} == set(expected)
    for variable in checkpoint.variables:
        assert variable.read().tolist() == expected[variable.name][1].tolist()
    assert not list(format_of(checkpoint).verify(checkpoint))
    with pytest.raises(BadRequest, match="remote checkpoints are read-only"):
        format_of(checkpoint).rewrite(checkpoint, Path("out"), Changes())


def test_remote_folders_are_walked(bucket: str) -> None:
    found = discover([bucket])
    assert not found.errors
    names = [path.rsplit("/", 2)[1] for path in found.checkpoints]
    assert names == [
        "bundle_dtypes",
        "bundle_module",
        "bundle_objects",
        "bundle_shards",
        "saved_model_keras3",
        "saved_model_tf1",
        "saved_model_tf2",
        "tf1_bundle",
        "v1_shards",
    ]
    assert discover([f"{bucket}/bundle_*/sample.index"]).checkpoints == tuple(
        f"{bucket}/bundle_{name}/sample" for name in ("dtypes", "module", "objects", "shards")
    )
    for path in (f"{bucket}/no", f"{bucket}/no*"):
        assert [given for given, _ in discover([path]).errors] == [path]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(BadRequest, match="nosuch"):
        open_checkpoint("nosuch://bucket/model.ckpt")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "fsspec.implementations.s3", None)
    with pytest.raises(MissingExtra, match="pip install s3fs"):
        open_checkpoint("s3://bucket/model.ckpt")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtra, match="pip install fsspec"):
        open_checkpoint("memory://bucket/model.ckpt")


def test_nothing_that_is_not_needed_is_loaded() -> None:
    import subprocess

    program = (
        "import sys; from ckpt_doctor.formats import open_checkpoint; "
        f"c = open_checkpoint({str(SAMPLES / 'bundle_shards' / 'sample')!r}); [v.read() for v in c.variables]; "
        "print([m for m in ('h5py', 'fsspec', 'tensorflow', 'keras', 'ml_dtypes', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_path_helpers() -> None:
    assert _storage.split("s3://b/x/y") == ("s3://b/x", "y")
    assert _storage.join("s3://b/x", "y") == "s3://b/x/y"
    assert _storage.split("x") == ("", "x")
