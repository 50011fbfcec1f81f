"""What a graph proves of the number of updates, on graphs that TensorFlow makes, trains and saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.graphs.facts import LayerFacts
from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.update_counts import UpdateCounts
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

STEPS, DECAY, CHANNELS = 20, 0.99, 8
SHARE = DECAY**STEPS  # 0.818


@dataclass
class Net:
    """Two layers that are trained with the moments of their batches, unless the flag is fed otherwise."""

    v1: Any
    x: Any
    flag: Any
    loss: Any
    outputs: Any
    updates: list[Any]
    steps: Any

    def minimised(self, loss: Any = None) -> Any:
        optimizer = self.v1.train.GradientDescentOptimizer(0.01)
        return optimizer.minimize(self.loss if loss is None else loss, global_step=self.steps)

    def after_updates(self) -> Any:
        with self.v1.control_dependencies(self.updates):
            return self.minimised()


def normalised(v1: Any, h: Any, name: str, flag: Any, updates: list[Any], *, in_place: bool = False) -> Any:
    """Batch norm by hand, as in many programs of TensorFlow 1."""
    with v1.variable_scope(name, reuse=v1.AUTO_REUSE):
        zeros, ones = v1.zeros_initializer(), v1.ones_initializer()
        mean = v1.get_variable("moving_mean", [CHANNELS], initializer=zeros, trainable=False, use_resource=False)
        variance = v1.get_variable("moving_variance", [CHANNELS], initializer=ones, trainable=False, use_resource=False)
        gamma = v1.get_variable("gamma", [CHANNELS], initializer=ones, use_resource=False)
        beta = v1.get_variable("beta", [CHANNELS], initializer=zeros, use_resource=False)
        moments = v1.nn.moments(h, [0])
        mine = [
            v1.assign_sub(own, (own - new) * (1 - DECAY)) for own, new in zip((mean, variance), moments, strict=True)
        ]
        updates += mine
        taken = (
            [v1.where(flag, new, own) for own, new in zip((mean, variance), moments, strict=True)]
            if flag is not None
            else moments
        )
        if in_place:
            with v1.control_dependencies(mine):
                taken = [v1.identity(one) for one in taken]
        return v1.nn.batch_normalization(h, *taken, beta, gamma, 1e-3)


def net(v1: Any, *, switch: bool = False, calls: int = 1, in_place: bool = False) -> Net:
    x = v1.placeholder("float32", [None, CHANNELS], name="x")
    flag = v1.placeholder_with_default(False, [], name="is_training") if switch else None
    updates: list[Any] = []
    total = 0.0
    h = x
    for name in ("a", "b"):
        kernel = v1.get_variable(f"{name}/kernel", [CHANNELS, CHANNELS], use_resource=False)
        h = v1.matmul(h, kernel)
        outputs = [normalised(v1, h, f"{name}/bn", flag, updates, in_place=in_place) for _ in range(calls)]
        h = v1.nn.relu(v1.add_n(outputs))
        total += v1.reduce_mean(v1.square(h - 1))
    steps = v1.get_variable("global_step", [], "int64", v1.zeros_initializer(), trainable=False, use_resource=False)
    return Net(v1, x, flag, total, h, updates, steps)


Build = Callable[[Any], Net]
Step = Callable[[Net], list[Any]]


def nothing(made: Net) -> None:
    """Prepare nothing."""


def described(build: Build, step: Step, prepare: Callable[[Net], Any] = nothing) -> LayerFacts:
    """Return what the graph of a net says of its two layers, which is the same of both."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Graph().as_default():
        made = build(v1)
        step(made)
        prepare(made)
        meta = v1.train.export_meta_graph(saver_def=v1.train.Saver().as_saver_def())
    first, second = MetaGraph.parse(meta.SerializeToString()).facts.layers
    assert (first.counted, first.updates, first.initial) == (second.counted, second.updates, second.initial)
    return first


def trained(build: Build, step: Step, path: Path) -> None:
    """Train a net for some steps, and save it as a bundle and as a SavedModel."""
    import tensorflow as tf

    v1 = tf.compat.v1
    random = np.random.default_rng(0)
    with v1.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        made = build(v1)
        runs = step(made)
        saver = v1.train.Saver()
        session.run(v1.global_variables_initializer())
        for _ in range(STEPS):
            feed = {made.x: random.normal(0, 1, (32, CHANNELS))}
            for run in runs:
                session.run(run, feed if made.flag is None else feed | {made.flag: True})
        saver.save(session, str(path / "model.ckpt"))
        v1.saved_model.simple_save(session, str(path / "served"), {"x": made.x}, {"y": made.outputs})


def found_in(path: Path) -> set[tuple[str, str, str]]:
    (checkpoint,) = ckpt_doctor.scan(path).checkpoints
    return {(one.rule, one.severity, one.certainty) for one in checkpoint.findings}


def plain(made: Net) -> list[Any]:
    return [made.after_updates()]


@pytest.mark.parametrize("switch", [False, True])
def test_a_cold_average_that_its_graph_proves_is_an_error_in_every_container(tmp_path, switch):
    trained(lambda v1: net(v1, switch=switch), plain, tmp_path)
    assert found_in(tmp_path / "model.ckpt") == {("BN202", "error", "proven")}
    served = found_in(tmp_path / "served")
    # A graph without a switch serves with the moments of the batch.
    assert served == {("BN202", "error", "proven")} | (set() if switch else {("BN303", "error", "proven")})


def test_what_never_ran_is_an_error_in_every_container(tmp_path):
    trained(net, lambda made: [made.minimised()], tmp_path)
    never = {("BN201", "error", "proven"), ("BN302", "error", "proven")}
    assert found_in(tmp_path / "model.ckpt") == never
    assert found_in(tmp_path / "served") == never | {("BN303", "error", "proven")}


def test_debias_takes_exactly_the_start_out_of_what_is_proven(tmp_path):
    """Without data and without being asked: against averages that start at 0, divided by what they have seen."""
    trained(net, plain, tmp_path)
    before = {one.name: one.read() for one in open_checkpoint(str(tmp_path / "model.ckpt")).variables}
    result = ckpt_doctor.fix(tmp_path / "model.ckpt", output=tmp_path / "out")
    assert [layer.method for layer in result.layers] == ["debias", "debias"]
    after = {one.name: one.read() for one in open_checkpoint(str(tmp_path / "out")).variables}
    for layer in ("a/bn", "b/bn"):
        mean, variance = (before[f"{layer}/{role}"].astype(np.float64) for role in ("moving_mean", "moving_variance"))
        np.testing.assert_allclose(after[f"{layer}/moving_mean"], mean / (1 - SHARE), rtol=1e-5)
        np.testing.assert_allclose(after[f"{layer}/moving_variance"], (variance - SHARE) / (1 - SHARE), rtol=1e-5)


def grouped(made: Net) -> list[Any]:
    return [made.v1.group(made.minimised(), *made.updates)]


def by_hand(made: Net) -> list[Any]:
    return [[made.minimised(), *made.updates]]


def accumulated(made: Net) -> list[Any]:
    """Updates wait for a small step; the counter is that of the large ones."""
    kept = made.v1.get_variable("kept", [], initializer=made.v1.zeros_initializer(), trainable=False)
    with made.v1.control_dependencies(made.updates):
        small = made.v1.assign_add(kept, made.loss)
    return [small, small, made.minimised()]


def two_training_ops(made: Net) -> list[Any]:
    """A second op trains too, runs the updates too, and counts nothing."""
    first = made.after_updates()
    with made.v1.control_dependencies(made.updates):
        return [first, made.v1.train.GradientDescentOptimizer(0.01).minimize(made.loss)]


def counted_twice(made: Net) -> list[Any]:
    return [made.v1.group(made.after_updates(), made.v1.assign_add(made.steps, 1))]


@pytest.mark.parametrize(
    ("build", "step", "counted", "updates"),
    [
        (net, plain, True, 1),
        (net, grouped, True, 1),
        (net, by_hand, False, 1),
        (net, accumulated, False, 1),
        (net, two_training_ops, False, 1),
        (net, counted_twice, False, 1),
        (lambda v1: net(v1, calls=3), plain, True, 3),
        # An evaluation runs them too.
        (lambda v1: net(v1, in_place=True), lambda made: [made.minimised()], False, 1),
    ],
)
def test_one_op_must_do_all_of_it(build, step, counted, updates):
    said = described(build, step)
    assert (said.counted, said.updates) == (counted, updates)


def test_a_saver_that_leaves_the_counter_out_may_have_loaded_the_statistics():
    def of_weights(made: Net) -> None:
        made.v1.train.Saver([one for one in made.v1.global_variables() if one.op.name != "global_step"])

    assert not described(net, plain, of_weights).counted


def test_a_second_saver_of_all_says_nothing_against_the_counter():
    assert described(net, plain, lambda made: made.v1.train.Saver()).counted


def test_a_warm_start_is_not_judged_by_the_counter(tmp_path):
    """`init_from_checkpoint` makes a checkpoint the initial value; what the statistics held is in no file."""
    trained(net, plain, tmp_path)

    def from_the_first(made: Net) -> None:
        names = [one.op.name for one in made.v1.global_variables() if one.op.name != "global_step"]
        made.v1.train.init_from_checkpoint(str(tmp_path / "model.ckpt"), {name: name for name in names})

    assert described(net, plain, from_the_first).initial is None
    assert described(net, plain).initial == "0/1"


def wired(*lines: str) -> UpdateCounts:
    """Make a graph of lines like `name op input input`; constants are 1."""
    proto = pb.GraphDef()
    for line in lines:
        name, op, *inputs = line.split()
        node = proto.node.add(name=name, op=op, input=inputs)
        if op == "Const":
            node.attr["value"].tensor.dtype = 1
            node.attr["value"].tensor.float_val.append(1)
    graph = Graph(proto)
    return UpdateCounts(graph, graph)


TRAINING = (
    "kernel VariableV2",
    "statistic VariableV2",
    "global_step VariableV2",
    "one Const",
    "apply ApplyGradientDescent kernel one one",
)


def test_a_step_that_does_all_of_it_is_counted():
    counts = wired(*TRAINING, "update AssignSub statistic one", "count AssignAdd global_step one ^apply ^update")
    assert counts.counted([["update"]])
    assert counts.each_step([["update"]]) == 1


def test_an_update_in_a_branch_that_the_data_decide_is_not():
    branch = ("branch Switch one kernel", "update AssignSub statistic branch", "merge Merge update branch:1")
    assert not wired(*TRAINING, *branch, "count AssignAdd global_step one ^apply ^merge").counted([["update"]])


def test_a_loop_updates_as_often_as_it_turns():
    loop = (
        "enter Enter one",
        "turn Merge enter next",
        "condition LoopCond turn",
        "switch Switch turn condition",
        "update AssignSub statistic switch:1",
        "next NextIteration update",
        "exit Exit switch",
    )
    counts = wired(*TRAINING, *loop, "count AssignAdd global_step one ^apply ^exit")
    assert counts.each_step([["update"]]) is None
    assert not counts.counted([["update"]])


@pytest.mark.parametrize(
    "count",
    [
        "count AssignAdd global_step one ^apply",  # The updates wait for nobody.
        "count AssignAdd global_step one ^update",  # The counter counts something else.
        "count Assign global_step one ^apply ^update",
        "count AssignAdd global_step kernel ^apply ^update",
        "count AssignAdd kernel one ^apply ^update",
    ],
)
def test_any_other_wiring_leaves_the_number_open(count):
    assert not wired(*TRAINING, "update AssignSub statistic one", count).counted([["update"]])


def test_two_counters_leave_the_number_open():
    more = (
        "update AssignSub statistic one",
        "count AssignAdd global_step one ^apply ^update",
        "d/global_step VariableV2",
    )
    assert not wired(*TRAINING, *more).counted([["update"]])


def test_of_several_towers_those_count_that_the_training_op_waits_for():
    towers = [f"update_{number} AssignSub statistic one" for number in range(3)]
    counts = wired(*TRAINING, *towers, "count AssignAdd global_step one ^apply ^update_0 ^update_1")
    assert counts.each_step([["update_0", "update_1", "update_2"]]) == 2
    assert not counts.counted([["update_0", "update_1", "update_2"]])
    # Run by hand, all of them.
    assert wired(*TRAINING, *towers).each_step([["update_0", "update_1", "update_2"]]) == 3
