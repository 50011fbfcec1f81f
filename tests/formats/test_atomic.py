"""How outputs appear: in which order, what is on the disk by then, and that nothing is lost when it goes wrong."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats._atomic import Outputs
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.settling import settle
from tests.formats.contract import copy_into, everything
from tests.formats.test_tensor_bundle import SAMPLES, make_bundle

DATA, INDEX = "m.data-00000-of-00001", "m.index"


class Recorder:
    """Writes down what is flushed and renamed, by names without their random part, and does it."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.calls: list[str] = []
        self._folder = folder
        fsync, rename, replace, link = os.fsync, os.rename, os.replace, os.link

        def recorded_fsync(descriptor: int) -> None:
            inode = os.fstat(descriptor).st_ino
            self.calls.append(f"flush {next(self._names_of(inode))}")
            fsync(descriptor)

        patch.setattr(os, "fsync", recorded_fsync)
        for name, real in (("rename", rename), ("replace", replace), ("link", link)):

            def recorded(source: Path, target: Path, name: str = name, real: object = real, **options: object) -> None:
                self.calls.append(f"{name} {self._short(source)} to {self._short(target)}")
                real(source, target, **options)  # type: ignore[operator]

            patch.setattr(os, name, recorded)

    def _names_of(self, inode: int) -> Iterator[str]:
        for path in (*sorted(self._folder.rglob("*"), reverse=True), self._folder):
            if path.lstat().st_ino == inode:
                yield "folder" if path == self._folder else self._short(path)

    @staticmethod
    def _short(path: Path) -> str:
        name = re.sub(r"^\.(.*)\.ckpt-doctor-[0-9a-f]+\.(?:new|old)$", r"(\1)", Path(path).name)
        return re.sub(r"^\..*\.ckpt-doctor\.journal$", "journal", name)


@pytest.fixture
def bundle(tmp_path: Path) -> Checkpoint:
    values = {"a": np.arange(4, dtype=np.float32), "b": np.arange(3, dtype=np.float32)}
    return open_checkpoint(make_bundle(tmp_path, values))


NEW = Changes({"a": np.full(4, 7, np.float32)})


def test_what_is_appended_is_on_the_disk_before_the_index_names_it(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, tmp_path)
    format_of(bundle).rewrite_in_place(bundle, NEW)
    assert recorder.calls == [
        "flush journal",
        "flush folder",
        "flush journal",
        f"flush {DATA}",
        "flush journal",
        f"link {INDEX} to {INDEX}.bak",
        f"flush ({INDEX})",
        "flush folder",
        "flush journal",
        f"link {INDEX} to ({INDEX})",
        f"replace ({INDEX}) to {INDEX}",
        "flush folder",
    ]


def test_a_new_checkpoint_is_on_the_disk_before_it_has_its_name_and_the_index_comes_last(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, tmp_path)
    format_of(bundle).rewrite(bundle, tmp_path / "out", NEW)
    assert recorder.calls == [
        "flush journal",
        "flush folder",
        "flush journal",
        "flush journal",
        "flush (out.data-00000-of-00001)",
        "flush (out.index)",
        "flush folder",
        "flush journal",
        "link (out.data-00000-of-00001) to out.data-00000-of-00001",
        "link (out.index) to out.index",
        "flush folder",
    ]


def test_the_old_index_goes_before_its_data_and_the_new_one_comes_after(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a reader could take the old index for the new data, or the new index for the old data."""
    (tmp_path / "out").mkdir()
    for file in (SAMPLES / "bundle_shards").glob("sample.*"):
        (tmp_path / "out" / file.name.replace("sample", "m")).write_bytes(file.read_bytes())
    recorder = Recorder(monkeypatch, tmp_path / "out")
    format_of(bundle).rewrite(bundle, tmp_path / "out" / "m", NEW, overwrite=True)
    shards = [f"m.data-0000{number}-of-00003" for number in range(3)]
    assert recorder.calls == [
        "flush journal",
        "flush folder",
        "flush journal",
        "flush journal",
        f"flush ({DATA})",
        f"flush ({INDEX})",
        "flush folder",
        "flush journal",
        f"rename {INDEX} to ({INDEX})",
        *(f"rename {shard} to ({shard})" for shard in reversed(shards)),
        f"link ({DATA}) to {DATA}",
        f"link ({INDEX}) to {INDEX}",
        "flush folder",
    ]


def test_a_file_takes_the_place_of_another_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).write_bytes((SAMPLES / "keras" / "keras22_whole.h5").read_bytes())
    checkpoint = open_checkpoint(tmp_path / "a.h5")
    recorder = Recorder(monkeypatch, tmp_path)
    format_of(checkpoint).rewrite(checkpoint, tmp_path / "b.h5", Changes(), overwrite=True)
    assert recorder.calls == [
        "flush journal",
        "flush folder",
        "flush journal",
        "flush (b.h5)",
        "flush folder",
        "flush journal",
        "link b.h5 to (b.h5)",
        "replace (b.h5) to b.h5",
        "flush folder",
    ]


@pytest.mark.parametrize("where", [None, "out"])
def test_an_index_of_the_same_size_that_another_program_changed_is_noticed(
    bundle: Checkpoint, tmp_path: Path, where: str | None
) -> None:
    index = tmp_path / INDEX
    size = index.stat().st_size
    make_bundle(tmp_path, {"a": np.arange(4, dtype=np.float32) + 1, "b": np.arange(3, dtype=np.float32) + 1})
    assert index.stat().st_size == size
    before = everything(tmp_path)
    with pytest.raises(BadRequest, match="was changed by another program"):
        format_of(bundle).stage(bundle, None if where is None else tmp_path / where, NEW)
    assert everything(tmp_path) == before


def test_what_another_program_appended_behind_ours_stays(bundle: Checkpoint, tmp_path: Path) -> None:
    """A program that knows no lock: who gives up must not cut off what it has written."""
    data = tmp_path / DATA
    size = data.stat().st_size
    form = format_of(bundle)
    with form.stage(bundle, None, NEW) as ours:
        assert data.stat().st_size == size + 16
        with data.open("ab") as file:
            file.write(b"theirs")
        with pytest.raises(BadRequest, match="was changed by another program"):
            ours.commit()
    assert data.read_bytes().endswith(b"theirs")
    assert data.stat().st_size == size + 16 + 6
    assert {path.name for path in tmp_path.iterdir()} == {DATA, INDEX}


def test_a_data_file_that_grows_while_it_is_appended_to_is_refused(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Outputs.append

    def append(self: Outputs, path: Path, pieces: Sequence[bytes], *, index: Path) -> int:
        with path.open("ab") as file:
            file.write(b"theirs")
        return real(self, path, pieces, index=index)

    monkeypatch.setattr(Outputs, "append", append)
    with pytest.raises(BadRequest, match="another program writes to it"):
        format_of(bundle).stage(bundle, None, NEW)
    assert (tmp_path / DATA).read_bytes().endswith(b"theirs")


def test_what_cannot_be_put_back_is_kept_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that fails for good in the middle of a commit: what was there is kept under another name."""
    (tmp_path / "a").write_bytes(b"old a")
    (tmp_path / "b").write_bytes(b"old b")
    outputs = Outputs(tmp_path / "both", overwrite=True)
    for name in ("a", "b"):
        outputs.stage(tmp_path / name).write_bytes(b"new")

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(source)
        real(source, target)
        for name in ("rename", "replace", "link"):
            monkeypatch.setattr(os, name, broken)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BadRequest, match="the disk reports an error"):
        outputs.commit()
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old a"
    (kept,) = tmp_path.glob("*.old")
    assert kept.read_bytes() == b"old b"
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert str(kept) in record.getMessage()
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old a", "b": b"old b"}


def test_what_appears_between_the_steps_of_a_commit_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there has been put aside, and another program takes its name: both are kept."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"old")
    outputs = Outputs(tmp_path / "both", overwrite=True)
    for name in ("a", "b"):
        outputs.stage(tmp_path / name).write_bytes(b"new")
    real = os.link

    def link(source: Path, target: Path, **options: bool) -> None:
        if not (tmp_path / "b").exists():
            (tmp_path / "b").write_bytes(b"theirs")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(BadRequest, match="exists already"):
        outputs.commit()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "b").read_bytes() == b"theirs"
    (kept,) = tmp_path.glob("*.old")
    assert kept.read_bytes() == b"old"
    (settled,) = settle(tmp_path)
    assert settled.how == "stuck"
    assert kept.read_bytes() == b"old"
    assert (tmp_path / "b").read_bytes() == b"theirs"


def test_overwrite_replaces_nothing_that_was_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was there when the target was checked for the last time."""
    (tmp_path / "a.h5").write_bytes((SAMPLES / "keras" / "keras22_whole.h5").read_bytes())
    checkpoint = open_checkpoint(tmp_path / "a.h5")
    real = os.chmod

    def chmod(path: Path, mode: int, **options: bool) -> None:
        (tmp_path / "b.h5").write_bytes(b"theirs")
        real(path, mode, **options)

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(BadRequest, match="exists already"):
        format_of(checkpoint).rewrite(checkpoint, tmp_path / "b.h5", Changes(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
    assert (tmp_path / "b.h5").read_bytes() == b"theirs"


@pytest.mark.parametrize("when", ["the link fails", "an interrupt comes first"])
def test_a_backup_of_another_program_is_never_removed(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It appears right before ours is made under that name."""
    real = os.link

    def link(source: Path, target: Path, **options: bool) -> None:
        if str(target).endswith(".bak"):
            Path(target).write_bytes(b"theirs")
        if not str(target).endswith((".bak", ".bak1")) or when == "an interrupt comes first":
            raise KeyboardInterrupt
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        format_of(bundle).rewrite_in_place(bundle, NEW)
    after = everything(tmp_path)
    assert after.pop(f"{INDEX}.bak")
    assert after == before


@pytest.mark.parametrize("which", [DATA, INDEX])
def test_files_of_the_older_checkpoint_that_go_away_come_back_when_the_commit_fails(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    (tmp_path / "out").mkdir()
    for file in (SAMPLES / "bundle_shards").glob("sample.*"):
        (tmp_path / "out" / file.name.replace("sample", "m")).write_bytes(file.read_bytes())
    before = everything(tmp_path)
    real = os.link

    def link(source: Path, target: Path, **options: bool) -> None:
        real(source, target, **options)
        if Path(target).name == which:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(KeyboardInterrupt):
        format_of(bundle).rewrite(bundle, tmp_path / "out" / "m", NEW, overwrite=True)
    assert everything(tmp_path) == before


def test_a_graph_is_not_put_in_the_place_of_another_file(tmp_path: Path) -> None:
    """A `.meta` that is not a graph belongs to something else, and would go away without a backup."""
    copy_into(tmp_path, *(SAMPLES / "bundle_module").glob("sample*"))
    (tmp_path / "sample.meta").write_text("fileFormatVersion: 2\nguid: 5a3b\n")
    checkpoint = open_checkpoint(tmp_path / "sample")
    before = everything(tmp_path)
    with pytest.raises(Exception, match=r"sample\.meta: is not a graph"):
        format_of(checkpoint).rewrite_in_place(checkpoint, Changes(meta_graph=b"\x0a\x00"), backup=False)
    assert everything(tmp_path) == before
