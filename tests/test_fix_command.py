"""`ckpt-doctor fix` as its users meet it: codes, messages, and that a refusal writes nothing."""

import json
import os
import shutil
from pathlib import Path

import jsonschema
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.repair.writing import check_output, check_receipt

FIXTURES = Path(__file__).parent.parent / "fixtures"
HEALTHY = FIXTURES / "tf1_layers" / "full" / "model.ckpt-400"
BROKEN = FIXTURES / "tf1_layers" / "trainable" / "model.ckpt-400"
DATA = f"images={FIXTURES / 'data' / 'calibration.npz'}[x]"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main(["fix", *(str(argument) for argument in argv)])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def test_an_output_that_exists_is_refused(run, tmp_path):
    (tmp_path / "out.index").write_text("mine")
    code, out, err = run(BROKEN, "--data", DATA, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "out" in err
    assert "--overwrite" in err
    assert [file.name for file in tmp_path.iterdir()] == ["out.index"]
    assert (tmp_path / "out.index").read_text() == "mine"


def test_a_folder_that_is_not_there_is_refused(run, tmp_path):
    code, _, err = run(BROKEN, "--data", DATA, "--output", tmp_path / "no" / "out")
    assert code == 2
    assert str(tmp_path / "no") in err
    assert not any(tmp_path.iterdir())


def everything(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_overwrite_never_takes_the_neighbours(run, tmp_path):
    """The source, the models beside it and notes went away with `--output models --overwrite`, exit code 0."""
    models = tmp_path / "models"
    shutil.copytree(FIXTURES / "formats" / "saved_model_keras3" / "sample", models / "broken")
    (models / "notes.md").write_text("keep")
    before = everything(tmp_path)
    code, out, err = run("models/broken", "--data", DATA, "--output", "models", "--overwrite", "--unproven")
    assert (code, out) == (2, "")
    assert err == (
        "ckpt-doctor: --output models: models contains the checkpoint itself (models/broken); pass another name\n"
    )
    assert everything(tmp_path) == before


def test_overwrite_never_takes_another_file(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("three years of work")
    shutil.copy(FIXTURES / "keras_h5" / "broken.h5", tmp_path / "thesis.h5")
    before = everything(tmp_path)
    code, _, err = run(BROKEN, "--data", DATA, "--output", "thesis.tex", "--overwrite")
    assert code == 2
    assert err == (
        "ckpt-doctor: --output thesis.tex: thesis.tex is a text file; --overwrite replaces only a tensor-bundle "
        "checkpoint; pass another name\n"
    )
    code, _, err = run(BROKEN, "--data", DATA, "--output", "thesis.h5", "--overwrite")
    assert code == 2
    assert "thesis.h5 is an HDF5 file; --overwrite replaces only a tensor-bundle checkpoint" in err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "argv",
    [
        ("--data", "x=old/assets/data.npz[x]"),
        ("--data", "old/assets/*.npz"),
        ("--data", "old/assets"),
        ("--data", "images=old/assets/data.npz"),
        ("--data", "other.npz", "--model", "old/saved_model.pb"),
        ("--data", "other.npz", "--model", "old"),
        ("--data", "old/assets/mine.py:FUNCTION"),
    ],
)
def test_what_is_read_is_not_replaced(run, tmp_path, argv):
    for name in ("m", "old"):
        shutil.copytree(FIXTURES / "formats" / "saved_model_keras3" / "sample", tmp_path / name)
    (tmp_path / "old" / "assets").mkdir()
    shutil.copy(FIXTURES / "data" / "calibration.npz", tmp_path / "old" / "assets" / "data.npz")
    (tmp_path / "old" / "assets" / "mine.py").write_text("")
    before = everything(tmp_path)
    with pytest.raises(
        BadRequest,
        match=r"--output old: old\S* would be replaced, but \S+ is being read; pass "
        "another name",
    ):
        check_output(open_checkpoint("m"), "old", overwrite=True, inputs=argv[1::2])
    code, _, err = run("m", *argv, "--output", "old", "--overwrite")
    assert code == 2
    assert "old" in err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "receipt"),
    [
        ("out", "out"),
        ("out", "./out"),
        ("out", "out.index"),
        ("out", "out.meta"),
        ("out", "out.data-00000-of-00001"),
        ("out", "out-00000-of-00002"),
        ("out.index", "out.meta"),
        ("out.h5", "out.h5"),
        ("out.weights.json", "out_00003.weights.h5"),
        (None, "model.ckpt-400"),
        (None, "model.ckpt-400.index"),
        (None, "link/model.ckpt-400.meta"),
        ("out", "m/receipt.json"),
    ],
)
def test_a_receipt_does_not_take_a_name_of_the_output_or_the_checkpoint(run, tmp_path, output, receipt):
    (tmp_path / "link").symlink_to(tmp_path)
    shutil.copytree(FIXTURES / "formats" / "saved_model_keras3" / "sample", tmp_path / "m")
    where = ["--in-place"] if output is None else ["--output", output]
    source = "m" if receipt == "m/receipt.json" else "model.ckpt-400"
    before = everything(tmp_path)
    code, out, err = run(source, "--data", DATA, *where, "--receipt", receipt)
    assert (code, out) == (2, "")
    assert err.startswith(f"ckpt-doctor: --receipt {receipt}: is a name that ")
    assert everything(tmp_path) == before


def test_a_receipt_replaces_nothing_but_a_receipt(run, tmp_path):
    shutil.copy(FIXTURES / "keras_h5" / "broken.h5", tmp_path / "model.h5")
    (tmp_path / "scan.json").write_text('{"schema": "ckpt-doctor/scan/1"}')
    (tmp_path / "broken.json").write_text("{")
    before = everything(tmp_path)
    for name in ("model.h5", "scan.json", "broken.json"):
        code, _, err = run("model.h5", "--data", DATA, "--output", "out.h5", "--receipt", name)
        assert code == 2
        assert err == (
            f"ckpt-doctor: --receipt {name}: exists and is not a receipt of ckpt-doctor; pass another name\n"
        )
    assert everything(tmp_path) == before
    (tmp_path / "receipt.json").write_text('{"schema": "ckpt-doctor/fix/1", "sha256": [], "layers": []}')
    (tmp_path / "empty.json").write_text("")
    for name in ("receipt.json", "empty.json", "new.json", "/dev/null"):
        check_receipt(name, "model.h5", "out.h5")
    check_receipt("receipt.json", ".", "out.h5")  # The folder that holds one checkpoint is not the checkpoint.


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(run, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    code, _, err = run(BROKEN, "--data", DATA, "--output", folder / "out")
    assert code == 2
    assert str(folder) in err
    assert "Traceback" not in err


def test_estimation_needs_data(run, tmp_path):
    code, out, err = run(BROKEN, "--output", "out")
    assert (code, out) == (2, "")
    assert "--data" in err
    assert not any(tmp_path.iterdir())


def test_nothing_to_repair_is_success_and_writes_nothing(run, tmp_path):
    code, out, err = run(HEALTHY, "--data", DATA, "--output", "out")
    assert (code, err) == (0, "")
    assert "nothing to repair; nothing was written" in " ".join(out.split())
    assert not any(tmp_path.iterdir())


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("gone.npz", "gone.npz"),
        (f"{FIXTURES / 'data' / 'calibration.npz'}[zzz]", "zzz"),
        (f"images={FIXTURES / 'data' / 'calibration.npz'}[y]", "images"),
        (f"{FIXTURES / 'data' / 'calibration.npz'}", "no array 'images' in the data"),
    ],
)
def test_data_that_do_not_fit_are_refused(run, tmp_path, data, words):
    pytest.importorskip("tensorflow")
    code, out, err = run(BROKEN, "--data", data, "--output", "out")
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert not any(tmp_path.iterdir())


@pytest.mark.tensorflow
def test_a_repair_ends_with_a_clean_scan_and_a_receipt(run, tmp_path, capsys):
    pytest.importorskip("tensorflow")
    before = {file.name: file.read_bytes() for file in BROKEN.parent.iterdir()}
    code, out, err = run(BROKEN, "--data", DATA, "--dry-run")
    assert (code, err) == (0, "")
    assert "would set the statistics of 4 layers" in " ".join(out.split())
    assert not any(tmp_path.iterdir())

    code, out, err = run(BROKEN, "--data", DATA, "--output", "out", "--receipt", "receipt.json")
    assert (code, err) == (0, "")
    assert out.endswith("written and scanned clean: out\n")
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    schema = json.loads((Path(ckpt_doctor.__file__).parent / "schemas" / "fix-1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(receipt)
    assert [layer["name"] for layer in receipt["layers"]] == ["bn1", "bn2", "bn3", "bn4"]
    assert main(["scan", "out"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in BROKEN.parent.iterdir()} == before
