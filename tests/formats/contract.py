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

Expected = dict[str, tuple[str, Array]]


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

    @pytest.mark.parametrize("call", ["fsync", "link", "replace"])
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_failure_in_the_middle_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
    ) -> None:
        checkpoint, target = self._open(tmp_path), self._target(tmp_path)
        before = snapshot(tmp_path)
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        with monkeypatch.context() as patch:
            failed = fail(patch, call, number)
            try:
                format_of(checkpoint).rewrite(checkpoint, target, changes)
            except BadRequest:
                assert failed
                assert snapshot(tmp_path) == before
            else:  # The call is not made so often, or there is another way (a rename for a link).
                assert not failed or call == "link"

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_failure_in_place_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
    ) -> None:
        checkpoint = self._open(tmp_path)
        before = snapshot(tmp_path)
        name = self._some_names()[0]
        changes = Changes({name: altered(self.expected()[name][1])})
        with monkeypatch.context() as patch:
            failed = fail(patch, call, number)
            try:
                format_of(checkpoint).rewrite_in_place(checkpoint, changes)
            except BadRequest:
                assert failed
                assert snapshot(tmp_path) == before
            else:
                assert not failed

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


def fail(patch: pytest.MonkeyPatch, call: str, number: int) -> list[int]:
    """Let the `number`th call of `os.<call>` fail as on a full disk; what is returned is filled when it does."""
    failed: list[int] = []
    calls = [0]
    real = getattr(os, call)

    def limited(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number + 1:
            failed.append(number)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    patch.setattr(os, call, limited)
    return failed
