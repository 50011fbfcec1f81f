"""How often a training step updates the statistics, and whether the step counter of the file counts those updates.

A counter proves how many updates there were at most only if one op does all of it: it applies every gradient, updates
the statistics, and adds one to the counter. A switch that was not always fed makes the updates fewer, and the averages
colder, never warmer. A second training op, a branch that the data decide, a loop, or updates that the forward pass runs
by itself (`updates_collections=None`, which an evaluation runs too) leave the number open. So does a saver that
restores statistics without the counter: it may have brought those of another training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from ckpt_doctor.graphs.graph import ASSIGN_OPS, PASS_THROUGH, VARIABLE_OPS, Graph, split_tensor
from ckpt_doctor.graphs.loops import nodes_in_branches, nodes_in_loops
from ckpt_doctor.graphs.sites import find_sites
from ckpt_doctor.graphs.updates import gradient_updates

# TensorFlow's own counter of training steps (tensorflow/python/training/training_util.py: `create_global_step`).
_COUNTER = re.compile(r"(^|/)global_step$")
_ADDS = frozenset({"AssignAdd", "AssignAddVariableOp"})
# What holds assignments of its own.
_CALLS = frozenset({"If", "StatelessIf"})
_RESTORES = frozenset({"RestoreV2", "Restore", "RestoreSlice"})


class UpdateCounts:
    """What all layers of one graph ask, computed once.

    Args:
        graph: The whole graph: what a training op waits for.
        training: The graph with its switches at training: what runs only in a loop or a branch, and what is in front.
    """

    def __init__(self, graph: Graph, training: Graph) -> None:
        self._graph = graph
        self._training = training

    def each_step(self, updates: Iterable[Sequence[str]]) -> int | None:
        """Return how often a training step updates a statistic; None where a loop does, as often as it turns.

        Towers and calls of a shared layer have an update each, and those count that one training op waits for. Where
        no training op waits for any, a script runs them by hand, and all count.

        Args:
            updates: For each statistic of a layer, the names of the nodes that update it, in the whole graph.
        """
        most = 1
        for nodes in updates:
            if not self._in_loops.isdisjoint(nodes):
                return None
            if len(nodes) > 1:
                together = max((len(run.intersection(nodes)) for run in self._runs), default=0)
                most = max(most, together or len(nodes))
        return most

    def counted(self, updates: Iterable[Sequence[str]]) -> bool:
        """Return whether the graph proves that there were no more updates of a layer than the counter says.

        Args:
            updates: For each statistic of the layer, the names of the nodes that update it, in the whole graph.
        """
        nodes = {name for names in updates for name in names}
        if not nodes or nodes & (self._in_loops | self._in_branches):
            return False
        return any(nodes <= step for step in self._steps) and not nodes & self._in_front

    def run_together(self, updates: Iterable[Iterable[str]]) -> bool:
        """Return whether one node waits for a gradient update and for an update of each statistic.

        Whatever waits for both, something that nothing waits for waits for them too; only that is looked at, since
        each update of a deep net has nearly the whole graph behind it.

        Args:
            updates: For each statistic, the names of the nodes that update it, in the whole graph.
        """
        sets = [set(nodes) for nodes in updates]
        return any(all(not run.isdisjoint(nodes) for nodes in sets) for run in self._runs)

    def is_loaded(self, variable: str) -> bool:
        """Return whether the graph initialises a variable from a checkpoint: `init_from_checkpoint`, a warm start.

        The file to read is a constant there (tensorflow/python/training/checkpoint_utils.py:
        `_set_checkpoint_initializer`), and fed to a saver.
        """
        return any(self._graph.constant(prefix) is not None for prefix in self._sources(variable))

    def comes_without_counter(self, variable: str) -> bool:
        """Return whether a saver of the graph restores a variable and does not restore the counter."""
        with_counter = {prefix for counter in self._counters for prefix in self._sources(counter)}
        return not set(self._sources(variable)) <= with_counter

    def _sources(self, variable: str) -> Iterator[str]:
        """Yield the tensors that name the files which a variable is restored from."""
        for node in self._graph.assignments.get(variable, ()):
            inputs = self._graph.inputs(node)
            maker = self._graph.producer(self._graph.source(inputs[1])) if len(inputs) > 1 else None
            if maker is not None and maker.op in _RESTORES and self._graph.inputs(maker):
                yield self._graph.inputs(maker)[0]

    @cached_property
    def _counters(self) -> list[str]:
        return [node.name for node in self._graph.of_op(VARIABLE_OPS) if _COUNTER.search(node.name)]

    @cached_property
    def _steps(self) -> list[set[str]]:
        """For each op that applies all gradients and adds one to the only counter: the nodes that it runs."""
        if len(self._counters) != 1:
            return []
        additions = [node for node in self._graph.assignments.get(self._counters[0], ()) if node.op in _ADDS]
        if len(additions) != 1 or self._graph.scalar(self._graph.inputs(additions[0])[1]) != 1:
            return []
        waiting = self._graph.descendants([additions[0].name])
        # Whatever is run, it is one of those that nothing waits for, or a part of one.
        last = [name for name in waiting if not any(other in waiting for other in self._graph.dependents.get(name, ()))]
        runs = [self._graph.ancestors([name]) for name in last]
        gradients = gradient_updates(self._graph)
        return [run for run in runs if gradients and gradients <= run]

    @cached_property
    def _runs(self) -> list[set[str]]:
        """For each op that a script may run to train: the assignments in it."""
        assigning = {node.name for node in self._graph.of_op(ASSIGN_OPS | _CALLS)}
        waiting = self._graph.descendants(gradient_updates(self._graph))
        return [self._graph.ancestors([name]) & assigning for name in waiting if not self._graph.dependents.get(name)]

    @cached_property
    def _in_front(self) -> set[str]:
        """What a forward pass waits for, and runs whenever it is evaluated: all that outputs of batch norm need."""
        outputs: set[str] = set()
        frontier = [found.site.y for found in find_sites(self._training)]
        while frontier:
            tensor = frontier.pop()
            outputs.add(split_tensor(tensor)[0])
            for node, _ in self._training.consumers.get(tensor, ()):
                if node.op in PASS_THROUGH and node.name not in outputs:
                    frontier.append(f"{node.name}:0")
        return self._training.ancestors(outputs) | self._graph.ancestors(outputs)

    @cached_property
    def _in_loops(self) -> frozenset[str]:
        return nodes_in_loops(self._training)

    @cached_property
    def _in_branches(self) -> frozenset[str]:
        return nodes_in_branches(self._training)
