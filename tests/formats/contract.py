"""What every checkpoint format must pass.

A test class subclasses `FormatContract`, says how a sample checkpoint comes into a folder and what it holds, and
inherits the suite. `expected` and `raw_values` must not use the package: they are the truth that it is measured
against.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array, Checkpoint, same_values
from ckpt_doctor.errors import BadRequest, RepairRefused, UnreadableCheckpoint, UnsupportedFormat
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.settling import settle_around

Expected = dict[str, tuple[str, Array]]

# Where a checkpoint is written, and how an operation on the way there fails.
FAILURES = (
    ("copy", "disk full"),
    ("overwrite", "disk full"),
    ("overwrite", "interrupt"),
    ("in place", "disk full"),
    ("in place", "interrupt"),
    ("in place without links", "disk full"),
)
# Of a sample that is written by the same code as another one of its format.
FEW_FAILURES = (("overwrite", "interrupt"), ("in place", "disk full"))


class FormatContract:
    """Subclass, and fill in the first part."""

    # The name in reports.
    format_name: str
    # Whether every byte of the sample's values is covered by a checksum: then no wrong value may ever be read.
    has_checksums = False
    # How many bit flips and cuts are tried in each file, and how many of its first bytes are each tried as its end.
    # One sample of a format is damaged this often; others, which run through the same code, less.
    samples = 200
    header = 64
    failures: tuple[tuple[str, str], ...] = FAILURES

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give the sample its own failures."""
        if "how" in metafunc.fixturenames:
            metafunc.parametrize(("way", "how"), self.failures)

    def make(self, folder: Path) -> str:
        """Put the sample checkpoint into an empty folder and return the path that its user would give."""
        raise NotImplementedError

    def expected(self) -> Expected:
        """Return what is in the sample, made by the framework that wrote it: name → TensorFlow's dtype name, value."""
        raise NotImplementedError

    def raw_values(self, path: str) -> dict[str, Array]:
        """Return all variables of a checkpoint that was written by the code under test, without using that code."""
        raise NotImplementedError

    def target(self, folder: Path) -> Path:
        """Return a path for a new checkpoint in a folder."""
        raise NotImplementedError

    def new_variable(self) -> tuple[str, Array] | None:
        """Return a variable that can be added to the sample; None where the format refuses any."""
        return None

    def files(self, path: str) -> list[Path]:
        """Return the files whose every byte the damage tests may change."""
        return [Path(file) for file in open_checkpoint(path).files]

    # -- reading

    def test_reads_what_the_framework_reads(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(self.make(tmp_path))
        assert checkpoint.format == self.format_name
        self.assert_holds(checkpoint, self.expected())
        assert not checkpoint.damages
        assert not list(format_of(checkpoint).verify(checkpoint))

    def test_every_file_is_listed_and_counted(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(self.make(tmp_path))
        assert checkpoint.files
        assert checkpoint.bytes == sum(Path(file).stat().st_size for file in checkpoint.files)

    def test_reading_leaves_everything_as_it_is(self, tmp_path: Path) -> None:
        path = self.make(tmp_path)
        before = snapshot(tmp_path)
        checkpoint = open_checkpoint(path)
        list(format_of(checkpoint).verify(checkpoint))
        values_of(checkpoint)
        assert snapshot(tmp_path) == before

    # -- rewriting

    def test_rewrite_without_changes_is_equal(self, tmp_path: Path) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        before = snapshot(tmp_path / "in")
        written = format_of(checkpoint).rewrite(checkpoint, target, Changes())
        assert all(file.exists() for file in written)
        self._assert_written(target, self.expected())
        assert snapshot(tmp_path / "in") == before

    def test_rewrite_changes_one_and_leaves_the_others(self, tmp_path: Path) -> None:
        for number, name in enumerate(self._some_names()):
            checkpoint, target = self._open(tmp_path / str(number)), self._target(tmp_path / str(number))
            expected = dict(self.expected())
            expected[name] = (expected[name][0], altered(expected[name][1]))
            format_of(checkpoint).rewrite(checkpoint, target, Changes({name: expected[name][1]}))
            self._assert_written(target, expected)

    def test_rewrite_adds_a_variable(self, tmp_path: Path) -> None:
        new = self.new_variable()
        if new is None:
            pytest.skip("this format refuses new variables")
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        format_of(checkpoint).rewrite(checkpoint, target, Changes({new[0]: new[1]}))
        expected = dict(self.expected())
        expected[new[0]] = (new[1].dtype.name, new[1])
        self._assert_written(target, expected)

    def test_rewrite_in_place_changes_one_and_keeps_a_backup(self, tmp_path: Path) -> None:
        for number, name in enumerate(self._some_names()):
            checkpoint = self._open(tmp_path / str(number))
            expected = dict(self.expected())
            expected[name] = (expected[name][0], altered(expected[name][1]))
            backups = format_of(checkpoint).rewrite_in_place(checkpoint, Changes({name: expected[name][1]}))
            assert backups
            assert all(backup.exists() and ".bak" in backup.name for backup in backups)
            self._assert_written(Path(checkpoint.path), expected)

    def test_rewrite_in_place_without_backup_leaves_no_file_behind(self, tmp_path: Path) -> None:
        checkpoint = self._open(tmp_path)
        before = set(snapshot(tmp_path))
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        assert format_of(checkpoint).rewrite_in_place(checkpoint, changes, backup=False) == ()
        assert set(snapshot(tmp_path)) == before

    def test_rewrite_refuses_another_shape_or_type(self, tmp_path: Path) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        name = self._some_names()[0]
        value = self.expected()[name][1]
        for wrong in (np.concatenate([value.reshape(-1), value.reshape(-1)]), value.astype(np.complex128)):
            before = snapshot(tmp_path)
            with pytest.raises(RepairRefused, match=r".+"):
                format_of(checkpoint).rewrite(checkpoint, target, Changes({name: wrong}))
            assert snapshot(tmp_path) == before

    def test_rewrite_keeps_the_mode(self, tmp_path: Path) -> None:
        path = self.make(folder(tmp_path / "in"))
        for file in snapshot(tmp_path / "in"):
            (tmp_path / "in" / file).chmod(0o640)
        checkpoint, target = open_checkpoint(path), self._target(tmp_path)
        written = format_of(checkpoint).rewrite(checkpoint, target, Changes())
        assert {file.stat().st_mode & 0o777 for file in written if file.is_file()} <= {0o640}

    # -- refusals and failures

    def test_existing_target_is_refused(self, tmp_path: Path) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        form = format_of(checkpoint)
        form.rewrite(checkpoint, target, Changes())
        before = snapshot(tmp_path)
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        with pytest.raises(BadRequest, match="exists"):
            form.rewrite(checkpoint, target, changes)
        assert snapshot(tmp_path) == before
        form.rewrite(checkpoint, target, changes, overwrite=True)
        expected = dict(self.expected())
        expected[name] = (expected[name][0], changes.values[name])
        self._assert_written(target, expected)
        assert set(snapshot(tmp_path)) == set(before)

    def test_unwritable_folder_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = self._open(tmp_path)
        form = format_of(checkpoint)
        (tmp_path / "file").write_bytes(b"")
        before = snapshot(tmp_path)
        for parent in ("absent", "file"):
            with pytest.raises(BadRequest, match="cannot be written"):
                form.rewrite(checkpoint, self.target(tmp_path / parent), Changes())
        target = self._target(tmp_path)
        # Root may write anywhere, so the answer of the system is put in its mouth.
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        with pytest.raises(BadRequest, match="cannot be written"):
            form.rewrite(checkpoint, target, Changes())
        assert snapshot(tmp_path) == before

    def test_failure_anywhere_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, way: str
    ) -> None:
        """Every operation fails once: while the files are staged, while they are read, while they are committed."""
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        sample = Path(self.make(folder(tmp_path / "sample"))).relative_to(tmp_path / "sample")
        work = tmp_path / "work"
        checkpoint, done = None, []
        for number in range(200):
            if checkpoint is None:
                shutil.rmtree(work, ignore_errors=True)
                shutil.copytree(tmp_path / "sample", work / "in")
                checkpoint, target = open_checkpoint(work / "in" / sample), self._target(work)
                given = target if way in ("copy", "overwrite") else None
                if way == "overwrite":
                    format_of(checkpoint).rewrite(checkpoint, target, Changes())
                elif way == "in place without links":
                    for file in checkpoint.files:
                        os.link(file, folder(work / "other") / Path(file).name)
                temporary = folder(work / "tmp")
                before = everything(work)
            staged = None
            with monkeypatch.context() as patch:
                patch.setattr("tempfile.tempdir", str(temporary))
                failing = Failing(patch, number, how)
                try:
                    with format_of(checkpoint).stage(checkpoint, given, changes, overwrite=True) as staged:
                        staged.open()
                        staged.commit()
                except (BadRequest, KeyboardInterrupt):
                    assert failing.has_failed
                    if staged is None or not staged.is_committed:
                        assert everything(work) == before
                        continue
            # Where only tidying up failed, the next run does it.
            settle_around(given or work / "in" / sample)
            done.append(everything(work))
            if not failing.has_failed:
                break
            checkpoint = None  # There was another way, such as a rename for a link.
        assert number > 4
        assert all(state == done[-1] for state in done)
        assert not list(temporary.iterdir())
        expected = dict(self.expected()) | {name: (self.expected()[name][0], changes.values[name])}
        self._assert_written(Path(checkpoint.path) if given is None else target, expected)

    # -- staging

    @pytest.mark.parametrize("in_place", [False, True])
    def test_what_is_staged_is_read_under_its_later_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
    ) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        monkeypatch.setattr("tempfile.tempdir", str(folder(tmp_path / "tmp")))
        form = format_of(checkpoint)
        name = self._some_names()[-1]
        changes = Changes({name: altered(self.expected()[name][1])})
        expected = dict(self.expected()) | {name: (self.expected()[name][0], changes.values[name])}
        with form.stage(checkpoint, None if in_place else target, changes) as staged:
            opened = staged.open()
            self.assert_holds(opened, expected)
            assert not [*opened.damages, *form.verify(opened)]
            # Nothing that a reader of the names could see has changed.
            if in_place:
                self.assert_holds(open_checkpoint(checkpoint.path), self.expected())
            else:
                assert not [path for path in target.parent.iterdir() if not path.name.startswith(".")]
            # The staged bytes are a checkpoint by themselves, where `place` says.
            assert opened.place != opened.path
            again = form.read(opened.place)
            self.assert_holds(again, expected)
            assert [opened.place_of(file) for file in opened.files] == list(again.files)
            # A copy of it can be written, too.
            form.rewrite(opened, self.target(folder(tmp_path / "copy")), Changes())
            self._assert_written(self.target(tmp_path / "copy"), expected)
            committed = staged.commit()
        written = open_checkpoint(checkpoint.path if in_place else target)
        self.assert_holds(written, expected)
        assert (opened.path, opened.files, opened.bytes) == (written.path, written.files, written.bytes)
        assert opened.descriptions.meta_graph_path == written.descriptions.meta_graph_path
        assert all(path.is_file() for path in (*committed.files, *committed.backups))
        assert {str(path) for path in committed.files} & set(written.files)
        assert not list((tmp_path / "tmp").iterdir())

    @pytest.mark.parametrize("in_place", [False, True])
    def test_what_is_not_committed_leaves_no_trace(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
    ) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        monkeypatch.setattr("tempfile.tempdir", str(folder(tmp_path / "tmp")))
        before = everything(tmp_path)
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        with format_of(checkpoint).stage(checkpoint, None if in_place else target, changes) as staged:
            staged.open()
        assert everything(tmp_path) == before
        with pytest.raises(RuntimeError, match="dropped already"):
            staged.commit()
        with (
            pytest.raises(ZeroDivisionError),
            format_of(checkpoint).stage(checkpoint, None if in_place else target, changes),
        ):
            raise ZeroDivisionError
        assert everything(tmp_path) == before
        self.assert_holds(open_checkpoint(checkpoint.path), self.expected())

    def test_a_checkpoint_that_changes_while_it_is_staged_is_not_changed_in_place(self, tmp_path: Path) -> None:
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        for number in range(len(self._open(tmp_path / "0").files)):
            checkpoint = self._open(tmp_path / str(number + 1))
            file = Path(checkpoint.files[number])
            with format_of(checkpoint).stage(checkpoint, None, changes) as staged:
                file.write_bytes(file.read_bytes() + b"x")
                before = file.read_bytes()
                with pytest.raises(BadRequest, match=r"changed by another program"):
                    staged.commit()
            assert file.read_bytes() == before

    def test_a_target_that_changes_while_it_is_staged_is_not_replaced(self, tmp_path: Path) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        form = format_of(checkpoint)
        # Where there was nothing, another program, which knows no locks, writes the same.
        form.rewrite(checkpoint, folder(tmp_path / "theirs") / target.name, Changes())
        with form.stage(checkpoint, target, Changes(), overwrite=True) as staged:
            shutil.copytree(tmp_path / "theirs", target.parent, dirs_exist_ok=True)
            before = snapshot(target.parent)
            with pytest.raises(BadRequest, match="start again"):
                staged.commit()
        kept = {path: digest for path, digest in before.items() if "ckpt-doctor" not in path}
        assert snapshot(target.parent) == kept
        # And where there was a checkpoint:
        with form.stage(checkpoint, target, Changes(), overwrite=True) as staged:
            for path in [
                path for path in target.parent.rglob("*") if path.is_file() and "ckpt-doctor" not in str(path)
            ]:
                path.write_bytes(b"three years of work")
            with pytest.raises(BadRequest, match=r"^--output "):
                staged.commit()
        assert {path.read_bytes() for path in target.parent.rglob("*") if path.is_file()} == {b"three years of work"}

    # -- damage

    def test_truncation_is_noticed(self, tmp_path: Path) -> None:
        chance, expected = random.Random(1), self.expected()
        for path, file, size in self._each_file(tmp_path):
            whole = file.read_bytes()
            lengths = {*range(min(size, self.header)), *(chance.randrange(size) for _ in range(self.samples)), size - 1}
            for length in sorted(lengths):
                file.write_bytes(whole[:length])
                self._assert_noticed_or_equal(
                    path, expected, f"{file.name} cut at byte {length} of {size}", values_may_differ=False
                )
            file.write_bytes(whole)

    def test_flipped_bits_are_noticed_or_harmless(self, tmp_path: Path) -> None:
        chance, expected = random.Random(2), self.expected()
        for path, file, size in self._each_file(tmp_path):
            whole = file.read_bytes()
            for _ in range(self.samples):
                position, bit = chance.randrange(size), chance.randrange(8)
                flipped = bytearray(whole)
                flipped[position] ^= 1 << bit
                file.write_bytes(flipped)
                self._assert_noticed_or_equal(
                    path, expected, f"{file.name}, byte {position}, bit {bit}", values_may_differ=not self.has_checksums
                )
            file.write_bytes(whole)

    # -- helpers

    def assert_holds(self, checkpoint: Checkpoint, expected: Expected) -> None:
        """Assert names, types, shapes and values."""
        assert sorted(variable.name for variable in checkpoint.variables) == sorted(expected)
        for variable in checkpoint.variables:
            dtype, value = expected[variable.name]
            assert variable.dtype == dtype, variable.name
            assert variable.shape == value.shape, variable.name
            assert same_values(variable.read(), value), variable.name

    def _open(self, folder_: Path) -> Checkpoint:
        return open_checkpoint(self.make(folder(folder_ / "in")))

    def _target(self, folder_: Path) -> Path:
        return self.target(folder(folder_ / "out"))

    def _some_names(self) -> list[str]:
        """Return the names of a few numeric variables: the first, a middle one, the last."""
        names = [name for name, (_, value) in self.expected().items() if value.dtype != object and value.size]
        return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))

    def _assert_written(self, path: Path, expected: Expected) -> None:
        raw = self.raw_values(str(path))
        assert sorted(raw) == sorted(expected)
        for name, (_, value) in expected.items():
            assert same_values(raw[name], value), name
        checkpoint = open_checkpoint(path)
        self.assert_holds(checkpoint, expected)
        assert not checkpoint.damages
        assert not list(format_of(checkpoint).verify(checkpoint))
        assert not [name for name in snapshot(path.parent) if "ckpt-doctor" in name or "tmp" in name]

    def _each_file(self, tmp_path: Path) -> Iterator[tuple[str, Path, int]]:
        path = self.make(folder(tmp_path / "in"))
        for file in self.files(path):
            size = file.stat().st_size
            if size:
                yield path, file, size

    def _assert_noticed_or_equal(self, path: str, expected: Expected, what: str, *, values_may_differ: bool) -> None:
        try:
            checkpoint = open_checkpoint(path)
            damages = [*checkpoint.damages, *format_of(checkpoint).verify(checkpoint)]
        except (UnreadableCheckpoint, UnsupportedFormat):
            return
        read: dict[str, Any] = {}
        for variable in checkpoint.variables:
            try:
                read[variable.name] = variable.read()
            except UnreadableCheckpoint:  # noqa: PERF203 - each may fail alone
                assert damages, what
        if damages or values_may_differ:
            if self.has_checksums:
                for name, value in read.items():
                    assert name not in expected or same_values(value, expected[name][1]), f"{what}: {name}"
            return
        assert sorted(read) == sorted(expected), what
        for name, (_, value) in expected.items():
            assert same_values(read[name], value), f"{what}: {name}"


def folder(path: Path) -> Path:
    """Make a folder and return it."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def copy_into(folder_: Path, *sources: Path) -> None:
    """Copy files and folders, writable, into a folder."""
    for source in sources:
        target = folder_ / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def snapshot(folder_: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its relative path."""
    return {
        str(file.relative_to(folder_)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder_.rglob("*"))
        if file.is_file()
    }


def values_of(checkpoint: Checkpoint) -> dict[str, Array]:
    """Return every value."""
    return {variable.name: variable.read() for variable in checkpoint.variables}


def altered(value: Array) -> Array:
    """Return an array of the same type and shape with other bytes throughout."""
    data = np.ascontiguousarray(value)
    if data.dtype == bool:
        return ~data
    # The lowest bit of every byte: no number becomes NaN that was none, and none stays what it was.
    return (data.reshape(-1).view(np.uint8) ^ 1).view(data.dtype).reshape(value.shape)


class Failing:
    """Lets the `number`th operation on the file system fail.

    `disk full` is what the operating system says instead of doing it; `interrupt` comes right behind it.
    """

    NAMES = ("fsync", "link", "replace", "rename", "symlink", "mkdir", "chmod")

    def __init__(self, patch: pytest.MonkeyPatch, number: int, how: str) -> None:
        self.calls = 0
        self.has_failed = False
        for name in self.NAMES:
            patch.setattr(os, name, self._failing(getattr(os, name), number, how))

    def _failing(self, real: Any, number: int, how: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            fails = self.calls == number + 1
            self.has_failed |= fails
            if fails and how == "disk full":
                raise OSError(errno.ENOSPC, "No space left on device")
            done = real(*arguments, **options)
            if fails:
                raise KeyboardInterrupt
            return done

        return call


def everything(folder_: Path) -> dict[str, str]:
    """Return what is below a folder: files by content, folders and links by their names."""
    return snapshot(folder_) | {
        str(path.relative_to(folder_)): str(path.readlink()) if path.is_symlink() else "folder"
        for path in folder_.rglob("*")
        if path.is_symlink() or path.is_dir()
    }
