"""Keras files that are damaged, foreign, or made to harm: a message, never more."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_doctor.checkpoint import Damage, Variable
from ckpt_doctor.errors import UnreadableCheckpoint
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._hdf5_guard import check_heap
from ckpt_doctor.formats._hdf5_superblock import read_superblock
from tests.formats.keras_samples import NAMES, SAMPLES

HDF5 = (SAMPLES / "keras22_weights.h5").read_bytes()
ARCHIVE = (SAMPLES / "keras3.keras").read_bytes()


def refusal(path: Path) -> Damage:
    """Return the one damage for which a file cannot be opened."""
    with pytest.raises(UnreadableCheckpoint) as raised:
        open_checkpoint(path)
    (damage,) = raised.value.damages
    return damage


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        (
            "m.h5",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "not-a-checkpoint",
            "is a git-LFS pointer; fetch the real file with `git lfs pull`; expected an HDF5 file",
        ),
        (
            "m.keras",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "not-a-checkpoint",
            "is a git-LFS pointer; fetch the real file with `git lfs pull`; a Keras archive (zip) is expected",
        ),
        (
            "m.weights.h5",
            b"<!DOCTYPE html><html><body>404</body></html>",
            "not-a-checkpoint",
            "is an HTML page; the download failed; expected an HDF5 file",
        ),
        (
            "m.weights.json",
            b"<!DOCTYPE html><html><body>404</body></html>",
            "not-a-checkpoint",
            "is an HTML page; the download failed; expected the index of sharded weights",
        ),
        ("m.h5", b"", "not-a-checkpoint", "the file is empty; expected an HDF5 file"),
        ("m.keras", b"", "not-a-checkpoint", "the file is empty; a Keras archive (zip) is expected"),
        (
            "m.h5",
            HDF5.replace(b"\r\n", b"\n"),
            "not-a-checkpoint",
            "starts with 89 48 44 46 0A 1A 0A 00: an HDF5 file whose line ends a text-mode copy has changed, which "
            "cannot be undone; copy it again as binary (git: `*.h5 binary` in .gitattributes)",
        ),
        ("m.h5", HDF5[:-1], "truncated", f"{len(HDF5) - 1} bytes, the superblock declares {len(HDF5)}"),
        (
            "m.keras",
            ARCHIVE[:-1],
            "truncated",
            f"{len(ARCHIVE) - 1} bytes, but the zip central directory is missing",
        ),
        (
            "m.h5",
            HDF5[:8] + b"\xff" * 512,
            "not-a-checkpoint",
            "the HDF5 signature has no superblock after it: superblock version 255; 0 to 3 are known",
        ),
    ],
)
def test_messages(tmp_path: Path, name: str, content: bytes, kind: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    damage = refusal(path)
    assert (damage.kind, damage.message) == (kind, message)
    assert damage.where == str(path)


def weights_file(path: Path, fill: Any) -> Path:
    """Write a Keras 2 weights file with one good weight, and what `fill` adds to its layer group."""
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["layer_names"] = [b"layer"]
        file.attrs["keras_version"] = b"2.2.4"
        group = file.create_group("layer")
        group.attrs["weight_names"] = [b"good:0", b"bad:0"]
        group["good:0"] = np.arange(3, dtype=np.float32)
        fill(group)
    return path


def only_damage(path: Path) -> Damage:
    """Return the one damage of a file whose good weight is still read."""
    checkpoint = open_checkpoint(path)
    assert [variable.name for variable in checkpoint.variables] == ["layer/good:0"]
    assert checkpoint.variables[0].read().tolist() == [0, 1, 2]
    (damage,) = checkpoint.damages
    assert list(format_of(checkpoint).verify(checkpoint)) == [damage]
    return damage


def virtual(group: Any) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", shape=(3,))
    group.create_virtual_dataset("bad:0", layout)


def external(group: Any) -> None:
    group.create_dataset("bad:0", (3,), "f4", external=[("/etc/passwd", 0, 12)])


def bomb(group: Any) -> None:
    group.create_dataset("bad:0", (1 << 20, 1 << 16), "f4", chunks=(1024, 1024), compression="gzip")


def plugin(group: Any) -> None:
    group.create_dataset("bad:0", (64,), "i4", chunks=(64,), scaleoffset=0)


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda group: group.__setitem__("bad:0", h5py.ExternalLink("other.h5", "/x")), "a link into another file"),
        (lambda group: group.__setitem__("bad:0", h5py.SoftLink("/layer/good:0")), "a symbolic link to"),
        (lambda group: group.__setitem__("bad:0", group), "a second link to the group 'layer'; not followed"),
        (virtual, "a virtual dataset"),
        (external, "its values are in another file, '/etc/passwd'"),
        (bomb, "shape (1048576, 65536) declares 274877906944 bytes, 0 are stored; not read"),
        (plugin, "filter 6 is not read; `h5repack -f GZIP=1` converts it"),
    ],
)
def test_what_leads_astray_is_refused(tmp_path: Path, fill: Any, message: str) -> None:
    damage = only_damage(weights_file(tmp_path / "m.h5", fill))
    assert message in damage.message
    assert damage.variables == ("layer/bad:0",)


def test_a_type_that_no_tensor_has_is_kept_apart(tmp_path: Path) -> None:
    path = weights_file(
        tmp_path / "m.h5", lambda group: group.create_dataset("bad:0", (2,), [("a", "f4"), ("b", "i4")])
    )
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.attributes["unread"]) == ["layer/bad:0"]
    assert not checkpoint.damages


def test_strings_are_read_as_bytes(tmp_path: Path) -> None:
    def fill(group: Any) -> None:
        group["bad:0"] = np.array([b"ab", b"c"])
        group.create_dataset("worse:0", data=["é", ""], dtype=h5py.string_dtype())

    checkpoint = open_checkpoint(weights_file(tmp_path / "m.h5", fill))
    read = {variable.name: (variable.dtype, variable.read().tolist()) for variable in checkpoint.variables}
    assert read["layer/bad:0"] == ("string", [b"ab", b"c"])
    assert read["layer/worse:0"] == ("string", ["é".encode(), b""])


def test_a_name_that_is_no_utf8_is_a_damage(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "m.h5", lambda group: group.id.links.create_hard(b"b\xffd:0", group.id, b"good:0"))
    damage = open_checkpoint(path).damages[0]
    assert "is not UTF-8" in damage.message
    str(damage).encode()


def test_damage_behind_a_checksum_of_hdf5_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    value = np.arange(1000, dtype=np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=value, chunks=(1000,), fletcher32=True)
    content = bytearray(path.read_bytes())
    content[content.index(value[500:].tobytes())] ^= 1
    path.write_bytes(content)
    checkpoint = open_checkpoint(path)
    (damage,) = format_of(checkpoint).verify(checkpoint)
    assert damage.kind == "checksum-mismatch"
    with pytest.raises(UnreadableCheckpoint):
        checkpoint.variables[0].read()


def heap(*objects: tuple[int, int], cut: int = 0) -> bytes:
    """Return a global heap of objects `(index, size)`, the last of which says more than is there by `cut` bytes."""
    body = b""
    for index, size in objects:
        body += struct.pack("<HH4xQ", index, 1, size) + b"x" * ((size + 7) // 8 * 8)
    body = body[: len(body) - cut]
    return b"GCOL\x01\0\0\0" + struct.pack("<Q", 16 + len(body)) + body


def test_a_heap_that_would_hang_hdf5_is_stopped() -> None:
    check_heap(heap((1, 5), (2, 8)), 8)
    for wrong in (heap((1, 5), (0, 0)), heap((1, 500), cut=100), heap((1, 5), (0, 8))):
        with pytest.raises(Damaged, match="damaged heap of strings"):
            check_heap(wrong, 8)


def test_a_text_whose_sizes_disagree_is_refused(tmp_path: Path) -> None:
    content = bytearray((SAMPLES / "keras12_whole.h5").read_bytes())
    with h5py.File(SAMPLES / "keras12_whole.h5") as file:
        length = len(file.attrs["model_config"])
    # HDF5 would copy `length` bytes into memory for two fewer.
    position = content.index(struct.pack("<I", length), 1)
    content[position] ^= 2
    path = tmp_path / "m.h5"
    path.write_bytes(content)
    assert "damaged text" in refusal(path).message


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"config.json": "{}", "model.weights.npz": "x"}, "an .npz of pickled objects, which is not read"),
        ({"archive/data.pkl": "x"}, "a zip archive of PyTorch's"),
        ({"a.txt": "x"}, "a zip archive without model.weights.h5; it holds a.txt"),
    ],
)
def test_other_archives(tmp_path: Path, members: dict[str, str], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert message in refusal(tmp_path / "m.keras").message


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    assert "declares 314572800 bytes" in refusal(path).message


def test_a_damaged_config_leaves_the_weights_readable(tmp_path: Path) -> None:
    content = bytearray(ARCHIVE)
    content[content.index(b'"class_name"')] ^= 1
    (tmp_path / "m.keras").write_bytes(content)
    checkpoint = open_checkpoint(tmp_path / "m.keras")
    assert [damage.kind for damage in checkpoint.damages] == ["checksum-mismatch"]
    assert checkpoint.descriptions.keras_config is None
    assert checkpoint.variables[0].read().size


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": []}, {"weight_map": {"/a/vars": 3}}, {"weight_map": {"/a/vars": "../x.weights.h5"}}],
)
def test_a_strange_index_is_refused(tmp_path: Path, index: Any) -> None:
    path = tmp_path / "m.weights.json"
    path.write_text(json.dumps(index))
    assert refusal(path).kind == "not-a-checkpoint"


def test_a_file_that_was_never_closed(tmp_path: Path) -> None:
    content = bytearray(HDF5[: len(HDF5) // 2])
    content[20] = 1
    content[40:48] = struct.pack("<Q", 800)
    content[96:400] = bytes(304)
    (tmp_path / "m.h5").write_bytes(content)
    damage = refusal(tmp_path / "m.h5")
    assert damage.kind == "truncated"
    assert "of a file that was never closed" in damage.message


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 512, 4096])
def test_the_superblock_says_where_the_file_ends(tmp_path: Path, libver: str, userblock: int) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file["a/b"] = np.arange(10)
    superblock = read_superblock(io.BytesIO(path.read_bytes()))
    assert superblock is not None
    assert (superblock.offset, superblock.end, superblock.base) == (userblock, path.stat().st_size, userblock)


@pytest.mark.parametrize("name", NAMES)
def test_random_bytes_in_every_sample(tmp_path: Path, name: str) -> None:
    """Several wrong bytes at once, which is what made HDF5 crash; the contract flips single bits."""
    chance = random.Random(name)
    whole = (SAMPLES / name).read_bytes()
    path = tmp_path / name
    for _ in range(10):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(path)
        except UnreadableCheckpoint:
            continue
        damages = list(format_of(checkpoint).verify(checkpoint))
        read = [is_read(variable) for variable in checkpoint.variables]
        assert damages or all(read)


def is_read(variable: Variable) -> bool:
    """Return whether the value of a variable can be read."""
    try:
        variable.read()
    except UnreadableCheckpoint:
        return False
    return True
