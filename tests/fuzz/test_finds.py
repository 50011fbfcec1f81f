"""What fuzzing found in this package, each as small as it gets."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ckpt_doctor import baseline, scan
from ckpt_doctor.analysis import analyse
from ckpt_doctor.capture.arrays import read_arrays
from ckpt_doctor.checkpoint import ModelDescriptions
from ckpt_doctor.cli import configuration, main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs.keras_fronts import fronts
from ckpt_doctor.graphs.keras_updates import updates_each_step
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.object_lists import unshown_layers
from ckpt_doctor.graphs.object_optimizers import members
from ckpt_doctor.naming.groups import natural
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

FIXTURES = Path(__file__).parents[2] / "fixtures"
WEIGHTS = FIXTURES / "formats" / "keras" / "keras03_weights.h5"


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}")])
def test_outputs_nested_as_deeply_as_json_goes(before: str, after: str) -> None:
    outputs = json.loads(f"{before * 500}1{after * 500}")
    layer = {"class_name": "Dense", "config": {"name": "dense"}}
    assert fronts({"config": {"layers": [layer], "output_layers": outputs}}) == {}


def test_an_empty_graph() -> None:
    assert MetaGraph(pb.MetaGraphDef()).facts.layers == ()


def test_an_object_graph_that_names_what_the_file_does_not_hold() -> None:
    graph = pb.TrackableObjectGraph()
    optimizer, steps, trained = (graph.nodes.add() for _ in range(3))
    optimizer.children.add(node_id=1, local_name="_iterations")
    optimizer.children.add(node_id=2, local_name="_trainable_variables")
    steps.attributes.add(checkpoint_key="steps", full_name="iteration")
    for place, role in enumerate(("gamma", "beta")):
        trained.children.add(node_id=len(graph.nodes), local_name=str(place))
        graph.nodes.add().attributes.add(checkpoint_key=f"absent/{role}", full_name=f"bn/{role}")
    checkpoint = open_checkpoint(WEIGHTS)
    said = ModelDescriptions(object_graph=graph.SerializeToString())
    inventory = analyse(dataclasses.replace(checkpoint, descriptions=said)).inventory
    assert inventory.model is not None
    assert [one.gamma for one in inventory.model.unshown] == ["absent/gamma"]
    assert "bn" not in {layer.name for layer in inventory.layers}


def test_an_object_graph_that_points_beyond_its_end() -> None:
    graph = pb.TrackableObjectGraph()
    optimizer = graph.nodes.add()
    optimizer.children.add(node_id=1, local_name="_iterations")
    optimizer.children.add(node_id=7, local_name="model")
    graph.nodes.add().attributes.add(checkpoint_key="steps", full_name="iteration")
    assert unshown_layers(graph) == []


@pytest.mark.parametrize("digits", ["²", "9" * 5000])
def test_a_place_in_a_list_that_is_no_number(digits: str) -> None:
    graph = pb.TrackableObjectGraph()
    graph.nodes.add().children.add(node_id=1, local_name=digits)
    graph.nodes.add().attributes.add(checkpoint_key="x")
    assert members(graph, 0) == {}
    assert natural(f"bn_{digits}") != natural("bn_")


def test_a_baseline_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read: Is a directory"):
        baseline.read(tmp_path)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"])
def test_a_baseline_of_a_path_that_no_file_can_have(tmp_path: Path, path: str) -> None:
    row = {"path": path, "rule": "BN101", "layer": None, "fingerprint": "0"}
    known = tmp_path / "b.json"
    known.write_text(json.dumps({"schema": "ckpt-doctor/baseline/1", "findings": [row]}))
    (unused,) = scan([WEIGHTS], baseline=known).unused_suppressions
    assert unused.path == path


@pytest.mark.parametrize("text", ['tool = "ckpt-doctor"', "[tool]\nckpt-doctor = 3", "[tool]\n[[tool.ckpt-doctor]]"])
def test_a_policy_that_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    if text.startswith("tool"):
        assert configuration.load(ckpt_doctor_group) == {}
    else:
        with pytest.raises(BadRequest, match=r"needs a table, \[tool.ckpt-doctor\]"):
            configuration.load(ckpt_doctor_group)


def test_a_policy_nested_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".ckpt-doctor.toml").write_text(f"a = {'[' * 5000}{']' * 5000}")
    monkeypatch.chdir(tmp_path)
    assert main(["scan", "."]) == 2
    assert capsys.readouterr().err.startswith("ckpt-doctor: ")


def test_data_whose_header_is_no_python(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "x.npy").write_bytes(buffer.getvalue().replace(b"}", b"{"))
    with ExitStack() as kept, pytest.raises(BadRequest, match=r"cannot be read as \.npy"):
        read_arrays("--data", tmp_path / "x.npy", None, kept)


def test_data_packed_in_a_way_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, np.zeros(3))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 99
    path.write_bytes(content)
    with pytest.raises(NotImplementedError), zipfile.ZipFile(path) as archive:
        archive.read("arr_0.npy")
    with ExitStack() as kept, pytest.raises(BadRequest, match=r"cannot be read as \.npz"):
        read_arrays("--data", path, None, kept)


def test_data_with_a_member_that_is_no_array(tmp_path: Path) -> None:
    """NumPy hands it out as bytes."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"NUMPY")
    with ExitStack() as kept, pytest.raises(BadRequest, match=r"its member x is not a NumPy array"):
        read_arrays("--data", path, None, kept)


def test_data_in_a_member_without_an_extension(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.arange(3))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", content.getvalue())
    with ExitStack() as kept:
        assert read_arrays("--data", tmp_path / "x.npz", None, kept)["x"].tolist() == [0, 1, 2]
        with pytest.raises(BadRequest, match=r"it has x \(3,\)"):
            read_arrays("--data", tmp_path / "x.npz", "y", kept)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_data_that_claim_more_than_there_is_get_no_memory(tmp_path: Path, version: tuple[int, int]) -> None:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros(10**6, np.float32), version)
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content.getvalue().replace(b"(1000000,), }       ", b"(1000000000000,), } "))
    with (
        ExitStack() as kept,
        pytest.raises(BadRequest, match=r"x claims 4,000,000,000,000 bytes of values"),
    ):
        read_arrays("--data", path, None, kept)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_data_of_python_2_are_read_without_advice(tmp_path: Path, name: str) -> None:
    """A size such as `5L` in the header."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (5L,), }".ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + np.arange(5, dtype="<f4").tobytes()
    path = tmp_path / name
    if name == "x.npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", data)
    with ExitStack() as kept:
        [array] = read_arrays("--data", path, None, kept).values()
        assert np.asarray(array[...]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"NUMPY", b"\x93NUMPY\x01\x00\xff\xff"])
def test_a_message_names_members_that_are_no_arrays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    with ExitStack() as kept, pytest.raises(BadRequest, match=r"has no array 'y'; it has x \(\)"):
        read_arrays("--data", path, "y", kept)


def test_data_of_a_type_that_is_no_python(tmp_path: Path) -> None:
    """NumPy takes the part of a type before a comma for a Python literal, and lets the error through."""
    header = b"{'descr': '<,8', 'fortran_order': False, 'shape': (5,), }".ljust(117) + b"\n"
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(40))
    with ExitStack() as kept, pytest.raises(BadRequest, match=r"cannot be read as \.npy"):
        read_arrays("--data", path, None, kept)


def test_a_length_of_time_that_is_no_number() -> None:
    batch_norm = {"class_name": "BatchNormalization", "config": {"name": "bn"}}
    wrapper = {
        "class_name": "TimeDistributed",
        "config": {"name": "td", "layer": batch_norm},
        "build_config": {"input_shape": [None, {"a": 1}, 4]},
    }
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": [wrapper]}}
    assert updates_each_step(model, keras_3=True)["td", "bn"] is None
    wrapper["build_config"] = {"input_shape": [None, 7, 4]}
    assert updates_each_step(model, keras_3=True)["td", "bn"] == 7


def test_a_list_of_trainable_variables_that_is_damaged() -> None:
    meta = pb.MetaGraphDef()
    whole = pb.VariableDef(variable_name="w:0").SerializeToString()
    meta.collection_def["trainable_variables"].bytes_list.value.extend([b"\x0a\xff", whole])
    assert MetaGraph(meta).trainable == {"w"}
