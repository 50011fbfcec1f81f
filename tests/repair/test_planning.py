"""New statistics to stored values: names, types, shapes, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ckpt_doctor.analysis import analyse
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.repair.planning import LayerPlan, changes_of
from ckpt_doctor.rules._examples import example
from tests.catalogue import BY_NAME
from tests.repair.layers import checkpoint_of, layer_with

MEAN, VARIANCE = np.array([1.0, -2.0, 3.0]), np.array([0.25, 1.0, 4.0])


def plan_for(layer, method="layerwise", **values):
    return LayerPlan(layer, method, {"moving_mean": MEAN, "moving_variance": VARIANCE} | values)


def planned(source, *plans, meta=None):
    changes = changes_of(source, meta, plans)
    return {name: (value.dtype.name, value.shape, value.reshape(-1).tolist()) for name, value in changes.values.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_values_have_the_type_and_shape_of_what_is_stored(dtype):
    zeros = np.zeros(3, dtype)
    source = checkpoint_of(bn__moving_mean=zeros, bn__moving_variance=zeros.reshape(1, 1, 3), bn__gamma=zeros)
    assert planned(source, plan_for(example())) == {
        "bn/moving_mean": (dtype, (3,), MEAN.tolist()),
        "bn/moving_variance": (dtype, (1, 1, 3), VARIANCE.tolist()),
    }


def test_other_roles_of_a_plan_are_written_too():
    source = checkpoint_of(bn__moving_mean=MEAN, bn__moving_variance=MEAN, bn__gamma=MEAN, bn__beta=MEAN)
    values = planned(source, plan_for(example(), "copy", gamma=MEAN * 2))
    assert values["bn/gamma"][2] == [2.0, -4.0, 6.0]
    assert set(values) == {"bn/moving_mean", "bn/moving_variance", "bn/gamma"}


def test_a_role_without_a_name_is_not_written():
    layer = example(missing=["gamma"])
    source = checkpoint_of(bn__moving_mean=MEAN, bn__moving_variance=MEAN)
    assert set(planned(source, plan_for(layer, gamma=MEAN))) == {"bn/moving_mean", "bn/moving_variance"}


def test_what_the_file_lacks_is_like_its_neighbour():
    layer = example(missing=["moving_mean", "moving_variance"])
    source = checkpoint_of(bn__gamma=np.zeros((1, 1, 1, 3), np.float16), bn__beta=np.zeros(3))
    assert planned(source, plan_for(layer)) == {
        "bn/moving_mean": ("float16", (1, 1, 1, 3), MEAN.tolist()),
        "bn/moving_variance": ("float16", (1, 1, 1, 3), VARIANCE.tolist()),
    }


def test_without_a_neighbour_it_is_a_float32_vector():
    layer = example(missing=["moving_mean", "moving_variance", "gamma", "beta"])
    assert planned(checkpoint_of(), plan_for(layer))["bn/moving_mean"] == ("float32", (3,), MEAN.tolist())


def test_a_neighbour_of_another_size_gives_its_type_only():
    """A counter that is written beside a gamma of three channels is a scalar still."""
    layer = layer_with({"moving_mean/local_step": None, "moving_mean/shadow": None}, momentum=0.5)
    source = checkpoint_of(
        bn__moving_mean=np.zeros((1, 3)), bn__moving_variance=np.zeros(3), bn__gamma=np.zeros((1, 3)), bn__beta=MEAN
    )
    values = planned(source, plan_for(layer))
    assert values["bn/moving_mean/local_step"] == ("float64", (), [24.0])
    assert values["bn/moving_mean/shadow"] == ("float64", (1, 3), MEAN.tolist())


def test_one_channel_beside_a_scalar_counter():
    layer = layer_with({"moving_mean/local_step": None}, momentum=0.5, channels=1)
    source = checkpoint_of(bn__moving_mean=[0.0], bn__moving_variance=[0.0], bn__gamma=[[0.0]], bn__beta=[0.0])
    plan = LayerPlan(layer, "layerwise", {"moving_mean": MEAN[:1], "moving_variance": VARIANCE[:1]})
    assert planned(source, plan)["bn/moving_mean/local_step"][1] == ()


def test_companions_in_the_file_are_written_with_what_is_estimated():
    layer = layer_with({"moving_mean/shadow": 0, "moving_mean/twin": 0, "moving_mean/biased": 0}, momentum=0.5)
    stored = {name.replace("/", "__"): np.zeros(3) for name in (*layer.variables.values(), *layer.companions.values())}
    for method in ("layerwise", "training", "debias"):
        assert set(planned(checkpoint_of(**stored), plan_for(layer, method))) == {
            "bn/moving_mean",
            "bn/moving_variance",
            *layer.companions.values(),
        }


def test_a_copy_leaves_the_history_beside_it_but_not_other_copies():
    layer = layer_with(
        {"moving_mean/shadow": 0, "moving_mean/twin": 0, "moving_mean/tower_1": 0, "moving_variance/biased": None},
        momentum=0.5,
    )
    stored = {name.replace("/", "__"): np.zeros(3) for name in (*layer.variables.values(), *layer.companions.values())}
    del stored["bn__moving_variance__biased"]
    assert set(planned(checkpoint_of(**stored), plan_for(layer, "copy"))) == {
        "bn/moving_mean",
        "bn/moving_variance",
        "bn/moving_mean/twin",
        "bn/moving_mean/tower_1",
        # What is missing has no history.
        "bn/moving_variance/biased",
    }


@pytest.mark.parametrize("counter", ["local_step", "counter"])
def test_a_stored_counter_does_not_go_back(counter):
    layer = layer_with({f"moving_mean/{counter}": 0}, momentum=0.5)
    stored = {name.replace("/", "__"): np.zeros(3) for name in layer.variables.values()}
    for steps, expected in (([5000], 5000.0), (5000, 5000.0), (3, 24.0)):
        source = checkpoint_of(**stored, **{f"bn__moving_mean__{counter}": np.array(steps, np.int64)})
        name = f"bn/moving_mean/{counter}"
        assert planned(source, plan_for(layer))[name] == ("int64", np.shape(steps), [expected])


def test_what_only_ends_like_a_counter_is_none():
    layer = layer_with({"moving_mean/local_step": 0, "moving_mean/step": 0}, momentum=0.5)
    stored = {name.replace("/", "__"): np.zeros(3) for name in layer.variables.values()}
    source = checkpoint_of(**stored, bn__moving_mean__local_step=0.0, bn__moving_mean__step=np.array(["a"]))
    assert planned(source, plan_for(layer))["bn/moving_mean/local_step"][2] == [24.0]


def test_another_number_of_channels_is_refused():
    source = checkpoint_of(bn__moving_mean=np.zeros(4), bn__moving_variance=np.zeros(4))
    with pytest.raises(
        RepairRefused, match=r"layer bn: its input has 3 channels, but bn/moving_mean has the shape \[4"
    ):
        changes_of(source, None, [plan_for(example())])


@pytest.mark.parametrize("value", [1e6, np.nan, np.inf])
def test_what_the_type_cannot_hold_is_refused(value):
    source = checkpoint_of(bn__moving_mean=np.zeros(3, np.float16), bn__moving_variance=np.zeros(3, np.float16))
    with pytest.raises(RepairRefused, match=r"bn/moving_mean: the new value .* does not fit its type float16"):
        changes_of(source, None, [plan_for(example(), moving_mean=np.array([1, value, 2]))])


def test_the_largest_half_fits():
    source = checkpoint_of(bn__moving_mean=np.zeros(3, np.float16), bn__moving_variance=np.zeros(3, np.float16))
    plan = plan_for(example(), moving_mean=np.full(3, 65504.0))
    assert planned(source, plan)["bn/moving_mean"][2] == [65504.0] * 3


def test_several_layers_are_planned_together():
    names = ("a", "b")
    stored = {f"{name}__{role}": np.zeros(3) for name in names for role in ("moving_mean", "moving_variance")}
    assert len(planned(checkpoint_of(**stored), *(plan_for(example(name)) for name in names))) == 4
    assert planned(checkpoint_of()) == {}


@pytest.fixture(scope="module")
def trainable_only():
    """A save of TensorFlow 1.15 without its statistics, and the graph that names them."""
    checkpoint = open_checkpoint(BY_NAME["tf1_layers/trainable/model.ckpt-400"].path)
    return checkpoint, MetaGraph.parse(checkpoint.descriptions.meta_graph), analyse(checkpoint).inventory.layers


def plans_of(layers):
    return [
        LayerPlan(
            layer,
            "layerwise",
            {"moving_mean": np.zeros(layer.channels), "moving_variance": np.ones(layer.channels)},
        )
        for layer in layers
    ]


def test_the_graph_gives_type_and_shape_of_what_is_added_and_its_saver_takes_it(trainable_only):
    checkpoint, meta, layers = trainable_only
    changes = changes_of(checkpoint, meta, plans_of(layers))
    missing = {name for layer in layers for name in layer.absent.values()}
    assert missing
    assert set(changes.values) == missing
    assert {(value.dtype, value.ndim) for value in changes.values.values()} == {(np.dtype("float32"), 1)}
    after = MetaGraph.parse(changes.meta_graph)
    assert set(after.saver.saved) == set(meta.saver.saved) | missing


def test_without_a_graph_or_additions_there_is_no_new_graph(trainable_only):
    checkpoint, meta, layers = trainable_only
    assert changes_of(checkpoint, None, plans_of(layers)).meta_graph is None
    assert changes_of(checkpoint, meta, []).meta_graph is None
    full = open_checkpoint(BY_NAME["tf1_layers/full/model.ckpt-400"].path)
    whole = MetaGraph.parse(full.descriptions.meta_graph)
    assert changes_of(full, whole, plans_of(analyse(full).inventory.layers)).meta_graph is None


def test_the_type_in_the_graph_counts(trainable_only):
    """Where both graph and neighbours speak, the graph is the one that says how the variable is restored."""
    checkpoint, meta, layers = trainable_only
    halves = tuple(replace(variable, dtype="float16") for variable in checkpoint.variables)
    values = changes_of(replace(checkpoint, variables=halves), meta, plans_of(layers)).values
    assert {value.dtype for value in values.values()} == {np.dtype("float32")}
    values = changes_of(replace(checkpoint, variables=halves), None, plans_of(layers)).values
    assert {value.dtype for value in values.values()} == {np.dtype("float16")}


def graph_saying(shape, dtype="float32"):
    """Stand in for a graph that declares every variable so."""
    names = {"node_mean": "bn/moving_mean", "node_variance": "bn/moving_variance"}
    return SimpleNamespace(saved_names=names, variable_type=lambda node: (dtype, shape), saver=None)


@pytest.mark.parametrize(
    ("declared", "shape"), [((1, 1, 1, 3), (1, 1, 1, 3)), ((3,), (3,)), ((-1,), (3,)), ((1, -1), (3,))]
)
def test_the_shape_in_the_graph_counts_where_it_is_whole(declared, shape):
    layer = example(missing=["moving_mean", "moving_variance"])
    source = checkpoint_of(bn__gamma=np.zeros((1, 3), np.float16), bn__beta=np.zeros(3))
    values = planned(source, plan_for(layer), meta=graph_saying(declared))
    assert values["bn/moving_mean"] == ("float32", shape, MEAN.tolist())


def test_a_shape_without_room_is_refused():
    layer = example(missing=["moving_mean", "moving_variance"])
    with pytest.raises(RepairRefused, match=r"bn/moving_mean has the shape \[0\]"):
        changes_of(checkpoint_of(), graph_saying((0,)), [plan_for(layer)])


def test_what_the_graph_does_not_name_is_like_its_neighbour():
    layer = layer_with({"moving_mean/twin": None}, missing=["moving_mean", "moving_variance"])
    source = checkpoint_of(bn__gamma=np.zeros((1, 3), np.float16), bn__beta=np.zeros(3))
    values = planned(source, plan_for(layer), meta=graph_saying((3,)))
    assert values["bn/moving_mean/twin"][:2] == ("float16", (1, 3))
