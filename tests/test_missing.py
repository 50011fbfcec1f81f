"""Variables that a checkpoint lists and does not hold (CK107): taken out of files that TensorFlow and Keras wrote."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import h5py
import pytest

from ckpt_doctor import scan
from ckpt_doctor.cli import main
from ckpt_doctor.finding import Finding
from ckpt_doctor.formats import _table
from ckpt_doctor.formats._storage import open_source

FIXTURES = Path(__file__).parents[1] / "fixtures"
SLIM = FIXTURES / "tf1_slim" / "full" / "model.ckpt-400"


def without(prefix: Path, folder: Path, *dropped: str) -> Path:
    """Copy a bundle without some of the entries of its index."""
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        shutil.copy(path, folder)
    index = folder / f"{prefix.name}.index"
    entries = {bytes(key).decode(): bytes(value) for key, value in _table.Table(open_source(str(index))).items()}
    for name in dropped:
        del entries[name]
    index.write_bytes(_table.build([(key.encode(), value) for key, value in entries.items()]))
    return folder / prefix.name


def found(path: Path, **options: str) -> list[Finding]:
    (checkpoint,) = scan(path, **options).checkpoints
    return [finding for finding in checkpoint.findings if finding.rule == "CK107"]


def test_a_weight_that_the_saver_beside_lists(tmp_path: Path) -> None:
    path = without(SLIM, tmp_path, "net/conv1/weights", "net/conv1/weights/Momentum")
    (finding,) = found(path)
    assert (finding.severity, finding.certainty, finding.repair) == ("error", "proven", "none")
    assert finding.variables == ("net/conv1/weights",)
    assert "the saver of its graph lists a variable that is not in the file" in finding.message
    assert main(["fix", str(path), "--in-place", "--method", "copy"]) == 2


def test_a_graph_that_the_user_names_may_be_of_a_larger_model(tmp_path: Path) -> None:
    path = without(SLIM, tmp_path, "net/conv1/weights")
    path.with_name(f"{path.name}.meta").unlink()
    assert not found(path)
    assert not found(path, meta=f"{SLIM}.meta")


def test_a_weight_that_a_saved_model_of_tensorflow_1_restores(tmp_path: Path) -> None:
    model = FIXTURES / "formats" / "saved_model_tf1" / "sample"
    assert not found(model)
    shutil.copytree(model, tmp_path / "m")
    variables = tmp_path / "m" / "variables"
    variables.rename(tmp_path / "whole")
    variables.mkdir()
    names = [
        bytes(key).decode() for key, _ in _table.Table(open_source(str(tmp_path / "whole/variables.index"))).items()
    ]
    weight = next(name for name in names if name.endswith(("kernel", "weights")))
    without(tmp_path / "whole" / "variables", variables, weight)
    (finding,) = found(tmp_path / "m")
    assert finding.variables == (weight,)


def test_slots_and_statistics_are_not_asked_for(tmp_path: Path) -> None:
    statistic = next(
        finding.variables[0] for finding in scan(FIXTURES / "tf1_slim" / "trainable").checkpoints[0].findings
    )
    path = without(SLIM, tmp_path, "net/conv1/weights/Momentum", statistic)
    assert not found(path)
    assert scan(path).checkpoints[0].findings[0].rule == "BN101"


def test_a_variable_of_the_object_graph(tmp_path: Path) -> None:
    prefix = FIXTURES / "formats" / "bundle_objects" / "sample"
    name = "model/optimizer/_trainable_variables/0/.ATTRIBUTES/VARIABLE_VALUE"
    assert not found(prefix)
    (finding,) = found(without(prefix, tmp_path, name))
    assert finding.variables == (name,)
    assert "its object graph lists" in finding.message


def test_a_weight_of_a_legacy_keras_file(tmp_path: Path) -> None:
    path = Path(shutil.copy(FIXTURES / "keras_h5" / "healthy.h5", tmp_path))
    assert not found(path)
    with h5py.File(path, "a") as file:
        del file["model_weights/conv1/conv1/kernel"]
    (finding,) = found(path)  # Keras 3.15: KeyError: 'kernel'.
    assert finding.variables == ("model_weights/conv1/conv1/kernel",)
    assert "its lists of weights name" in finding.message


def test_a_layer_of_the_config_that_the_weights_lack(tmp_path: Path) -> None:
    healthy, path = FIXTURES / "keras_v3" / "healthy.keras", tmp_path / "m.keras"
    assert not found(healthy)
    with zipfile.ZipFile(healthy) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = io.BytesIO(source.read(name))
            if name.endswith(".h5"):
                with h5py.File(content, "a") as file:
                    del file["layers/dense"]
            target.writestr(name, content.getvalue())
    (finding,) = found(path)  # Keras 3.15: ValueError: A total of 1 objects could not be loaded.
    assert finding.variables == ("layers/dense/vars/0",)
    assert "its config needs a variable that is not in the file" in finding.message


def test_an_index_that_lost_a_block_is_damaged_and_nothing_else(tmp_path: Path) -> None:
    path = without(SLIM, tmp_path)
    index = path.with_name(f"{path.name}.index")
    content = bytearray(index.read_bytes())
    content[len(content) // 3] ^= 0xFF
    index.write_bytes(content)
    (checkpoint,) = scan(path).checkpoints
    assert {finding.rule for finding in checkpoint.findings} & {"CK103", "CK104"}
    assert not found(path)


@pytest.mark.tensorflow
def test_a_layer_that_two_models_share_is_stored_once(tmp_path: Path) -> None:
    import keras

    shared = keras.layers.Dense(3, name="shared")
    first, second = (
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name=f"own{number}"), shared]) for number in (1, 2)
    )
    inputs = keras.Input((3,))
    both = first(inputs) + second(keras.layers.TimeDistributed(keras.layers.Dense(3))(inputs[:, None])[:, 0])
    keras.Model(inputs, keras.layers.BatchNormalization()(both)).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive, h5py.File(archive.open("model.weights.h5")) as file:
        holders: list[str] = []
        file.visit(lambda name: holders.append(name) if name.endswith("dense_1/vars/0") else None)
    assert len(holders) == 1
    assert not found(tmp_path / "m.keras")
