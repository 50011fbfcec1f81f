"""V1 checkpoints, plain and sharded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array, numpy_dtype
from ckpt_doctor.errors import RepairRefused, UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from tests.formats import raw_bundle
from tests.formats.contract import Expected, FormatContract, copy_into
from tests.formats.raw_bundle import NAMES, fields, shape_of

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats"
# Field of `Tensor` → how its numbers lie.
PACKED = {5: "<f4", 6: "<f8", 9: "<f4", 12: "<f8"}


class V1Contract(FormatContract):
    format_name = "tensor-slices-v1"
    has_checksums = True
    sample: str

    def make(self, folder: Path) -> str:
        copy_into(folder, *(SAMPLES / self.sample).glob("sample*"))
        return str(folder / "sample")

    def expected(self) -> Expected:
        return raw_bundle.expected(SAMPLES / self.sample)

    def target(self, folder: Path) -> Path:
        return folder / "fixed"

    def new_variable(self) -> tuple[str, Array] | None:
        return "added/moving_mean", np.arange(6, dtype=np.float32).reshape(2, 3)

    def files(self, path: str) -> list[Path]:
        return [file for file in super().files(path) if file.suffix != ".meta"]

    def raw_values(self, path: str) -> dict[str, Array]:
        base = Path(path.split("-?????-of-")[0])
        shards = [base] if base.exists() else sorted(base.parent.glob(f"{base.name}-?????-of-?????"))
        shapes: dict[str, tuple[int, tuple[int, ...]]] = {}
        out: dict[str, Array] = {}
        for shard in shards:
            entries = raw_bundle.table(shard.read_bytes())
            for number, tensor in fields(dict(fields(entries[0][1]))[1]):
                if number == 1:
                    meta = dict(fields(tensor))
                    shapes[meta[1].decode()] = meta[3], shape_of(meta.get(2, b""))
            for _, value in entries[1:]:
                saved = dict(fields(dict(fields(value))[2]))
                name = saved[1].decode()
                dtype, shape = shapes[name]
                whole = out.setdefault(name, np.zeros(shape, numpy_dtype(NAMES[dtype])))
                where = []
                for (_, extent), size in zip(fields(saved.get(2, b"")), shape, strict=True):
                    parts = dict(fields(extent))
                    where.append(slice(parts.get(1, 0), parts.get(1, 0) + parts.get(2, size)))
                whole[tuple(where)] = flat_values(saved.get(3, b""), whole.dtype).reshape(whole[tuple(where)].shape)
        return out


def flat_values(tensor: bytes, dtype: np.dtype) -> Array:  # type: ignore[type-arg]
    content = [(number, value) for number, value in fields(tensor) if number not in (1, 2, 3)]
    if dtype.kind == "O":
        out = np.empty(len(content), object)
        out[:] = [value for _, value in content]
        return out
    if not content:
        return np.empty(0, dtype)
    ((number, packed),) = content
    if number in PACKED:
        return np.frombuffer(packed, PACKED[number]).view(dtype)
    values, at = [], 0
    while at < len(packed):
        value, at = raw_bundle.varint(packed, at)
        values.append(value - (1 << 64) if value >> 63 else value)
    return np.array(values, np.uint16).view(dtype) if number == 13 else np.array(values).astype(dtype)


class TestSingleFile(V1Contract):
    sample = "v1"


class TestShards(V1Contract):
    sample = "v1_shards"


@pytest.mark.parametrize("form", ["", "-00000-of-00002", "-00001-of-00002", "-?????-of-00002"])
def test_any_name_of_a_sharded_checkpoint(form: str) -> None:
    checkpoint = open_checkpoint(f"{SAMPLES / 'v1_shards' / 'sample'}{form}")
    assert checkpoint.path.endswith("sample-?????-of-00002")
    assert checkpoint.producer == "TensorFlow 1.15.5"


def test_missing_shard(tmp_path: Path) -> None:
    copy_into(tmp_path, *(SAMPLES / "v1_shards").glob("sample*"))
    (tmp_path / "sample-00001-of-00002").unlink()
    checkpoint = open_checkpoint(tmp_path / "sample-00000-of-00002")
    assert [damage.kind for damage in checkpoint.damages] == ["missing-shard"]
    assert checkpoint.variables
    with pytest.raises(RepairRefused, match="damaged"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "out", Changes())


def test_lfs_pointer_under_the_name_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n")
    with pytest.raises(UnreadableCheckpoint, match="git lfs pull") as caught:
        open_checkpoint(tmp_path / "model.ckpt")
    assert caught.value.damages[0].kind == "not-a-checkpoint"
