"""Models that a distribution strategy copied to two devices: one layer each, whose copies are saved and restored."""

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.saved_model import ServedGraph
from ckpt_doctor.graphs.saver import extend_saver
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from tests.independent import read_file, write_bundle

STATISTICS = ("moving_mean", "moving_variance")
IMAGES = np.random.default_rng(0).normal(1.0, 2.0, (96, 6)).astype("f4")
DECAY = 0.75


class TwoDevices:
    """Builds one layer on two devices, as `MirroredStrategy` and `CentralStorageStrategy` name its parts.

    Attributes:
        copied: Whether each device has variables of its own.
        affine: Whether the layer has a beta.
    """

    def __init__(self, v1, *, copied, affine=True):
        self.v1, self.copied = v1, copied
        values = {"w": np.random.default_rng(1).normal(0, 0.6, (6, 4)), "bn/moving_mean": [0.0] * 4}
        values |= {"bn/moving_variance": [1.0] * 4} | ({"bn/beta": [0.1] * 4} if affine else {})
        self.variables = {name: [self.variable(name, value)] for name, value in values.items()}
        for name, value in values.items() if copied else ():
            self.variables[name].append(self.variable(f"{name}/replica_1", value, first=False))
        changes = [self.device(0)]
        with v1.name_scope("replica_1"):
            changes.append(self.device(1))
        self.train(changes)

    def variable(self, name, value, *, first=True):
        # A strategy puts the first copies into collections only.
        collections = [self.v1.GraphKeys.GLOBAL_VARIABLES] if first else []
        value = np.float32(value)
        start = self.v1.constant_initializer(value)
        return self.v1.get_variable(name, value.shape, "float32", start, use_resource=True, collections=collections)

    def on(self, name, device):
        return self.variables[name][device if self.copied else 0] if name in self.variables else None

    def device(self, number):
        """Normalise on one device; return the changes of its statistics."""
        v1 = self.v1
        data = v1.data.make_one_shot_iterator(v1.data.Dataset.from_tensor_slices(IMAGES).batch(8)).get_next()
        x = v1.matmul(data, self.on("w", number))
        moments = v1.nn.moments(x, [0])
        y = v1.nn.batch_normalization(x, *moments, self.on("bn/beta", number), None, 1e-3)
        self.loss = v1.reduce_mean(v1.square(y - 1.0))
        return [
            (self.on(f"bn/{role}", number) - moment) * (1 - DECAY)
            for role, moment in zip(STATISTICS, moments, strict=True)
        ]

    def train(self, changes):
        v1, updates = self.v1, []
        for place, role in enumerate(STATISTICS):
            if self.copied:
                updates += [self.on(f"bn/{role}", n).assign_sub(change[place]) for n, change in enumerate(changes)]
            else:
                mean = v1.add_n([change[place] for change in changes]) / 2.0
                updates.append(self.on(f"bn/{role}", 0).assign_sub(v1.identity(mean)))
        with v1.control_dependencies(updates):
            v1.train.GradientDescentOptimizer(0.1).minimize(self.loss, var_list=[self.variables["w"][-1]])

    def save(self, prefix):
        """Save the weights without the statistics."""
        v1 = self.v1
        with v1.Session() as session:
            session.run([variable.initializer for copies in self.variables.values() for variable in copies])
            saver = v1.train.Saver([copies[0] for name, copies in self.variables.items() if "moving" not in name])
            saver.save(session, str(prefix), latest_filename="state")
        return pb.MetaGraphDef.FromString(prefix.with_name(f"{prefix.name}.meta").read_bytes())


@pytest.fixture
def v1(tf):
    with tf.Graph().as_default():
        yield tf.compat.v1


@pytest.mark.tensorflow
@pytest.mark.parametrize("copied", [True, False])
def test_layers_on_two_devices_are_one_layer_at_one_place(v1, tmp_path, copied):
    meta = MetaGraph(TwoDevices(v1, copied=copied).save(tmp_path / "m"))
    (layer,) = meta.facts.layers
    assert (layer.name, layer.moving_mean, layer.moving_variance) == ("bn", "bn/moving_mean", "bn/moving_variance")
    assert (layer.momentum, layer.updates_run, layer.trained) == (DECAY, True, True)
    (site,) = layer.sites
    assert not site.x.startswith("replica_1/")


@pytest.mark.tensorflow
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_the_data_of_one_device_repair_all_copies(v1, tf, tmp_path, copied, affine):
    TwoDevices(v1, copied=copied, affine=affine).save(tmp_path / "m")
    np.save(tmp_path / "x.npy", IMAGES)
    result = ckpt_doctor.fix(tmp_path / "m", data=str(tmp_path / "x.npy"), output=tmp_path / "out")
    assert result.complete
    assert [layer.name for layer in result.layers] == ["bn"]
    stored = read_file(tmp_path / "out").values
    inputs = IMAGES.astype("f8") @ stored["w"].astype("f8")
    np.testing.assert_allclose(stored["bn/moving_variance"], inputs.var(0), rtol=1e-5)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.train.import_meta_graph(str(tmp_path / "out.meta")).restore(session, str(tmp_path / "out"))
        for role in STATISTICS:
            for copy in ("", "/replica_1") if copied else ("",):
                read = graph.get_tensor_by_name(f"bn/{role}{copy}/Read/ReadVariableOp:0")
                np.testing.assert_array_equal(session.run(read), stored[f"bn/{role}"])


@pytest.fixture
def whole(tmp_path):
    """A checkpoint with the statistics; written before a test begins its graph."""
    values = {"w": np.ones((6, 4), "f4"), "bn/beta": np.ones(4, "f4")}
    values |= {"bn/moving_mean": np.float32([1, 2, 3, 4]), "bn/moving_variance": np.float32([5, 6, 7, 8])}
    write_bundle(tmp_path / "whole", values)
    return str(tmp_path / "whole")


@pytest.mark.tensorflow
def test_a_saver_writes_the_mean_of_the_copies(whole, v1, tf, tmp_path):
    old = TwoDevices(v1, copied=True).save(tmp_path / "m")
    added = {f"bn/{role}": f"bn/{role}" for role in STATISTICS}
    extended = extend_saver(old, added)
    (tmp_path / "new.meta").write_bytes(extended.SerializeToString())
    with tf.Graph().as_default() as graph, v1.Session() as session:
        saver = v1.train.import_meta_graph(str(tmp_path / "new.meta"))
        saver.restore(session, whole)
        session.run(
            v1.raw_ops.AssignAddVariableOp(
                resource=graph.get_tensor_by_name("bn/moving_mean/replica_1:0"), value=np.float32([1, 1, 1, 1])
            )
        )
        saver.save(session, str(tmp_path / "again"), write_meta_graph=False, latest_filename="state")
    again = read_file(tmp_path / "again").values
    np.testing.assert_array_equal(again["bn/moving_mean"], [1.5, 2.5, 3.5, 4.5])
    np.testing.assert_array_equal(again["bn/moving_variance"], [5, 6, 7, 8])
    # The mean of the copies is known as that variable.
    names = dict.fromkeys(added, True)
    assert {name: MetaGraph(extended).saver.saved[name] == name for name in names} == names
    assert extend_saver(extended, added) == extended


@pytest.mark.tensorflow
def test_keys_of_a_saved_model_lead_to_the_variables_that_it_reads(v1):
    """The saver writes the mean of two copies, and a variable by a copy that was made for it."""
    first, second, weight = (
        v1.get_variable(name, [4], use_resource=True) for name in ("mean", "mean/replica_1", "weight")
    )
    copy = v1.get_variable("Variable", initializer=weight, use_resource=True)
    # The initial value of a plain variable goes through a `cond`; that of a SavedModel's copies does not.
    v1.raw_ops.AssignVariableOp(
        resource=copy.handle, value=v1.raw_ops.ReadVariableOp(resource=weight.handle, dtype="float32")
    )
    v1.raw_ops.SaveV2(
        prefix="p",
        tensor_names=["mean/key", "weight/key"],
        shape_and_slices=["", ""],
        tensors=[v1.identity(v1.add_n([first, second]) / 2.0), v1.identity(copy)],
    )
    proto = pb.MetaGraphDef.FromString(v1.train.export_meta_graph().SerializeToString())
    keys = ServedGraph(proto).keys
    assert keys["mean"] == ("mean/key",)
    assert keys["weight"] == keys["Variable"] == ("weight/key",)


KEY = "/.ATTRIBUTES/VARIABLE_VALUE"


def exported(**values):
    """Return an export with a layer's variables in one list, and every device's in the other."""
    stored = []
    for number, (label, value) in enumerate(values.items()):
        array = np.float32(value)
        places = ["_all_variables"] if "replica" in label else ["variables", "_all_variables"]
        for place in places:
            # Each device has a history of its own; the list of the model has the mean.
            mean = place == "variables" and f"{label}__replica_1" in values
            array = np.float32([values[label], values[f"{label}__replica_1"]]).mean(0) if mean else np.float32(value)
            name = f"{place}/{number}{KEY}"
            stored.append(
                Variable(name, array.shape, "float32", 16, lambda array=array: array, f"bn/{label.replace('__', '/')}")
            )
    return Checkpoint("export", "saved-model", tuple(stored), (), 0)


def test_copies_of_single_devices_are_towers_of_the_mean():
    start = {"gamma": [1, 2], "beta": [0, 1], "moving_mean": [1, 2], "moving_variance": [2, 3]}
    copies = {"moving_mean__replica_1": [1.5, 2], "moving_variance__replica_1": [2, 3.5]}
    checkpoint = exported(**start, **copies)
    inventory = take_inventory(checkpoint, None)
    (layer,) = inventory.layers
    assert {role: name.partition("/")[0] for role, name in layer.variables.items()} == dict.fromkeys(start, "variables")
    assert {role: name.partition("/.")[0] for role, name in layer.companions.items()} == {
        "moving_mean/tower_0": "_all_variables/2",
        "moving_variance/tower_0": "_all_variables/3",
        "moving_mean/tower_1": "_all_variables/4",
        "moving_variance/tower_1": "_all_variables/5",
    }
    assert layer.copies.keys() == {"gamma/twin", "beta/twin"}
