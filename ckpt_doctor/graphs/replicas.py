"""The copies of a model that a distribution strategy makes, one for each device.

The first copy has the names that the model function gave. What the others compute stands in a scope `replica_K`, and
their variables are called `NAME/replica_K`; a file holds the first one's, or the mean of all where each copy keeps its
own (`SyncOnReadVariable`: the statistics of batch norm).
Source: tensorflow/python/distribute/mirrored_strategy.py, `_create_mirrored_variable`, `_MirroredReplicaThread`;
values.py, `_SyncOnReadSaveable`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ckpt_doctor.graphs.facts import Site
from ckpt_doctor.graphs.graph import VARIABLE_OPS, Graph

_VARIABLE = re.compile(r"/replica_\d+$")
_SCOPE = re.compile(r"(?<![^/])replica_\d+/")


def first_variable(graph: Graph, variable: str) -> str:
    """Return the variable's node that `variable` is a copy of; itself where it is none."""
    first = _VARIABLE.sub("", variable)
    node = graph.nodes.get(first)
    return first if node is not None and node.op in VARIABLE_OPS else variable


def copies_of(graph: Graph, variable: str) -> list[str]:
    """Return the nodes of the other devices' copies of a variable."""
    found: list[str] = []
    while (name := f"{variable}/replica_{len(found) + 1}") in graph.nodes:
        found.append(name)
    return found if all(graph.nodes[name].op in VARIABLE_OPS for name in found) else []


def averaged_variable(graph: Graph, tensor: str) -> str | None:
    """Return the variable whose copies `tensor` is the mean of, or None: what a saver of such variables writes."""
    quotient = graph.producer(graph.source(tensor))
    if quotient is None or quotient.op != "RealDiv" or graph.scalar(graph.inputs(quotient)[1]) is None:
        return None
    total = graph.producer(graph.source(graph.inputs(quotient)[0]))
    if total is None or total.op != "AddN":
        return None
    read = [graph.variable(name) for name in graph.inputs(total)]
    names = {None if name is None else first_variable(graph, name) for name in read}
    return names.pop() if len(names) == 1 else None


def without_copies(sites: Sequence[Site]) -> list[Site]:
    """Return the sites of one layer without those of other devices, which do to their data what the first does."""
    inputs = {site.x for site in sites}
    return [site for site in sites if (first := _SCOPE.sub("", site.x, count=1)) == site.x or first not in inputs]
