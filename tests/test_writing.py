"""What is written is read back and compared before it is put in place; nothing here needs TensorFlow."""

from __future__ import annotations

import errno
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Array, Checkpoint, Damage, Variable
from ckpt_doctor.errors import BadRequest, VerificationFailed
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.staging import Staged
from ckpt_doctor.repair import writing
from tests.formats.contract import altered, copy_into, everything

SAMPLES = Path(__file__).parents[1] / "fixtures" / "formats"
# Sample and where a copy of it goes.
FORMATS = {
    "bundle": ("bundle_dtypes/sample.*", "sample", "out"),
    "sliced bundle": ("bundle_shards/sample.*", "sample", "out"),
    "object-based bundle": ("bundle_module/sample.*", "sample", "out"),
    "v1": ("v1/sample*", "sample", "out"),
    "v1 shards": ("v1_shards/sample*", "sample", "out"),
    "saved model": ("saved_model_tf2/sample", "sample", "out"),
    "keras hdf5": ("keras/keras22_whole.h5", "keras22_whole.h5", "out.h5"),
    "keras archive": ("keras/keras3.keras", "keras3.keras", "out.keras"),
    "keras weights": ("keras/keras3.weights.h5", "keras3.weights.h5", "out.weights.h5"),
    "keras shards": ("keras/keras3_sharded*weights.*[h5on]", "keras3_sharded.weights.json", "out.weights.json"),
}


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the system's folder for temporary files in a place that can be looked at."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sample(folder: Path, kind: str) -> tuple[Checkpoint, str]:
    """Put a sample into a folder; return it, and where a copy of it goes."""
    pattern, name, output = FORMATS[kind]
    (folder / "in").mkdir(parents=True)
    copy_into(folder / "in", *(path for path in SAMPLES.glob(pattern) if "expected" not in path.name))
    return open_checkpoint(folder / "in" / name), str(folder / output)


def numeric(checkpoint: Checkpoint) -> list[Variable]:
    found = [variable for variable in checkpoint.variables if variable.dtype != "string" and variable.nbytes]
    assert len(found) > 1
    return found


def one_change(checkpoint: Checkpoint) -> Changes:
    first = numeric(checkpoint)[0]
    return Changes({first.name: altered(first.read())})


@pytest.mark.parametrize("where", ["copy", "in place", "dry run", "dry run of a copy"])
def test_what_is_ready_is_what_was_planned(tmp_path: Path, temporary_files: Path, kind: str, where: str) -> None:
    source, output = sample(tmp_path, kind)
    changes = one_change(source)
    (name, value), *_ = changes.values.items()
    before = everything(tmp_path)
    target = output if where in ("copy", "dry run of a copy") else None
    dry_run = where.startswith("dry run")
    with writing.staged(source, changes, target, dry_run=dry_run) as ready:
        assert np.array_equal(ready.checkpoint.variable(name).read(), value)
        assert ready.unchanged == len(source.variables) - 1
        assert not list(format_of(ready.checkpoint).verify(ready.checkpoint))
        if dry_run:
            assert open_checkpoint(source.path).variable(name).read().tobytes() != value.tobytes()
        else:
            written = ready.commit()
    if dry_run:
        assert everything(tmp_path) == before
        return
    assert not list(temporary_files.iterdir())
    assert written.path == (target or source.path)
    assert bool(written.backups) == (where == "in place")
    assert all(Path(file).is_file() for file in (*written.files, *written.backups))
    opened = open_checkpoint(written.path)
    assert np.array_equal(opened.variable(name).read(), value)
    assert (opened.path, opened.files) == (ready.checkpoint.path, ready.checkpoint.files)


def spoilt(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, values: dict[str, Array]) -> None:
    """Let the format write other values than it is told to."""
    form = type(format_of(checkpoint))
    real = form.stage

    def stage(self: object, source: Checkpoint, target: Path | None, changes: Changes, **options: bool) -> Staged:
        return real(self, source, target, Changes({**changes.values, **values}), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(form, "stage", stage)


@pytest.mark.parametrize("where", ["copy", "overwrite", "in place", "in place, every byte"])
@pytest.mark.parametrize("which", ["planned", "other"])
def test_a_value_that_is_not_what_it_should_be_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str, which: str
) -> None:
    """The planned variable, or one that nobody wanted to change."""
    source, output = sample(tmp_path, kind)
    changes = one_change(source)
    wrong = numeric(source)[0 if which == "planned" else -1]
    target = output if where in ("copy", "overwrite") else None
    if where == "overwrite":
        format_of(source).rewrite(source, Path(output), Changes())
    spoilt(monkeypatch, source, {wrong.name: wrong.read() if which == "planned" else altered(wrong.read())})
    before = everything(tmp_path)
    options = {"overwrite": where == "overwrite", "full_verify": where == "in place, every byte"}
    with (
        pytest.raises(VerificationFailed) as failure,
        writing.staged(source, changes, target, **options),
    ):
        pytest.fail("the comparison comes first")
    assert str(failure.value) == (
        f"{target or source.path}: {wrong.name} does not hold the planned values; nothing was changed"
    )
    assert everything(tmp_path) == before


@pytest.mark.parametrize("full_verify", [False, True])
@pytest.mark.parametrize("what", ["lost", "made up"])
def test_a_variable_that_is_lost_or_made_up_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, full_verify: bool
) -> None:
    source, output = sample(tmp_path, "bundle")
    real = Staged.open

    def opened(self: Staged) -> Checkpoint:
        checkpoint = real(self)
        variables = checkpoint.variables
        more = (*variables, replace(variables[-1], name="more"))
        return replace(checkpoint, variables=variables[:-1] if what == "lost" else more)

    monkeypatch.setattr(Staged, "open", opened)
    name = source.variables[-1].name if what == "lost" else "more"
    with (
        pytest.raises(VerificationFailed, match=f": {name} does not hold"),
        writing.staged(source, one_change(source), output, full_verify=full_verify),
    ):
        pass


def test_what_cannot_be_read_back_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = sample(tmp_path, "bundle")
    before = everything(tmp_path)
    monkeypatch.setattr("ckpt_doctor.formats._bundle_writer._index", lambda *_: b"no index")
    words = r"cannot be read \(.*/out\.index: .*\); nothing was changed$"
    with (
        pytest.raises(VerificationFailed, match=words) as failure,
        writing.staged(source, one_change(source), output),
    ):
        pass
    assert ".tmp" not in str(failure.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("full_verify", [False, True])
def test_full_verify_looks_for_damage_before_anything_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, full_verify: bool
) -> None:
    source, _ = sample(tmp_path, kind)
    damage = Damage("checksum-mismatch", "here", "stored bytes fail their check")
    monkeypatch.setattr(type(format_of(source)), "verify", lambda *_: iter([damage]))
    before = everything(tmp_path)
    if full_verify:
        with (
            pytest.raises(VerificationFailed, match=": here does not hold"),
            writing.staged(source, one_change(source), None, full_verify=True),
        ):
            pass
        assert everything(tmp_path) == before
    else:
        with writing.staged(source, one_change(source), None):
            pass


def test_damage_that_opening_finds_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = sample(tmp_path, "bundle")
    real = Staged.open
    damage = Damage("truncated", "there", "is too short")
    monkeypatch.setattr(Staged, "open", lambda self: replace(real(self), damages=(damage,)))
    with (
        pytest.raises(VerificationFailed, match=": there does not hold"),
        writing.staged(source, one_change(source), output),
    ):
        pass


@pytest.mark.parametrize("where", ["copy", "in place", "in place, every byte"])
def test_every_variable_is_read_once_on_each_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    """And where a file is only added to, the values that nobody changed are not read at all."""
    source, output = sample(tmp_path, kind)
    changes = one_change(source)
    (changed,) = changes.values
    reads: Counter[str] = Counter()
    real = Variable.read

    def read(self: Variable) -> Array:
        reads[self.name] += 1
        return real(self)

    monkeypatch.setattr(Variable, "read", read)
    full_verify = where == "in place, every byte"
    with writing.staged(source, changes, output if where == "copy" else None, full_verify=full_verify):
        pass
    only_added = where == "in place" and ("bundle" in kind or kind == "saved model")
    bookkeeping = {variable.name for variable in source.bookkeeping}
    others = {name: count for name, count in reads.items() if name != changed and name not in bookkeeping}
    assert reads[changed] == 1
    assert set(others.values()) == (set() if only_added else {2})
    assert only_added or len(others) == len(source.variables) - 1


def test_a_dry_run_needs_room_and_says_so(
    tmp_path: Path, temporary_files: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source, output = sample(tmp_path, kind)
    before = everything(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in (
        "shutil.copyfile",
        "shutil.copyfileobj",
        "pathlib.Path.write_bytes",
        "ckpt_doctor.formats._table.write",
    ):
        monkeypatch.setattr(name, full)
    where = rf"{temporary_files}/ckpt-doctor-\w+/\S+"
    advice = "; a dry run writes a copy to the temporary folder; set TMPDIR to use another folder"
    with (
        pytest.raises(BadRequest, match=rf"^{where}: cannot be written: the disk is full{advice}$"),
        writing.staged(source, one_change(source), None, dry_run=True),
    ):
        pass
    # With an output it is where a real run would write that there is no room.
    with (
        pytest.raises(BadRequest, match=r"^\S+: cannot be written: the disk is full$"),
        writing.staged(source, one_change(source), output, dry_run=True),
    ):
        pass
    assert everything(tmp_path) == before


def test_a_dry_run_refuses_what_a_real_run_would(tmp_path: Path, kind: str) -> None:
    source, output = sample(tmp_path, kind)
    format_of(source).rewrite(source, Path(output), Changes())
    before = everything(tmp_path)
    with (
        pytest.raises(BadRequest, match="exists; pass another name or --overwrite"),
        writing.staged(source, one_change(source), output, dry_run=True),
    ):
        pass
    with writing.staged(source, one_change(source), output, dry_run=True, overwrite=True) as ready:
        assert ready.checkpoint.format == source.format
    assert everything(tmp_path) == before


def test_an_error_in_the_middle_takes_everything_back_and_keeps_its_name(tmp_path: Path, kind: str) -> None:
    """Also one that looks like one of ours: a full disk while the proof runs."""
    source, output = sample(tmp_path, kind)
    before = everything(tmp_path)
    for target in (output, None):
        with pytest.raises(OSError, match="activations") as failure, writing.staged(source, one_change(source), target):
            raise OSError(errno.ENOSPC, "activations")
        assert failure.value.errno == errno.ENOSPC
        assert everything(tmp_path) == before


def test_what_happens_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, output = sample(tmp_path, "bundle")
    with caplog.at_level(logging.DEBUG, "ckpt_doctor"):
        with writing.staged(source, one_change(source), output):
            pass
        with writing.staged(source, one_change(source), None) as ready:
            ready.commit()
    said = [record.getMessage() for record in caplog.records]
    for expected in (
        f"staged {output}: ",
        f"{output}: what was written is what was planned",
        f"undone: {output}.data-00000-of-00001",
        "appended ",
        f"committed: {source.path}.index",
    ):
        assert any(message.startswith(expected) for message in said), expected


def test_a_commit_is_done_once(tmp_path: Path) -> None:
    source, output = sample(tmp_path, "bundle")
    with writing.staged(source, one_change(source), output) as ready:
        ready.commit()
        with pytest.raises(RuntimeError, match="committed or dropped already"):
            ready.commit()
    assert open_checkpoint(output).variables


def test_relative_names_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names stay as they were given."""
    sample(tmp_path, "saved model")
    monkeypatch.chdir(tmp_path / "in" / "sample")
    source = open_checkpoint(".")
    with writing.staged(source, one_change(source), None) as ready:
        assert (ready.checkpoint.path, ready.checkpoint.files) == (source.path, source.files)
        assert Path(ready.checkpoint.place, "saved_model.pb").is_file()
        ready.commit()
    shutil.rmtree(tmp_path / "in")
    sample(tmp_path, "bundle")
    monkeypatch.chdir(tmp_path / "in")
    source = open_checkpoint("sample")
    for output in ("out", "./out2", "out3.index"):
        with writing.staged(source, one_change(source), output) as ready:
            ready.commit()
        opened = open_checkpoint(Path(output))
        assert (ready.checkpoint.path, ready.checkpoint.files) == (
            str(Path(output)).removesuffix(".index"),
            opened.files,
        )
