"""What a scan looked at and what it passed over: the books balance, and silence does not pass for health."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import jsonschema
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.formats import _storage, discovery
from tests.formats.test_discovery import bundle
from tests.formats.test_tensor_bundle import SAMPLES
from tests.gate.conftest import FIXTURES, copy_bundle

ROOT = FIXTURES.parent
KERAS = FIXTURES / "keras_v3" / "healthy.keras"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def safetensors() -> bytes:
    """Return a file as the README of safetensors describes it: length of the header, JSON, values."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def torch_zip() -> bytes:
    """Return an archive with the members of `torch.save`."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return sink.getvalue()


def tar(path: Path, *names: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one healthy Keras file, which is the working folder."""
    shutil.copy(KERAS, tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def passed(result: ckpt_doctor.AuditResult) -> dict[tuple[str, bool], int]:
    """Return kind and whether it was left unopened → number of files and folders."""
    return {(one.kind, one.unopened): one.files + one.folders for one in result.coverage.passed_over}


def assert_balanced(result: ckpt_doctor.AuditResult) -> None:
    books = result.coverage
    assert books.files == books.judged + books.parts + sum(one.files for one in books.passed_over)
    assert books.judged == len([one for one in result.checkpoints if one.evidence])


FOREIGN = {
    "a.safetensors": (safetensors(), "safetensors", True),
    "renamed.bin": (safetensors(), "safetensors", True),
    "a.pt": (torch_zip(), "pytorch", True),
    "lightning.ckpt": (torch_zip(), "pytorch", True),
    "pytorch_model.bin": (torch_zip(), "pytorch", True),
    "old.pth.tar": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "pytorch", True),
    "a.onnx": (b"\x08\x07\x12\x07pytorch", "onnx", True),
    "a.tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(20), "tflite", True),
    "frozen.pb": (b"\n\x10\n\x01x\x12\x0bPlaceholder", "frozen-graph", True),
    "a.pkl": (pickle.dumps({"w": 1}), "pickle", True),
    "a.joblib": (b"\x80\x04\x95", "pickle", True),
    "a.gguf": (b"GGUF\x03\x00\x00\x00", "other-model", True),
    "group1-shard1of2.bin": (bytes(50), "other-model", True),
    "a.zip": (b"PK\x05\x06" + bytes(18), "archive", True),
    "model.h5.gz": (b"\x1f\x8b\x08" + bytes(20), "archive", True),
    "table.csv.gz": (b"\x1f\x8b\x08" + bytes(20), "other", False),
    "a.png": (PNG, "other", False),
    "lfs.safetensors": (LFS, "pointer", True),
    "weights.bin": (LFS, "pointer", True),
    "gone.h5.dvc": (b"outs:\n- md5: 0123\n  size: 3\n  path: gone.h5\n", "pointer", True),
    "picture.png.dvc": (b"outs:\n- md5: 0123\n  size: 3\n  path: picture.png\n", "pointer", False),
    "model.keras.dvc": (b"outs:\n- md5: 0123\n  size: 3\n  path: model.keras\n", "other", False),
    "unlocked.bin": (b"/annex/objects/SHA256E-s3--0123.bin\n", "pointer", True),
    ".hidden.keras": (KERAS.read_bytes(), "hidden-file", True),
    "._model.keras": (b"\x00\x05\x16\x07\x00\x02\x00\x00" + bytes(60), "hidden-file", False),
    ".gitignore": (b"*.h5\n", "hidden-file", False),
    ".model.h5.ckpt-doctor-0123456789ab.new": (b"x", "left-over", False),
    "graph.meta": (b"x", "other", False),
    "noise": (bytes(range(7, 90)), "other", False),
    "empty": (b"", "other", False),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_named_and_fails_a_strict_scan_if_a_model_may_be_in_it(folder, name, capsys):
    content, kind, unopened = FOREIGN[name]
    (folder / name).write_bytes(content)
    result = ckpt_doctor.scan(".")
    assert passed(result) == {(kind, unopened): 1}
    assert_balanced(result)
    assert main(["scan", "."]) == 0
    assert main(["scan", ".", "--strict"]) == int(unopened)
    err = capsys.readouterr().err
    assert (f"./{name}: not opened" in err) is unopened


def everything(folder: Path) -> None:
    """Fill a folder with one of everything."""
    for name, (content, _, _) in FOREIGN.items():
        (folder / name).write_bytes(content)
    tar(folder / "models.tar.gz", "model.keras")
    copy_bundle(True, folder / "runs" / "sick")
    for number in (1, 2):
        bundle(folder / "runs" / "two", f"m-{number}")
    state = 'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "m-1"\nall_model_checkpoint_paths: "m-2"\n'
    (folder / "runs" / "two" / "checkpoint").write_text(state)
    (folder / "runs" / "two" / "m-2.data-00000-of-00001.tempstate123").write_bytes(b"x")
    (folder / "runs" / "never.data-00000-of-00001").write_bytes(b"x")
    shutil.copytree(SAMPLES / "saved_model_keras3" / "sample", folder / "export")
    (folder / "export" / "assets" / "deep").mkdir(parents=True)
    (folder / "export" / "assets" / "deep" / "words.txt").write_text("a\n")
    shutil.copy(KERAS, folder / "export" / "beside.keras")
    for sample in ("v1", "v1_shards"):
        shutil.copytree(SAMPLES / sample, folder / sample)
    with h5py.File(folder / "data.h5", "w") as file:
        file["images"] = [1.0, 2.0]
    for hidden in (".git", "__pycache__", ".cache"):
        (folder / hidden).mkdir()
        shutil.copy(KERAS, folder / hidden)
    outside = folder.parent / f"{folder.name} outside"
    outside.mkdir()
    shutil.copy(KERAS, outside)
    (folder / "out").symlink_to(outside)
    (folder / "linked.keras").symlink_to(outside / KERAS.name)
    (folder / "again").symlink_to(folder / "runs")
    (folder / "nowhere").symlink_to("gone")
    (folder / "nowhere.h5").symlink_to("gone")
    (folder / "annexed.h5").symlink_to(".git/annex/objects/XX/SHA256E-s3--0.h5/SHA256E-s3--0.h5")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    (folder / "zero.h5").symlink_to("/dev/zero")


def test_the_books_balance_over_a_folder_with_everything_in_it(folder: Path) -> None:
    everything(folder)
    result = ckpt_doctor.scan(".")
    books = result.coverage
    assert_balanced(result)
    # Counted by another way: everything in the tree that is no folder, where the search goes.
    seen, folders = 0, 0
    for _, inner, files in os.walk("."):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        seen += len(files)
        folders += 1
    assert (books.files, books.folders) == (seen, folders)
    found = {one.path.removeprefix("./") for one in result.checkpoints}
    assert found == {
        "export",
        "export/beside.keras",
        "linked.keras",
        "model.keras",
        "runs/never",
        "runs/sick/model.ckpt-400",
        "runs/two/m-2",
        "v1/sample",
        "v1_shards/sample-?????-of-00002",
    }
    assert books.links_out == 1
    expected = {
        ("archive", True): 1,
        ("link-out", True): 1,
        ("older", False): 2,
        ("hidden-folder", False): 2,
        ("code-folder", False): 1,
        ("seen-folder", False): 1,
        ("dangling-link", False): 2,
        ("dangling-link", True): 1,
        ("pointer", True): 1,
        ("special", False): 1,
        ("special", True): 1,
        ("hdf5-data", False): 1,
    }
    for _, kind, unopened in FOREIGN.values():
        expected[kind, unopened] = expected.get((kind, unopened), 0) + 1
    # Samples have a note of how they were made.
    extra = sum(
        1 for sample in ("v1", "v1_shards") for file in (SAMPLES / sample).iterdir() if "sample" not in file.name
    )
    expected["other", False] += extra
    assert passed(result) == expected


def test_every_report_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (content, _, _) in FOREIGN.items():
        (folder / name).write_bytes(content)
    main(["scan", "."])
    words = " ".join(capsys.readouterr().out.split())
    assert "passed over: 2 safetensors files, 4 PyTorch files, 1 ONNX model" in words
    assert "(-v lists them)" in words
    main(["-v", "scan", "."])
    words = " ".join(capsys.readouterr().out.split())
    assert "passed over: ./a.safetensors, ./renamed.bin: ckpt-doctor does not read this format" in words
    main(["scan", ".", "--format", "json"])
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((Path(ckpt_doctor.__file__).parent / "schemas" / "scan-1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    (one,) = [one for one in document["coverage"]["passed_over"] if one["kind"] == "onnx"]
    assert (one["paths"], one["files"], one["unopened"]) == (["./a.onnx"], 1, True)
    for form, text in {
        "sarif": "not opened: ONNX model",
        "junit": "opened: ./a.onnx",
        "github": "::warning title=not opened,file=a.onnx::1 ONNX model",
        "gitlab": "ONNX model not opened",
        "markdown": "- 1 ONNX model: `./a.onnx`",
        "html": "1 ONNX model: ckpt-doctor does not read this format; a model may be in it: ./a.onnx",
    }.items():
        main(["scan", ".", "--format", form])
        out = capsys.readouterr().out
        assert text in out, form
        assert form == "gitlab" or "looked at" in out


def test_a_folder_with_models_in_archives_only_is_no_healthy_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "models.tar.gz", "model.keras")
    assert main(["scan", "."]) == 2
    assert capsys.readouterr().out == "looked at 0 files; passed over: 1 archive (-v lists them)\n"
    assert main(["scan", ".", "--strict"]) == 2


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root becomes another user")
def test_what_may_not_be_read_is_named_and_the_rest_is_scanned(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "model.keras").chmod(0o644)
    for place in (folder, *folder.parents):
        if place.stat().st_uid == 0 and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o055)
    (folder / "aside").mkdir(mode=0o700)
    shutil.copy(KERAS, folder / "aside")
    locked = ["a.keras", "a.h5", "nothing", "b.index", "b.data-00000-of-00001", "checkpoint"]
    for name in locked:
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0)
    (folder / "link.keras").symlink_to(folder / "aside" / KERAS.name)
    program = (
        # What is imported late may not be imported any more by that user.
        "import contextlib, io, os, sys\n"
        "import ckpt_doctor.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    ckpt_doctor.cli.main(['--no-progress', 'scan', '.', '--format', 'json'])\n"
        "os.setgid(65534)\n"
        "os.setuid(65534)\n"
        "sys.exit(ckpt_doctor.cli.main(['--no-progress', 'scan', '.', '--format', 'json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert [one["path"] for one in document["checkpoints"]] == ["./model.keras"]
    expected = {"./aside", "./a.keras", "./a.h5", "./nothing", "./b", "./checkpoint", "./link.keras"}
    assert {error["path"] for error in document["errors"]} == expected
    assert all("ermission denied" in error["message"] for error in document["errors"])
    books = document["coverage"]
    assert books["files"] == books["judged"] + books["parts"] + sum(one["files"] for one in books["passed_over"])
    assert {one["kind"] for one in books["passed_over"]} == {"unreadable", "no-verdict"}


def test_a_file_that_vanishes_after_its_folder_was_listed(folder, monkeypatch, capsys):
    for name in ("noise", "second.keras", "lost.pt"):
        shutil.copy(KERAS, folder / name)

    def listing(place):
        """List a folder, and then remove what was listed."""
        entries = _storage.entries_in(place)
        for entry in entries:
            if entry.name != "model.keras":
                Path(place, entry.name).unlink()
        return entries

    monkeypatch.setattr(discovery, "entries_in", listing)
    result = ckpt_doctor.scan(".")
    assert [one.path for one in result.checkpoints] == ["./model.keras"]
    assert passed(result) == {("vanished", False): 3}
    assert_balanced(result)


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_a_name_that_is_not_utf_8(folder, capsysbinary):
    (folder / os.fsdecode(b"\xff\x1b[2J.pt")).write_bytes(torch_zip())
    shutil.copy(KERAS, folder / os.fsdecode(b"\xfe.keras"))
    (folder / os.fsdecode(b"\xfd.h5")).write_bytes(LFS)
    (folder / os.fsdecode(b"\xfc.index")).symlink_to("gone")
    for form in ("text", "json", "sarif", "junit", "github", "gitlab", "markdown", "html"):
        for argv in (["-v", "scan", "."], ["scan", ".", "--strict", "--output", "report"]):
            assert main([*argv, "--format", form]) == 2, form
            streams = capsysbinary.readouterr()
            assert b"\xff" not in streams.out
            assert b"\x1b" not in streams.out + streams.err
        (folder / "report").unlink()


def hub(folder: Path, *snapshots: str) -> Path:
    """Make a cache of the Hugging Face hub: blobs by their hash, snapshots of links to them."""
    model = folder / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(snapshots[-1])
    blobs = {}
    bundle(folder / "made", "m-1")
    for file in (KERAS, *(folder / "made").iterdir(), *(SAMPLES / "saved_model_tf2" / "sample").rglob("*")):
        if file.is_file():
            name = file.name
            if "saved_model_tf2" in str(file):
                name = str(file.relative_to(SAMPLES / "saved_model_tf2"))
            blobs[name] = f"{len(blobs):040x}"
            shutil.copy(file, model / "blobs" / blobs[name])
    shutil.rmtree(folder / "made")
    for snapshot in snapshots:
        for name, blob in blobs.items():
            link = model / "snapshots" / snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(model / "blobs" / blob, link.parent))
    return model


def test_a_cache_of_the_hub_is_scanned_by_the_names_of_its_snapshot(tmp_path: Path) -> None:
    model = hub(tmp_path, "0a", "1b")
    names = [f"{model}/snapshots/{{}}/{name}" for name in ("healthy.keras", "m-1", "sample")]
    for given in (tmp_path, model, model / "snapshots"):
        result = ckpt_doctor.scan(given)
        # Both snapshots lead to the same files.
        assert [one.path for one in result.checkpoints] == [name.format("0a") for name in names]
        assert_balanced(result)
        assert not result.errors
        assert not result.coverage.unopened
    assert ckpt_doctor.scan(model).coverage.links_out == 0
    # All that a snapshot alone has are links out of it.
    result = ckpt_doctor.scan(model / "snapshots" / "1b")
    assert [one.path for one in result.checkpoints] == [name.format("1b") for name in names]
    assert result.coverage.links_out == result.coverage.judged + result.coverage.parts == result.coverage.files
    assert_balanced(result)


def test_a_cache_of_dvc_is_scanned_by_the_names_of_the_workspace(folder: Path) -> None:
    cache = folder / ".dvc" / "cache" / "files" / "md5" / "01"
    cache.mkdir(parents=True)
    (folder / "model.keras").rename(cache / "2345")
    (folder / "model.keras").symlink_to(cache / "2345")
    (folder / "model.keras.dvc").write_text("outs:\n- md5: 012345\n  path: model.keras\n")
    result = ckpt_doctor.scan(".")
    assert [one.path for one in result.checkpoints] == ["./model.keras"]
    assert passed(result) == {("hidden-folder", False): 1, ("other", False): 1}
    # The cache itself, named: it is judged by its content.
    assert [one.path for one in ckpt_doctor.scan(".dvc/cache").checkpoints] == [".dvc/cache/files/md5/01/2345"]


def test_a_symbolic_link_to_a_folder_is_followed_inside_the_given_one_only(folder: Path, capsys) -> None:
    outside = folder.parent / f"{folder.name} outside"
    outside.mkdir()
    shutil.copy(KERAS, outside)
    (folder / "a link").symlink_to(outside)
    result = ckpt_doctor.scan(".")
    assert [one.path for one in result.checkpoints] == ["./model.keras"]
    assert passed(result) == {("link-out", True): 1}
    assert main(["scan", ".", "--strict"]) == 1
    assert "./a link: not opened" in capsys.readouterr().err
    # Named itself, it is the folder; and a folder is named by itself and not by a link to it.
    assert [one.path for one in ckpt_doctor.scan("a link").checkpoints] == [f"a link/{KERAS.name}"]
    (folder / "z").mkdir()
    shutil.copy(KERAS, folder / "z")
    (folder / "b").symlink_to("z")
    assert [one.path for one in ckpt_doctor.scan(".").checkpoints] == ["./model.keras", f"./z/{KERAS.name}"]


def test_checkpoints_come_in_natural_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"ckpt-{number}" for number in (9, 10, 200, 1000)]
    for name in reversed(names):
        bundle(tmp_path / "files", name)
        bundle(tmp_path / "folders" / name, "m")
    assert [Path(path).name for path in discovery.discover(["files"]).checkpoints] == names
    assert [Path(path).parent.name for path in discovery.discover(["folders"]).checkpoints] == names
    assert [Path(path).name for path in discovery.discover(["files/ckpt-*"]).checkpoints] == names


def test_folders_nested_more_deeply_than_pythons_stack(folder: Path) -> None:
    nested = [Path("/".join("d" * depth)) for depth in range(1, 1201)]  # The longest has 2,399 letters.
    for path in nested:
        path.mkdir()
    model = nested[-1] / "model.keras"
    shutil.copy(KERAS, model)
    try:
        result = ckpt_doctor.scan(".")
    finally:
        # `shutil.rmtree` recurses before Python 3.13, and pytest calls it to tidy up.
        model.unlink()
        for path in reversed(nested):
            path.rmdir()
    assert len(result.checkpoints) == 2
    assert result.coverage.folders == 1201
    assert_balanced(result)


def test_files_whose_name_says_that_they_hold_no_model_are_not_opened(folder, monkeypatch):
    for number in range(10_000):
        (folder / f"{number}.png").write_bytes(PNG)
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more, **named: opened.append(str(path)) or real(path, *more, **named))
    result = ckpt_doctor.scan(".")
    assert passed(result) == {("other", False): 10_000}
    assert "./model.keras" in opened
    assert not [path for path in opened if path.endswith(".png")]


def test_what_is_named_itself_is_counted_with_its_files(folder: Path) -> None:
    prefix = copy_bundle(True, folder / "runs")
    for name in (prefix, f"{prefix}.index", f"{prefix}.meta", f"{prefix}.*"):
        books = ckpt_doctor.scan(str(name)).coverage
        assert (books.files, books.judged, books.parts) == (3, 1, 2), name
    shutil.copytree(SAMPLES / "saved_model_tf2" / "sample", folder / "export")
    files = sum(path.is_file() for path in (folder / "export").rglob("*"))
    for path in ("export", "export/saved_model.pb"):
        books = ckpt_doctor.scan(path).coverage
        assert (books.files, books.judged, books.parts) == (files, 1, files - 1), path
    for path in ("sample-?????-of-00002", "sample-00001-of-00002", "sample-*"):
        books = ckpt_doctor.scan(SAMPLES / "v1_shards" / path).coverage
        assert (books.files, books.judged, books.parts) == (3, 1, 2), path
    # Twice is once.
    assert ckpt_doctor.scan([".", "model.keras", prefix, "*"]).coverage.files == 1 + 3 + files
