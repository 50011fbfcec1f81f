"""What is written in the trial: each format, as a copy, over an older copy, and in place with and without backup."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats._file_steps import own_kind
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.settling import settle_around
from ckpt_doctor.repair import writing
from tests.faults.interposing import contents, copied
from tests.formats.contract import altered
from tests.test_writing import FORMATS, numeric, sample

MODES = ("copy", "overwrite", "in place", "in place, no backup")
# What one rename puts in place: at no instant is there anything but the old checkpoint or the new one.
ONE_STEP = frozenset({"bundle", "sliced bundle", "object-based bundle", "v1", "saved model"}) | {
    "keras hdf5",
    "keras archive",
    "keras weights",
}


@dataclass(frozen=True)
class Case:
    """One format written in one way.

    Attributes:
        kind: The format, of `FORMATS`.
        mode: One of `MODES`.
    """

    kind: str
    mode: str

    @property
    def in_place(self) -> bool:
        return self.mode.startswith("in place")

    def target(self, folder: Path) -> Path:
        """Return the path by which what is written is opened."""
        name, output = FORMATS[self.kind][1:]
        return folder / "in" / name if self.in_place else folder / output

    def prepare(self, folder: Path) -> None:
        """Put into a folder what is there before."""
        checkpoint, output = sample(folder, self.kind)
        if self.mode == "overwrite":
            second = numeric(checkpoint)[1]
            older = Changes({second.name: altered(second.read())})
            format_of(checkpoint).rewrite(checkpoint, Path(output), older)

    def run(self, folder: Path) -> None:
        """Write."""
        source = open_checkpoint(folder / "in" / FORMATS[self.kind][1])
        first = numeric(source)[0]
        value = np.asarray(altered(first.read()))
        output = None if self.in_place else str(self.target(folder))
        with writing.staged(
            source,
            Changes({first.name: value}),
            output,
            overwrite=self.mode == "overwrite",
            backup=self.mode != "in place, no backup",
        ) as ready:
            ready.commit()

    def settle(self, folder: Path) -> None:
        """Do what the next run of any command does first."""
        for path in (folder / "in" / FORMATS[self.kind][1], self.target(folder)):
            settle_around(path)


def reads_as(path: Path, values: dict[str, bytes]) -> bool:
    """Return whether a whole checkpoint with these values is at a path."""
    return is_whole(path) and values_of(open_checkpoint(path)) == values


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is at a path of which nothing is damaged."""
    try:
        checkpoint = open_checkpoint(path)
        return not [*checkpoint.damages, *format_of(checkpoint).verify(checkpoint)]
    except CkptDoctorError:
        return False


def values_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the bytes of every variable."""
    return {variable.name: variable.read().tobytes() for variable in checkpoint.variables if variable.dtype != "string"}


@dataclass(frozen=True)
class Bench:
    """A case with what is there before it, and what is there when all goes well.

    Attributes:
        case: The case.
        folder: Holds `template`, which is what is there before.
        old: The files before.
        new: The files after.
        old_values: Values of the checkpoint at the target before; None where there is none.
        new_values: The same after.
    """

    case: Case
    folder: Path
    old: dict[str, bytes]
    new: dict[str, bytes]
    old_values: dict[str, bytes] | None
    new_values: dict[str, bytes]

    @classmethod
    def make(cls, case: Case, folder: Path) -> Bench:
        """Prepare a case."""
        template = folder / "template"
        template.mkdir(parents=True)
        case.prepare(template)
        target = case.target(template)
        old_values = None if case.mode == "copy" else values_of(open_checkpoint(target))
        done = cls._copied(template, folder / "done")
        case.run(done)
        new_values = values_of(open_checkpoint(case.target(done)))
        assert new_values != old_values
        return cls(case, folder, contents(template), contents(done), old_values, new_values)

    def fresh(self) -> Path:
        """Return a new folder with what is there before; temporary files go beside it."""
        place = self.folder / "run"
        shutil.rmtree(place, ignore_errors=True)
        (place / "tmp").mkdir(parents=True)
        tempfile.tempdir = str(place / "tmp")
        return self._copied(self.folder / "template", place / "work")

    def broken(self, work: Path) -> str | None:
        """Return what is wrong in a folder in which nothing is left to be done; None where all is well."""
        hidden = self.hidden(work)
        if hidden is not None:
            return hidden
        found = contents(work)
        backups = {name: found.pop(name) for name in list(found) if name.endswith(".bak")}
        if found == {name: data for name, data in self.new.items() if not name.endswith(".bak")}:
            missing = {name for name in self.new if name.endswith(".bak")} - backups.keys()
            return f"no backup: {sorted(missing)[0]}" if missing else self._wrong_backup(backups)
        if found == self.old:
            return self._wrong_backup(backups)
        differing = sorted(name for name in {*found, *self.old} if found.get(name) != self.old.get(name))
        return f"neither old nor new: {differing[:3]}"

    def hidden(self, work: Path) -> str | None:
        """Return what is left over; None where nothing is."""
        names = sorted(str(path.relative_to(work)) for path in work.rglob("*") if own_kind(path.name) is not None)
        if names:
            return f"left over: {names[0]}"
        return "left over in the folder for temporary files" if any((work.parent / "tmp").iterdir()) else None

    def unchanged(self, work: Path) -> bool:
        """Return whether nothing at all is different from before."""
        return contents(work) == self.old

    def half_way(self, work: Path) -> str | None:
        """Return what a reader finds wrong before the next run has settled anything."""
        for name, data in self.old.items():
            if name.startswith("in/") and not self.case.in_place and (work / name).read_bytes() != data:
                return f"the source is changed: {name}"
        if (
            self.case.in_place
            and self.case.kind in ONE_STEP
            and self._visible(contents(work))
            not in (
                self._visible(self.old),
                self._visible(self.new),
            )
        ):
            # A bundle with bytes behind its end.
            target = self.case.target(work)
            if not any(values and reads_as(target, values) for values in (self.old_values, self.new_values)):
                return "neither the old nor the new checkpoint can be read"
        return None

    @staticmethod
    def _visible(files: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: data
            for name, data in files.items()
            if not name.endswith(".bak") and own_kind(Path(name).name) is None
        }

    def _wrong_backup(self, backups: dict[str, bytes]) -> str | None:
        wrong = (name for name, data in backups.items() if self.old.get(name.removesuffix(".bak")) != data)
        return next((f"the backup is not what was there: {name}" for name in wrong), None)

    @staticmethod
    def _copied(source: Path, target: Path) -> Path:
        return copied(source, target)
