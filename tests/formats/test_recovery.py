"""What a run that was cut off has left is finished or taken back by the next, and nothing else is touched."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor.checkpoint import Checkpoint
from ckpt_doctor.cli import main
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import _moves, format_of, open_checkpoint
from ckpt_doctor.formats._atomic import Outputs
from ckpt_doctor.formats._file_steps import step_in
from ckpt_doctor.formats._journal import Journal
from ckpt_doctor.formats._lock import Lock, lock_of
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.settling import settle
from ckpt_doctor.formats.temporary import TemporaryFolder, _sweep
from tests.formats.contract import everything
from tests.formats.test_tensor_bundle import make_bundle

JOURNAL = ".m.ckpt-doctor.journal"
NEW = Changes({"a": np.full(4, 7, np.float32)})
SCHEMA = {"schema": "ckpt-doctor/journal/1", "process": 1}


@pytest.fixture
def bundle(tmp_path: Path) -> Checkpoint:
    values = {"a": np.arange(4, dtype=np.float32), "b": np.arange(3, dtype=np.float32)}
    return open_checkpoint(make_bundle(tmp_path, values))


def dies(work: Callable[[], object]) -> None:
    """Do something in a process that dies before it is done."""
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        try:
            work()
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def staged_and_left(bundle: Checkpoint) -> None:
    """Die between staging and commit."""

    def work() -> None:
        format_of(bundle).stage(bundle, None, NEW).open()
        os._exit(9)

    dies(work)


def left_in_the_commit(bundle: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die when the commit is written down, before anything has its name."""
    with monkeypatch.context() as patch:
        patch.setattr(_moves, "forward", lambda *_, **__: os._exit(9))
        dies(lambda: format_of(bundle).rewrite_in_place(bundle, NEW))


def test_what_was_not_committed_is_taken_back(bundle: Checkpoint, tmp_path: Path) -> None:
    before = everything(tmp_path)
    staged_and_left(bundle)
    assert everything(tmp_path) != before
    (settled,) = settle(tmp_path)
    assert (settled.how, settled.name) == ("taken-back", str(tmp_path / "m"))
    assert everything(tmp_path) == before
    assert settle(tmp_path) == ()


def test_a_commit_that_was_written_down_is_finished(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_in_the_commit(bundle, monkeypatch)
    assert open_checkpoint(bundle.path).variable("a").read().tolist() == [0, 1, 2, 3]
    (settled,) = settle(tmp_path)
    assert settled.how == "finished"
    assert open_checkpoint(bundle.path).variable("a").read().tolist() == [7, 7, 7, 7]
    assert sorted(everything(tmp_path)) == ["m.data-00000-of-00001", "m.index", "m.index.bak"]


@pytest.mark.parametrize("how", ["in it", "by its name"])
def test_a_commit_that_the_journal_says_is_taken_back_is_not_finished(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Where nothing can be written, only the journal's name can say so."""
    before = everything(tmp_path)
    left_in_the_commit(bundle, monkeypatch)
    journal = tmp_path / JOURNAL
    if how == "in it":
        with journal.open("a") as file:
            file.write('{"do": "undoing"}\n')
    else:
        journal.rename(journal.with_suffix(".undo"))
        with pytest.raises(BadRequest, match="an interrupted run left it incomplete"):
            format_of(bundle).rewrite_in_place(bundle, NEW)
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert everything(tmp_path) == before


@pytest.mark.parametrize("broken", ["names", "content"])
def test_a_commit_that_fails_and_cannot_be_undone_loses_nothing(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The `fsync` of the commit fails, and from then on names cannot be changed, or nothing can be written."""
    before = everything(tmp_path)
    form = format_of(bundle)
    staged = form.stage(bundle, None, NEW)
    staged.open()

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if b'"commit"' not in (tmp_path / JOURNAL).read_bytes():
                return real(descriptor)
            for name in (
                ("rename", "replace", "link", "unlink") if broken == "names" else ("write", "truncate", "fsync")
            ):
                patch.setattr(os, name, fails)
            return fails()

        patch.setattr(os, "fsync", fsync)
        with pytest.raises(BadRequest, match="is incomplete: the next run of ckpt-doctor there completes it or"):
            staged.commit()
    assert values_now(bundle) == [0, 1, 2, 3]
    settle(tmp_path)
    assert everything(tmp_path) == before


def values_now(bundle: Checkpoint) -> list[float]:
    """Return the values of `a`, of a checkpoint of which nothing is damaged."""
    opened = open_checkpoint(bundle.path)
    assert not [*opened.damages, *format_of(opened).verify(opened)]
    return list(opened.variable("a").read().tolist())


def test_a_checkpoint_that_was_saved_again_since_stays(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_in_the_commit(bundle, monkeypatch)
    for path in tmp_path.glob("m.*"):
        path.unlink()
    theirs = {"a": np.full(4, 5, np.float32), "b": np.arange(3, dtype=np.float32)}
    make_bundle(tmp_path, theirs)
    (settled,) = settle(tmp_path)
    assert settled.how == "stuck"
    assert "was changed by another program" in settled.message
    assert open_checkpoint(bundle.path).variable("a").read().tolist() == [5, 5, 5, 5]


def test_bytes_behind_the_end_stay_where_another_program_has_added_to_them(bundle: Checkpoint, tmp_path: Path) -> None:
    data = tmp_path / "m.data-00000-of-00001"
    staged_and_left(bundle)
    with data.open("ab") as file:
        file.write(b"theirs")
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert data.read_bytes().endswith(b"theirs")


@pytest.mark.parametrize("command", ["scan", "scan folder", "ls", "diff", "fix"])
def test_every_command_settles_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    path = make_bundle(models, {"a": np.arange(4, dtype=np.float32)})
    left_in_the_commit(open_checkpoint(path), monkeypatch)
    argv = {
        "scan": ["scan", path],
        "scan folder": ["scan", str(tmp_path)],
        "ls": ["ls", path],
        "diff": ["diff", path, path],
        "fix": ["fix", path, "--output", str(tmp_path / "out")],
    }[command]
    main(argv)
    assert f"{path}: an interrupted run had written it completely; it is now in place" in capsys.readouterr().err
    assert open_checkpoint(path).variable("a").read().tolist() == [7, 7, 7, 7]
    assert not list(models.glob(".*"))


@pytest.mark.parametrize("command", ["scan", "ls", "fix"])
def test_what_cannot_be_settled_is_not_judged(
    bundle: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / JOURNAL).write_text("not a journal\n")
    argv = [command, bundle.path, *(["--output", str(tmp_path / "out")] if command == "fix" else [])]
    assert main(argv) == 2
    text = "".join(capsys.readouterr())
    assert JOURNAL in text
    assert "is not a journal of ckpt-doctor" in text
    assert "Traceback" not in text


def test_what_a_live_process_is_at_work_on_is_left_to_it(bundle: Checkpoint, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with format_of(bundle).stage(bundle, None, NEW):
        during = everything(tmp_path)
        assert settle(tmp_path) == ()
        assert everything(tmp_path) == during
    assert everything(tmp_path) == before


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(bundle: Checkpoint, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "m", overwrite=True)
    with outputs.all_or_nothing():
        outputs.stage(tmp_path / "m.index")
        second = Outputs(tmp_path / "m", overwrite=True, wait=0.0)
        with pytest.raises(BadRequest, match="another ckpt-doctor is writing here"):
            second.stage(tmp_path / "m.index")
        outputs.undo()
    staged_and_left(bundle)
    with Lock([lock_of(tmp_path / "m")]):
        pass
    settle(tmp_path)
    format_of(bundle).rewrite_in_place(bundle, NEW)
    assert open_checkpoint(bundle.path).variable("a").read().tolist() == [7, 7, 7, 7]


def test_another_way_to_the_same_folder_is_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert lock_of(tmp_path / "link" / "m") == lock_of(tmp_path / "real" / "m")


MOVE = {
    "target": "victim",
    "new": None,
    "old": ".victim.ckpt-doctor-0123456789ab.old",
    "new_seen": None,
    "old_seen": None,
}


@pytest.mark.parametrize(
    "record",
    [
        {"do": "new", "path": "../outside"},
        {"do": "new", "path": "victim"},
        {"do": "new", "path": "/etc/passwd"},
        {"do": "new", "path": "link/.x.ckpt-doctor-0123456789ab.new"},
        {"do": "new", "path": ""},
        {"do": "new", "path": ".x.ckpt-doctor-0123456789ab\0.new"},
        {"do": "append", "path": "../outside", "before": 0, "after": 100},
        {"do": "append", "path": "link/outside", "before": 0, "after": 100},
        {"do": "append", "path": "victim", "before": -1, "after": 100},
        {"do": "backup", "path": "../outside", "of": "victim"},
        {"do": "commit", "in_place": True, "moves": [MOVE | {"target": "../outside"}]},
        {"do": "commit", "in_place": True, "moves": [MOVE | {"old": "victim"}]},
        {"do": "commit", "in_place": True, "moves": "victim"},
        {"do": "format the disk"},
        ["new", "victim"],
        {"do": "new"},
        17,
    ],
)
def test_a_journal_of_strangers_touches_nothing(tmp_path: Path, record: object) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "outside").write_text("theirs")
    (tmp_path / "elsewhere" / ".x.ckpt-doctor-0123456789ab.new").write_text("theirs")
    (tmp_path / "outside").write_text("theirs")
    (folder / "victim").write_text("theirs")
    (folder / "link").symlink_to("../elsewhere")
    (folder / JOURNAL).write_text(f"{json.dumps(SCHEMA)}\n{json.dumps(record)}\n")
    before = everything(tmp_path)
    (settled,) = settle(folder)
    assert settled.how == "stuck"
    assert everything(tmp_path) == before


def test_a_view_of_strangers_loses_no_file(tmp_path: Path) -> None:
    view = tmp_path / ".ckpt-doctor-000000000000.tmp"
    view.mkdir()
    (view / "thesis.tex").write_text("three years of work")
    (view / "link").symlink_to("thesis.tex")
    record = {"do": "view", "path": str(view)}
    (tmp_path / JOURNAL).write_text(f"{json.dumps(SCHEMA)}\n{json.dumps(record)}\n")
    settle(tmp_path)
    assert [path.name for path in view.iterdir()] == ["thesis.tex"]


def test_a_view_is_a_folder_of_ours_by_its_name(tmp_path: Path) -> None:
    links = tmp_path / "my-links"
    links.mkdir()
    (links / "link").symlink_to("/elsewhere")
    record = {"do": "view", "path": str(links)}
    (tmp_path / JOURNAL).write_text(f"{json.dumps(SCHEMA)}\n{json.dumps(record)}\n")
    settle(tmp_path)
    assert [path.name for path in links.iterdir()] == ["link"]


@pytest.mark.parametrize(
    ("backup", "original", "is_removed"),
    [
        (b"12345", b"12345", True),
        (b"", b"12345", True),  # What there is of a copy that was begun.
        (b"123", b"12345", False),
        (b"54321", b"12345", False),
        (b"12345", None, False),
        ("link", b"12345", False),
    ],
)
def test_a_backup_goes_only_if_the_original_holds_all_that_is_in_it(
    tmp_path: Path, backup: bytes | str, original: bytes | None, is_removed: bool
) -> None:
    path = tmp_path / "m.index.bak"
    if isinstance(backup, str):
        path.symlink_to("m.index")
    else:
        path.write_bytes(backup)
    if original is not None:
        (tmp_path / "m.index").write_bytes(original)
    record = {"do": "backup", "path": "m.index.bak", "of": "m.index"}
    (tmp_path / JOURNAL).write_text(f"{json.dumps(SCHEMA)}\n{json.dumps(record)}\n")
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert os.path.lexists(path) is not is_removed


def test_a_commit_of_nothing_is_taken_back(tmp_path: Path) -> None:
    new = tmp_path / ".m.ckpt-doctor-0123456789ab.new"
    new.write_bytes(b"staged")
    lines = [SCHEMA, {"do": "new", "path": new.name}, {"do": "commit", "in_place": True, "moves": []}]
    (tmp_path / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert not list(tmp_path.iterdir())


def test_a_commit_whose_staged_file_is_gone_is_taken_back(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(tmp_path)
    left_in_the_commit(bundle, monkeypatch)
    (staged,) = tmp_path.glob(".m.index.ckpt-doctor-*.new")
    staged.unlink()
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert everything(tmp_path) == before


def test_what_was_saved_after_the_commit_stays(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died while it tidied up."""
    with monkeypatch.context() as patch:
        patch.setattr(_moves, "clean", lambda *_: os._exit(9))
        dies(lambda: format_of(bundle).rewrite_in_place(bundle, NEW))
    for path in tmp_path.glob("m.*"):
        path.unlink()
    make_bundle(tmp_path, {"a": np.full(4, 5, np.float32)})
    (settled,) = settle(tmp_path)
    assert settled.how == "finished"
    assert values_now(bundle) == [5, 5, 5, 5]
    assert sorted(everything(tmp_path)) == ["m.data-00000-of-00001", "m.index"]


def test_a_lock_that_nobody_holds_is_removed(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / "m")
    lock.touch()
    assert settle(tmp_path) == ()
    assert not lock.exists()


def test_a_commit_that_another_user_ends_is_waited_for(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_in_the_commit(bundle, monkeypatch)

    def refused(_: Lock) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Lock, "acquire", refused)
    ends = threading.Timer(0.3, (tmp_path / JOURNAL).unlink)
    ends.start()
    try:
        assert settle(tmp_path) == ()
    finally:
        ends.join()


def test_a_file_in_place_is_given_back_in_one_step(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no instant is there no index."""
    before = everything(tmp_path)
    real = _moves.flush_folder

    def fails_behind_the_last(folder: Path) -> None:
        real(folder)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_moves, "flush_folder", fails_behind_the_last)
    monkeypatch.setattr(_moves, "_take_away", lambda *_: pytest.fail("there is no index for a moment"))
    with pytest.raises(BadRequest):
        format_of(bundle).rewrite_in_place(bundle, NEW)
    monkeypatch.undo()
    settle(tmp_path)
    assert everything(tmp_path) == before


def test_that_a_commit_is_undone_is_on_the_disk_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "m")
    flushed: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        flushed.append((tmp_path / JOURNAL).read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    journal.tell_undoing()
    assert any(b"undoing" in content for content in flushed)
    journal.close()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_has_appeared_at_a_name_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On a file system without hard links, where only a look tells."""
    new, target = tmp_path / ".x.new", tmp_path / "x"
    if kind == "file":
        new.write_bytes(b"ours")
        target.write_bytes(b"theirs")
    else:
        new.mkdir()
        target.mkdir()

    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(BadRequest, match="exists already"):
        step_in(new, target)
    assert new.exists()
    assert kind == "folder" or target.read_bytes() == b"theirs"


def test_a_journal_that_is_a_link_is_none(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(f"{json.dumps(SCHEMA)}\n")
    (tmp_path / JOURNAL).symlink_to("real")
    (settled,) = settle(tmp_path)
    assert settled.how == "stuck"
    assert (tmp_path / "real").exists()


def test_a_last_line_that_is_torn_was_not_acted_upon(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text(f'{json.dumps(SCHEMA)}\n{{"do": "commit", "in_pl')
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code", "word"), [("TERM", 143, "terminated"), ("INT", 130, "interrupted")])
def test_a_signal_within_the_commit_waits_for_its_end(
    bundle: Checkpoint, tmp_path: Path, number: str, code: int, word: str
) -> None:
    """And the exit says that the checkpoint was written; so too where the parent has let it ignore Ctrl-C."""
    script = (
        "import os, signal, sys\n"
        "from ckpt_doctor import cli\n"
        "from ckpt_doctor.errors import tell_written\n"
        "from ckpt_doctor.formats import _moves, format_of, open_checkpoint\n"
        "from ckpt_doctor.formats.interface import Changes\n"
        "import numpy as np\n"
        "real = _moves.forward\n"
        "def forward(*arguments, **options):\n"
        f"    os.kill(os.getpid(), signal.SIG{number})\n"
        "    real(*arguments, **options)\n"
        "_moves.forward = forward\n"
        "def run(argv):\n"
        f"    checkpoint = open_checkpoint({bundle.path!r})\n"
        "    staged = format_of(checkpoint).stage(checkpoint, None, Changes({'a': np.full(4, 7, np.float32)}))\n"
        "    try:\n"
        "        staged.commit()\n"
        "    except BaseException as error:\n"
        "        assert staged.is_committed\n"
        "        tell_written(error, checkpoint.path)\n"
        "        raise\n"
        "import ckpt_doctor.cli.group as group\n"
        "group.run = run\n"
        "cli.entry_point()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (result.returncode, result.stderr.strip()) == (code, f"{word}; {bundle.path} is repaired and in place")
    assert open_checkpoint(bundle.path).variable("a").read().tolist() == [7, 7, 7, 7]
    assert not list(tmp_path.glob(".*"))


def test_the_folder_of_a_process_that_was_killed_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work() -> None:
        folder = TemporaryFolder()
        Path(folder.name, "huge").write_bytes(b"\0")
        os._exit(9)

    dies(work)
    (tmp_path / "ckpt-doctor-theirs").mkdir()
    (left,) = (path for path in tmp_path.iterdir() if (path / "huge").exists())
    _sweep.cache_clear()
    with TemporaryFolder() as mine:
        assert not left.exists()
        _sweep.cache_clear()
        with TemporaryFolder():
            assert Path(mine).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-doctor-theirs"]


def test_waiting_for_a_commit_has_an_end(bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_doctor.formats.recovery._WAIT_FOR_A_COMMIT", 0.1)
    left_in_the_commit(bundle, monkeypatch)
    before = everything(tmp_path)
    with Lock([lock_of(tmp_path / "m")]):
        started = time.monotonic()
        assert settle(tmp_path) == ()
        assert time.monotonic() - started < 5
    assert everything(tmp_path).keys() == before.keys() - {".m.ckpt-doctor.lock"}


@pytest.mark.parametrize("state", ["staged", "committing"])
def test_what_may_not_be_written_is_judged_unless_it_is_half_way(
    bundle: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Another user's folder, or a read-only medium."""
    monkeypatch.setattr("ckpt_doctor.formats.recovery._WAIT_FOR_A_COMMIT", 0.1)
    if state == "staged":
        staged_and_left(bundle)
    else:
        left_in_the_commit(bundle, monkeypatch)
    for path in tmp_path.glob(".*.lock"):
        path.unlink()
    before = everything(tmp_path)
    real = os.open

    def refused(path: str, flags: int, *arguments: int, **options: int) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    settled = settle(tmp_path)
    assert [one.how for one in settled] == ([] if state == "staged" else ["stuck"])
    assert everything(tmp_path) == before


def test_a_data_file_that_was_saved_again_since_is_not_cut_off(bundle: Checkpoint, tmp_path: Path) -> None:
    """The same model with the statistics in it is as long as the old file with what a repair had appended."""
    staged_and_left(bundle)
    theirs = {
        "a": np.arange(4, dtype=np.float32),
        "a2": np.arange(4, dtype=np.float32),
        "b": np.arange(3, dtype=np.float32),
    }
    length = (tmp_path / "m.data-00000-of-00001").stat().st_size
    for path in tmp_path.glob("m.*"):
        path.unlink()
    make_bundle(tmp_path, theirs)
    assert (tmp_path / "m.data-00000-of-00001").stat().st_size == length
    (settled,) = settle(tmp_path)
    assert settled.how == "taken-back"
    assert sorted(variable.name for variable in open_checkpoint(bundle.path).variables) == ["a", "a2", "b"]
    assert values_now(bundle) == [0, 1, 2, 3]


def test_a_journal_of_strangers_cuts_off_no_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "victim.index").write_text("theirs")
    append = {"do": "append", "path": "victim", "before": 0, "after": 100}
    guess = {"index": "victim.index", "index_seen": [6, 0, 0]}
    backup = {"do": "backup", "path": "victim", "of": "victim.index"}
    for records in ([append | guess], [backup]):
        (tmp_path / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in (SCHEMA, *records)))
        settle(tmp_path)
        assert (tmp_path / "victim").read_text() == "theirs"
        (tmp_path / JOURNAL).unlink(missing_ok=True)
