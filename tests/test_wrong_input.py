"""Wrong input of every kind: one exact message on stderr, the right exit code, nothing written, never a traceback."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import scan
from ckpt_doctor.cli import main
from tests.catalogue import BY_NAME, CALIBRATION, FIXTURES

TRAINABLE = BY_NAME["tf1_layers/trainable/model.ckpt-400"]
NAME = "model.ckpt-400"
SHARD = f"{NAME}.data-00000-of-00001"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def needs_tensorflow(*values):
    return pytest.param(*values, marks=pytest.mark.tensorflow)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A broken bundle and data that fit it, in the current folder."""
    for file in TRAINABLE.path.parent.glob(f"{NAME}.*"):
        shutil.copy(file, tmp_path)
    shutil.copy(FIXTURES / "keras_h5" / "broken.h5", tmp_path)
    np.savez(tmp_path / "data.npz", images=np.load(CALIBRATION)["x"][:64])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state(folder):
    """Return every file with its content and time, so that a rewrite of the same bytes counts too."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def run(folder, capsys):
    """Run a command line; whatever it says, it must have written nothing."""

    def run(*argv):
        before = state(folder)
        code = main([str(word) for word in argv])
        streams = capsys.readouterr()
        assert state(folder) == before
        assert "Traceback" not in streams.out + streams.err
        return code, streams.out, streams.err

    return run


def fix(run, *argv, checkpoint=NAME, data="data.npz", output="out"):
    return run("fix", checkpoint, "--data", data, "--output", output, *argv)


@pytest.mark.parametrize("command", ["scan", "fix"])
def test_a_path_that_is_not_there(run, command):
    argv = ["nowhere/model.ckpt-1"] + (["--data", "data.npz", "--output", "out"] if command == "fix" else [])
    assert run(command, *argv) == (
        2,
        "",
        "ckpt-doctor: nowhere/model.ckpt-1: no such file or folder, and no checkpoint with this prefix "
        "(nowhere/model.ckpt-1.index)\n",
    )


@pytest.mark.parametrize("model", ["gone.py:make", "gone.keras", "gone.meta"])
def test_a_model_that_is_not_there_although_the_checkpoint_has_its_own(run, model):
    code, out, err = run("scan", NAME, "--model", model)
    assert code == 2
    assert f"--model {model}: " in out + err
    assert "no such file" in (out + err).lower()


def test_a_path_that_no_file_can_have():
    (error,) = scan("a\0b").errors
    assert "a path cannot contain a null character" in error.message


@pytest.mark.parametrize("command", ["scan", "fix"])
def test_a_prefix_without_its_index(run, folder, command):
    (folder / f"{NAME}.index").unlink()
    argv = [NAME] + (["--data", "data.npz", "--output", "out"] if command == "fix" else [])
    code, out, err = run(command, *argv)
    assert (code, out) == (2, "")
    assert err == (
        f"ckpt-doctor: {NAME}: {NAME}.index is missing, and a checkpoint cannot be read without it; found only "
        f"{SHARD}, {NAME}.meta\n"
    )


def cut_short(path):
    path.write_bytes(path.read_bytes()[:1000])


def flip(offset):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        path.write_bytes(content)

    return flip


def to_pointer(path):
    path.write_bytes(POINTER)


DAMAGES = [
    pytest.param(SHARD, Path.unlink, "CK101", "is missing; it holds 14 of the 14 entries of the index", id="no shard"),
    pytest.param(SHARD, cut_short, "CK102", "has 1000 bytes, the index expects 18280", id="short shard"),
    pytest.param(SHARD, flip(500), "CK103", "byte 480: conv1/kernel: checksum 0x", id="flipped in shard"),
    pytest.param(f"{NAME}.index", flip(40), "CK103", "byte 0: a block has checksum 0x", id="flipped in index"),
    pytest.param(f"{NAME}.index", to_pointer, "CK104", "is a git-LFS pointer; fetch the real file", id="pointer"),
    pytest.param(SHARD, to_pointer, "CK104", "is a git-LFS pointer; fetch the real file", id="pointer for shard"),
    pytest.param("broken.h5", to_pointer, "CK104", "is a git-LFS pointer; fetch the real file", id="pointer for h5"),
]


@pytest.mark.parametrize(("file", "damage", "code", "words"), DAMAGES)
def test_a_damaged_checkpoint_is_a_finding_and_is_not_repaired(run, folder, file, damage, code, words):
    damage(folder / file)
    checkpoint, output = (file, "out.h5") if file.endswith(".h5") else (NAME, "out")
    exit_code, out, err = run("scan", checkpoint, "--select", "CK")
    assert (exit_code, err) == (1, "")
    assert code in out
    assert words in " ".join(out.split())

    exit_code, out, err = fix(run, checkpoint=checkpoint, output=output)
    assert (exit_code, out) == (2, "")
    assert err.startswith(f"ckpt-doctor: {file}")
    assert words in err
    assert err.count("\n") == 1


def test_a_pointer_in_the_place_of_a_shard_is_one_finding_about_all_of_it(run, folder):
    """Its bytes are no values: that their checksums are wrong says nothing."""
    to_pointer(folder / SHARD)
    _, out, _ = run("scan", NAME, "--select", "CK", "--format", "json")
    [finding] = json.loads(out)["checkpoints"][0]["findings"]
    assert (finding["rule"], finding["layers"]) == ("CK104", ["bn1", "bn2", "bn3", "bn4"])
    assert len(finding["variables"]) == 14


def test_nothing_to_repair_is_said_once(run):
    shutil.copy(FIXTURES / "keras_h5" / "healthy.h5", "healthy.h5")
    code, out, err = fix(run, checkpoint="healthy.h5", output="out.h5")
    assert (code, err) == (0, "")
    assert out == "healthy.h5: nothing to repair; nothing was written\n"


def array(**options):
    return lambda: np.savez("wrong.npz", **options)


NO_NAME = (
    "no array 'images' in the data, which the model needs as input; the data contain {}, the model takes images (?, "
    "8, 8, 1); map an array with --input pictures=images:0, or name it with --data images=FILE.npz[pictures]"
)
DATA = [
    needs_tensorflow(
        array(images=np.zeros((9, 28, 28, 1), np.float32)),
        "--data wrong.npz: array images has shape (9, 28, 28, 1); the input images takes (?, 8, 8, 1)",
    ),
    needs_tensorflow(
        array(images=np.zeros((9, 64), np.float32)),
        "--data wrong.npz: array images has shape (9, 64); the input images takes (?, 8, 8, 1)",
    ),
    needs_tensorflow(
        array(pictures=np.zeros((9, 8, 8, 1), np.float32), labels=np.zeros(9)),
        NO_NAME.format("pictures (9, 8, 8, 1), labels (9,)"),
    ),
    needs_tensorflow(
        array(images=np.full((9, 8, 8, 1), "a")),
        "--data wrong.npz: array images is of type <U1; the input images takes float32",
    ),
    needs_tensorflow(
        array(images=np.full((9, 8, 8, 1), 1j)),
        "--data wrong.npz: array images is of type complex128; the input images takes float32",
    ),
    needs_tensorflow(
        array(images=np.full((9, 8, 8, 1), np.nan, np.float32)),
        "--data wrong.npz: array images holds NaN or infinite values; remove them first",
    ),
    needs_tensorflow(array(images=np.zeros((0, 8, 8, 1), np.float32)), "--data wrong.npz: the data contain no samples"),
    needs_tensorflow(
        array(images=np.array([None])),
        "--data wrong.npz: wrong.npz cannot be read as .npz: Object arrays cannot be loaded when allow_pickle=False; "
        "save text as x.astype(str)",
    ),
    needs_tensorflow(
        lambda: Path("wrong.npz").write_bytes(b"PK\x03\x04rubbish"),
        "--data wrong.npz: wrong.npz cannot be read as .npz: File is not a zip file",
    ),
    needs_tensorflow(
        lambda: Path("wrong.npz").write_bytes(CALIBRATION.read_bytes()[:-30]),
        "--data wrong.npz: wrong.npz cannot be read as .npz: File is not a zip file",
    ),
    needs_tensorflow(lambda: None, "--data wrong.npz: no such file: wrong.npz"),
]


@pytest.mark.parametrize(("make", "message"), DATA)
def test_data_that_do_not_fit(run, folder, make, message):
    make()
    assert fix(run, data="wrong.npz") == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.tensorflow
def test_data_that_are_damaged_inside(run, folder):
    np.savez_compressed("wrong.npz", images=np.random.default_rng(0).random((9, 8, 8, 1), np.float32))
    flip(300)(folder / "wrong.npz")
    code, out, err = fix(run, data="wrong.npz")
    assert (code, out) == (2, "")
    assert err.startswith("ckpt-doctor: --data wrong.npz: wrong.npz cannot be read as .npz: ")


@pytest.mark.tensorflow
@pytest.mark.parametrize("tensor", ["is_training", "labels"])
def test_a_feed_that_is_no_value_even_where_nothing_measured_needs_it(run, tensor):
    message = f"--feed {tensor}=often: 'often' is neither a number nor true or false"
    assert fix(run, "--feed", f"{tensor}=often") == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.tensorflow
def test_an_array_under_the_name_of_an_archive(run, folder):
    np.save("array.npy", np.zeros((9, 8, 8, 1), np.float32))
    (folder / "array.npy").rename(folder / "wrong.npz")
    message = "--data wrong.npz: wrong.npz cannot be read as .npz: File is not a zip file"
    assert fix(run, data="wrong.npz") == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.tensorflow
def test_a_key_that_the_data_do_not_have(run):
    message = "--data data.npz[x]: data.npz has no array 'x'; it has images (64, 8, 8, 1)"
    assert fix(run, data="data.npz[x]") == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.parametrize("file", ["out.index", "out.meta", "out.data-00000-of-00002"])
def test_an_output_that_exists(run, folder, file):
    (folder / file).write_text("mine")
    message = f"--output out: {file} exists; pass another name or --overwrite"
    assert fix(run) == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.tensorflow
def test_another_checkpoint_whose_name_begins_alike_is_none_of_ours(folder, monkeypatch, capsys):
    """Neither a reason to refuse, nor among what is removed when the written checkpoint is not as planned."""
    others = {f"out.1{suffix}": suffix for suffix in (".index", ".meta", ".data-00000-of-00001")}
    for name, content in others.items():
        (folder / name).write_text(content)
    argv = ["fix", NAME, "--data", "data.npz", "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr("ckpt_doctor.repair.writing.same_values", lambda *_: False)
        assert main(argv) == 2
    assert {path.name: path.read_text() for path in folder.glob("out*")} == others
    assert main(argv) == 0
    assert {name: (folder / name).read_text() for name in others} == others


def test_an_output_file_that_exists(run, folder):
    (folder / "out.h5").write_text("mine")
    message = "--output out.h5: out.h5 exists; pass another name or --overwrite"
    assert fix(run, checkpoint="broken.h5", output="out.h5") == (2, "", f"ckpt-doctor: {message}\n")


def test_an_output_of_another_format(run):
    message = "--output out.keras: the repaired file has the same format; its name must end in .h5"
    assert fix(run, checkpoint="broken.h5", output="out.keras") == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.parametrize(
    ("checkpoint", "output"),
    [
        (NAME, NAME),
        (NAME, f"./{NAME}"),
        (f"{NAME}.index", NAME),
        (NAME, f"link/{NAME}"),
        (f"link/{NAME}", NAME),
        (NAME, f"sub/../{NAME}"),
        ("broken.h5", "broken.h5"),
        ("broken.h5", "link/broken.h5"),
    ],
)
def test_the_output_is_the_checkpoint(run, folder, checkpoint, output):
    (folder / "link").symlink_to(folder)
    (folder / "sub").mkdir()
    message = f"--output {output}: is the checkpoint itself; to change it in place, pass --in-place"
    assert fix(run, "--overwrite", checkpoint=checkpoint, output=output) == (2, "", f"ckpt-doctor: {message}\n")


@pytest.mark.parametrize("suffix", [".index", ".meta", ".data-00000-of-00001"])
def test_the_output_is_a_file_of_the_checkpoint(run, suffix):
    code, out, err = fix(run, "--overwrite", output=f"{NAME}{suffix}")
    assert (code, out) == (2, "")
    assert err == (
        f"ckpt-doctor: --output {NAME}{suffix}: is a file of the checkpoint itself; pass another prefix, or "
        "--in-place\n"
    )


def test_a_folder_that_is_not_there(run):
    assert fix(run, output="no/out") == (2, "", "ckpt-doctor: --output no/out: the folder no does not exist\n")


@pytest.mark.tensorflow
@pytest.mark.parametrize("how", ["mode", "simulated"])
@pytest.mark.parametrize(("checkpoint", "output"), [(NAME, "closed/out"), ("broken.h5", "closed/out.h5")])
def test_a_read_only_folder(run, folder, monkeypatch, how, checkpoint, output):
    closed = folder / "closed"
    closed.mkdir()
    if how == "mode":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        closed.chmod(0o500)
    else:
        really = os.open

        def refuse(path, flags, *args, **options):
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and Path(os.fspath(path)).parent.name == "closed":
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return really(path, flags, *args, **options)

        monkeypatch.setattr(os, "open", refuse)
    code, out, err = fix(run, checkpoint=checkpoint, output=output)
    assert (code, out) == (2, "")
    assert err.startswith(f"ckpt-doctor: {output}")
    assert err.endswith(": cannot be written: permission denied\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "message"), [("0", "0 is not in the range x>=1."), ("many", "'many' is not a valid integer range.")]
)
def test_a_batch_size_that_is_none(run, number, message):
    code, out, err = fix(run, "--batch-size", number)
    assert (code, out) == (2, "")
    assert err.endswith(f"Error: Invalid value for '--batch-size': {message}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no destination: pass --output PATH, --in-place (keeps a backup) or --dry-run"),
        (["--in-place", "--output", "out"], "--in-place and --output PATH contradict each other; pass only one"),
        (["--output", "out", "--no-backup"], "--no-backup needs --in-place; --output leaves the checkpoint as it is"),
        (
            ["--dry-run", "--layers", "zz*"],
            "--layers zz*: no batch-norm layer matches; found: bn1, bn2, bn3, bn4",
        ),
        (["--dry-run", "--model", "gone.meta"], "--model gone.meta: cannot be read: No such file or directory"),
        needs_tensorflow(["--dry-run", "--input", "a=b:0"], "b:0: the graph has no such tensor"),
    ],
)
def test_options_that_cannot_be_met(run, argv, message):
    code, out, err = run("fix", NAME, "--data", "data.npz", *argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"ckpt-doctor: {message}")


def test_the_check_that_nothing_was_written_can_fail(folder, run, monkeypatch):
    monkeypatch.setattr("tests.test_wrong_input.main", lambda _: (folder / "new").write_text("x"))
    with pytest.raises(AssertionError):
        run("scan", NAME)
