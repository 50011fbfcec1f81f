"""The plan of a measurement: which run computes what, and which tensors live on between runs.

A site's level is the longest chain of sites before it. Every node that depends on data has the level of the latest
thing that it waits for, so that each runs once. A loop or a branch has one level, because its tensors can be neither
fetched nor fed. A tensor that no run can hand to another, such as the list of steps that an RNN goes through, is made
again from what can.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ckpt_doctor.graphs.cut import CutSite
from ckpt_doctor.graphs.graph import Graph, split_tensor, tensor_name
from ckpt_doctor.graphs.loops import units


@dataclass(frozen=True)
class Level:
    """One run.

    Attributes:
        inputs: Inputs of the model that it reads.
        feeds: Live tensors that it reads.
        sites: Indices of the sites whose input it computes.
        fetches: Tensors that it gives: those that later runs read, and the inputs of its sites.
        kept: The former of them.
        dropped: Live tensors that no later run reads.
        normalised: Indices of the sites whose statistics it reads.
    """

    inputs: tuple[str, ...]
    feeds: tuple[str, ...]
    sites: tuple[int, ...]
    fetches: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    normalised: tuple[int, ...] = ()


def plan_levels(
    graph: Graph,
    inputs: Sequence[str],
    sites: Sequence[CutSite],
    measured: Sequence[int],
    awaited: Sequence[int],
    *,
    pooled: bool,
    unheld: Collection[str] = (),
) -> list[Level]:
    """Return the runs that measure the named sites.

    Args:
        graph: The cut graph.
        inputs: Tensors that take data.
        sites: All sites of the graph.
        measured: Indices of the sites whose input is wanted.
        awaited: Those of them that normalise with what was measured; all other sites are fed statistics that are known.
        pooled: Whether all sites of a layer share one pair of statistics, so that each waits for all of them.
        unheld: Tensors that can be neither fetched nor fed; each level that reads one makes it again.
    """
    whole = units(graph)
    level = _levels_of_nodes(graph, inputs, sites, awaited, whole, pooled=pooled)
    given = [tensor_name(name) for name in inputs]
    placeholders = {tensor: number for number, site in enumerate(sites) for tensor in (site.mean, site.variance)}
    statistics: dict[int, set[int]] = {}
    by_node = {split_tensor(tensor)[0]: number for tensor, number in placeholders.items()}
    remembered: dict[str, set[int]] = {}

    def known_statistics(node: str) -> set[int]:
        """Return the sites whose statistics a node needs that depends on no data: those that are not awaited."""
        if node not in remembered:
            before = graph.ancestors([node], control=False)
            remembered[node] = {by_node[name] for name in before & by_node.keys()}
        return remembered[node]

    needed = graph.ancestors({split_tensor(sites[number].x)[0] for number in measured}, control=False)
    # Tensors that depend on data: the level that makes each, and the levels that read it.
    made: dict[str, int] = {}
    read: dict[str, set[int]] = {}
    # Nodes to run, each with the number of the level.
    stack = [(name, level[name]) for name in needed & set(level)]
    run: set[tuple[str, int]] = set()
    while stack:
        name, number = stack.pop()
        if (name, number) in run:
            continue
        run.add((name, number))
        for tensor in graph.inputs(graph.nodes[name]):
            source = split_tensor(tensor)[0]
            if tensor in placeholders:
                statistics.setdefault(number, set()).add(placeholders[tensor])
            elif source not in level:
                statistics.setdefault(number, set()).update(known_statistics(source))
            elif number > level[source] and (tensor in unheld or source in whole.get(name, ())):
                # Made again: its own inputs are read here, and all of a loop runs.
                stack += [(member, number) for member in whole.get(source, (source,)) if member in needed]
            else:
                made[tensor] = level[source]
                read.setdefault(tensor, set()).add(number)
    site_level = {number: level.get(split_tensor(sites[number].x)[0], 0) for number in measured}
    runs = []
    for number in range(1 + max(site_level.values(), default=0)):
        own = tuple(site for site in measured if site_level[site] == number)
        wanted = [tensor for tensor in read if number in read[tensor]]
        feeds = [tensor for tensor in wanted if made[tensor] < number and tensor not in given]
        kept = [t for t in read if made[t] == number and max(read[t]) > number and t not in given]
        direct = [sites[site].x for site in own if sites[site].x in given]
        fetches = dict.fromkeys([*kept, *(sites[site].x for site in own)])
        runs.append(
            Level(
                inputs=tuple(dict.fromkeys([*(t for t in wanted if t in given), *direct])),
                feeds=tuple(feeds),
                sites=own,
                fetches=tuple(fetches),
                kept=tuple(kept),
                dropped=tuple(tensor for tensor in feeds if max(read[tensor]) == number),
                normalised=tuple(sorted(statistics.get(number, ()))),
            )
        )
    return runs


def _levels_of_nodes(
    graph: Graph,
    inputs: Sequence[str],
    sites: Sequence[CutSite],
    awaited: Sequence[int],
    whole: Mapping[str, frozenset[str]],
    *,
    pooled: bool,
) -> dict[str, int]:
    """Return the level of every node that depends on data; nodes of constants and variables have none."""
    waits: dict[str, list[str]] = {}
    for number in awaited:
        sources = [
            split_tensor(sites[other].x)[0]
            for other in awaited
            if other == number or (pooled and sites[other].layer == sites[number].layer)
        ]
        for placeholder in (sites[number].mean, sites[number].variance):
            waits[split_tensor(placeholder)[0]] = sources
    level: dict[str, int] = {split_tensor(name)[0]: 0 for name in inputs}
    pending: set[str] = set()

    def visit(start: str) -> None:
        # Deep models are longer than Python's stack, so this walks with its own.
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, ready = stack.pop()
            if name in level:
                continue
            members = whole.get(name, (name,))
            sources = waits.get(name) or [
                source
                for member in members
                for tensor in graph.inputs(graph.nodes[member])
                if (source := split_tensor(tensor)[0]) not in members or len(members) == 1
            ]
            if not ready:
                if name in pending:
                    # A back edge, outside of what is known as a loop.
                    continue
                pending.update(members)
                stack.append((name, True))
                stack.extend((source, False) for source in sources if source in graph.nodes and source not in level)
            else:
                known = [level[source] for source in sources if level.get(source, -1) >= 0]
                number = max(known, default=-1) + (name in waits and bool(known))
                level.update(dict.fromkeys(members, number))

    for name in graph.nodes:
        visit(name)
    return {name: number for name, number in level.items() if number >= 0}


def in_sequence(graph: Graph, sites: Sequence[CutSite], measured: Sequence[int]) -> set[str]:
    """Return the layers that feed themselves: one of their sites lies downstream of another."""
    places: dict[str, list[int]] = {}
    for number in measured:
        places.setdefault(sites[number].layer, []).append(number)
    found = set()
    for layer, numbers in places.items():
        outputs = {split_tensor(sites[number].mean)[0] for number in numbers}
        if len(numbers) > 1 and any(
            outputs & graph.ancestors([split_tensor(sites[number].x)[0]], control=False) for number in numbers
        ):
            found.add(layer)
    return found
