"""What is no file, or no numbers: named, and neither waited for nor taken for health."""

import json
import os
import shutil
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.formats import _table
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.formats.test_tensor_bundle import make_bundle

FORMATS = Path(__file__).parents[1] / "fixtures" / "formats"
ODD = "is a pipe, a device or a broken link; expected a file or a folder"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_json(capsys):
    """Run one command line; return its code and its JSON."""

    def run_json(*argv):
        code = main([*argv, "--format", "json"])
        return code, json.loads(capsys.readouterr().out)

    return run_json


@pytest.mark.parametrize("command", ["scan", "ls", "fix --output new.h5"])
def test_a_link_that_leads_to_itself(command, capsys):
    Path("me").symlink_to("me")
    first, *rest = command.split()
    assert main([first, "me", *rest]) == 2
    assert capsys.readouterr().err == f"ckpt-doctor: me: {ODD}\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_nobody_waits_for_a_pipe(capsys):
    for name in ("checkpoint", "model.index", "model.data-00000-of-00001", "model.h5", "model.keras"):
        os.mkfifo(name)
    assert main(["scan", "."]) == 2
    assert main(["scan", "model.h5"]) == 2
    assert f"model.h5: {ODD}" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("sample", ["tf1_bundle/sample", "saved_model_tf2/sample/variables/variables"])
def test_nobody_waits_for_a_pipe_in_the_place_of_a_shard(capsys, sample):
    for file in (FORMATS / sample).parent.iterdir():
        shutil.copyfile(file, file.name)
    shard = Path(f"{Path(sample).name}.data-00000-of-00001")
    shard.unlink()
    os.mkfifo(shard)
    # In a thread of its own: a test that waits for ever names nobody.
    codes = []
    worker = threading.Thread(target=lambda: codes.append(main(["scan", f"{Path(sample).name}.index"])), daemon=True)
    worker.start()
    worker.join(timeout=30)
    assert codes == [2]
    assert f"{shard}: is a pipe or a device; expected a file" in capsys.readouterr().err


def test_checkpoints_without_a_variable_and_with_one(here, run_json):
    """TensorFlow writes both; Keras writes a model without layers."""
    for name, values in (("none", {}), ("one", {"w": np.zeros(2, np.float32)}), ("scalar", {"step": np.int64(3)})):
        make_bundle(here, {key: np.asarray(value) for key, value in values.items()}, name=name)
    with h5py.File("empty.h5", "w") as file:
        file.create_group("model_weights").attrs["layer_names"] = np.array([], "S1")
    with h5py.File("empty.weights.h5", "w") as file:
        file.create_group("layers")
        file.create_group("vars")
    code, document = run_json("scan", ".")
    assert code == 0
    counts = {Path(one["path"]).name: (one["variables"], one["findings"]) for one in document["checkpoints"]}
    assert counts == {
        "none": (0, []),
        "one": (1, []),
        "scalar": (1, []),
        "empty.h5": (0, []),
        "empty.weights.h5": (0, []),
    }
    assert document["coverage"]["files"] == 3 * 2 + 2


def test_statistics_of_text_are_not_judged(capsys):
    with h5py.File("model.h5", "w") as file:
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"bn"]
        names = [f"bn/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
        layer = weights.create_group("bn")
        layer.attrs["weight_names"] = [name.encode() for name in names]
        for name in names:
            layer.create_dataset(name, data=np.array([b"a", b"b"]))
    assert main(["scan", "model.h5"]) == 0
    assert "it contains text, but the layer has numbers" in capsys.readouterr().out
    assert main(["scan", "model.h5", "--strict"]) == 1
    capsys.readouterr()
    assert main(["fix", "model.h5", "--layers", "*", "--method", "debias", "--output", "new.h5"]) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_value_without_elements_may_claim_any_other_dimension(here, capsys):
    # TensorFlow 2.21 reads it: `tf.zeros([0, 2**60])` is no larger than nothing.
    header = pb.BundleHeader(num_shards=1)
    entry = pb.BundleEntry(dtype=1, crc32c=0xA282EAD8)  # The masked CRC-32C of no bytes.
    entry.shape.CopyFrom(pb.TensorShape(dim=[pb.TensorShape.Dim(size=0), pb.TensorShape.Dim(size=2**60)]))
    Path("m.data-00000-of-00001").touch()
    Path("m.index").write_bytes(_table.build([(b"", header.SerializeToString()), (b"x", entry.SerializeToString())]))
    assert main(["ls", "m", "--stats"]) == 0
    _, row, _ = capsys.readouterr().out.splitlines()
    assert row.split() == ["float32", "0x1152921504606846976", "0", "weight", "-", "-", "-", "-", "0", "0", "x"]
    assert main(["scan", "m"]) == 0
    assert main(["diff", "m", "m"]) == 0


def test_a_meta_that_a_copy_in_text_mode_has_changed(run_json):
    for path in (FORMATS / "tf1_bundle").glob("sample.*"):
        shutil.copy(path, ".")
    meta = Path("sample.meta")
    meta.write_bytes(meta.read_bytes().replace(b"\n", b"\r\n"))
    code, document = run_json("scan", "sample")
    assert code == 1
    (checkpoint,) = document["checkpoints"]
    ((rule, message),) = [(finding["rule"], finding["message"]) for finding in checkpoint["findings"]]
    assert rule == "CK104"
    assert message.startswith("sample.meta: a MetaGraphDef whose line ends a copy in text mode has changed")
    assert not checkpoint["not_judged"]
    # What is no copy of this kind is another file, for all that is known.
    meta.write_bytes(b"line\r\nline\r\n")
    code, document = run_json("scan", "sample")
    assert (code, len(document["checkpoints"][0]["not_judged"])) == (0, 1)


def test_ls_names_the_size_that_scan_names(capsys, run_json):
    path = str(FORMATS / "keras" / "keras3.keras")
    size = Path(path).stat().st_size
    assert run_json("scan", path)[1]["checkpoints"][0]["bytes"] == size
    main(["ls", path])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{path}: keras-v3, 64 variables, {size / 1000:.1f} kB"
    main(["ls", path, "--grep", "vars/2$"])
    assert capsys.readouterr().out.splitlines()[-1].split(", ")[1] == "7 of 64 variables (48 B)"
