"""From a TF1 meta graph and a checkpoint's values to a `Program`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.capture.program import ModelInput, Program
from ckpt_doctor.checkpoint import Array, Checkpoint, Variable, numpy_dtype, same_values
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.graphs.augmentation import tensor_behind
from ckpt_doctor.graphs.cut import READ, CutGraph, cut
from ckpt_doctor.graphs.dropout import random_nodes
from ckpt_doctor.graphs.facts import Site
from ckpt_doctor.graphs.graph import DTYPES, Graph, plain_dtype, split_tensor, tensor_name
from ckpt_doctor.graphs.loops import nodes_in_branches, nodes_in_loops
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.saved_model import ServedGraph
from ckpt_doctor.graphs.side_effects import refuse_side_effects, side_effects
from ckpt_doctor.graphs.specialise import resolve_tensor
from ckpt_doctor.graphs.tables import fill_tables

_log = logging.getLogger(__name__)


def load(
    checkpoint: Checkpoint,
    meta: MetaGraph,
    layers: Sequence[BatchNormLayer],
    *,
    inputs: Sequence[str] = (),
    feeds: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    unproven: bool = False,
    allow_code: bool = False,
) -> Program:
    """Return the program that measures the named layers.

    Args:
        checkpoint: Gives the values of the weights.
        meta: The graph.
        layers: The layers that are cut open.
        inputs: Tensors that the data feed, where they are no placeholders.
        feeds: Tensor to the text of a value that is fed in every run.
        outputs: Further tensors that are wanted.
        unproven: Whether random operations before a layer are accepted.
        allow_code: Whether operations may run that touch files, the network or Python.

    Raises:
        BadRequest: A tensor is not in the graph, or a value is none.
        RepairRefused: The graph needs a variable that the checkpoint lacks, draws random numbers, or does more than
            compute.
    """
    for tensor in (*inputs, *outputs, *(feeds or {})):
        if meta.graph.producer(tensor) is None:
            raise BadRequest(f"{tensor}: the graph has no such tensor")
    sites = [(layer.name, site) for layer in layers if layer.facts is not None for site in layer.facts.sites]
    names: Mapping[str, str] = {}
    if isinstance(meta, ServedGraph):
        names = meta.signature.inputs
        sites = [(name, site) for name, site in sites if split_tensor(site.y)[0] in meta.signature.nodes]
    resolved = [resolve_tensor(meta.graph, meta.switches, tensor) for tensor in outputs]
    left = _out_of_reach(meta, layers, sites) | _of_several_axes(meta, layers)
    # What is fed by name may be another tensor once the training switch is turned: a `cond` between two queues.
    fed = {resolve_tensor(meta.graph, meta.switches, tensor): tensor for tensor in (*inputs, *(feeds or {}))}
    names = dict(names) | {tensor: given.removesuffix(":0") for tensor, given in fed.items()}
    statistics = _statistics(meta, layers)

    def opened_without(left: Mapping[str, str]) -> CutGraph:
        kept = [pair for pair in sites if pair[0] not in left]
        return cut(meta.inference, kept, resolved, fed, {name: statistics[name] for name, _ in kept})

    opened = opened_without(left)
    behind = _behind_absent(checkpoint, meta, opened) | _read_before(opened)
    if behind:
        left |= behind
        opened = opened_without(left)
    if isinstance(meta, ServedGraph) and not unproven:
        _refuse_other_weights(checkpoint, meta, opened)
    opened_graph = Graph(opened.proto)
    random = random_nodes(opened_graph, [*(site.x for site in opened.sites), *resolved])
    if random and not unproven:
        raise RepairRefused(
            f"the graph draws random numbers before a batch-norm layer ({opened_graph.nodes[random[0]].op} {random[0]}"
            f"{f' and {len(random) - 1} more' if len(random) > 1 else ''}), and they are not dropout that could be "
            f"removed; {_without_chance(meta, opened, opened_graph, random, names)}if the noise is part of inference, "
            "accept it with --unproven"
        )
    opened = fill_tables(
        meta.graph, opened, _assets(checkpoint, meta), partial(_entries, checkpoint), remote=allow_code
    )
    where = checkpoint.descriptions.meta_graph_path or checkpoint.path
    refuse_side_effects(where, side_effects(opened.proto), allow_code)
    fixed = _fixed(opened, {tensor: (given, feeds[given]) for tensor, given in fed.items() if feeds and given in feeds})
    _log.debug(
        "%s: cut open at %d sites of %d layers; %d layers left; %d variables; fed constants: %s",
        checkpoint.path,
        len(opened.sites),
        len({site.layer for site in opened.sites}),
        len(left),
        len(opened.variables),
        ", ".join(fixed) or "none",
    )
    notes = []
    if meta.bypassed_dropout:
        notes.append(f"dropout was removed from the graph at {len(meta.bypassed_dropout)} places")
    return Program(
        cut=opened,
        inputs=tuple(
            ModelInput(
                names.get(entry.original, entry.original.removesuffix(":0")),
                entry.tensor,
                entry.dtype,
                entry.shape,
                entry.original,
            )
            for entry in opened.inputs
            if entry.tensor not in fixed and not entry.optional
        ),
        values=_values(checkpoint, meta, opened),
        feeds=fixed,
        notes=tuple(notes),
        left=left,
        random=random,
    )


def _assets(checkpoint: Checkpoint, meta: MetaGraph) -> dict[str, str]:
    """Return the tensors that name files of a SavedModel, with the paths of the files."""
    folder = Path(checkpoint.place, "assets")
    return {tensor_name(asset.tensor_info.name): str(folder / asset.filename) for asset in meta.proto.asset_file_def}


def _entries(checkpoint: Checkpoint, name: str) -> Array | None:
    variable = checkpoint.variable(name)
    return None if variable is None else variable.read()


def _without_chance(
    meta: MetaGraph, opened: CutGraph, graph: Graph, random: Sequence[str], names: Mapping[str, str]
) -> str:
    """Return how to feed a graph behind its random numbers, in words; empty where no tensor can be named."""
    inputs = {entry.tensor: entry for entry in opened.inputs}
    found = tensor_behind(graph, random, inputs, [site.x for site in opened.sites])
    if found is None or meta.graph.producer(found[0]) is None:
        return ""
    original = inputs[found[1]].original
    name = names.get(original, original.removesuffix(":0"))
    return (
        f"if they augment the data, feed the tensor after them with --input {name}={found[0]} (with data that are not "
        "augmented); "
    )


_READ_BEFORE = "its statistics are also read on the way to its own input, so its input changes with what is measured"
_IN_LOOP = (
    "it normalises inside a loop (tf.while_loop, dynamic_rnn), and its input there cannot be read; unroll the loop, "
    "or use separate layers for the steps"
)
_IN_BRANCH = (
    "it normalises inside a branch that the data decide (tf.cond), and its input there cannot be read; set the "
    "branch's condition to a fixed value in the graph"
)
_IN_FUNCTION = "it normalises inside a loop or a branch that the data decide, and its input there cannot be read"


def _out_of_reach(
    meta: MetaGraph, layers: Sequence[BatchNormLayer], sites: Sequence[tuple[str, Site]]
) -> dict[str, str]:
    """Return the layers that normalise inside loops and branches, with the reason why they cannot be measured."""
    hidden = {meta.saved_names[item.moving_mean] for item in meta.hidden if item.moving_mean}
    loops, branches = nodes_in_loops(meta.inference), nodes_in_branches(meta.inference)
    found = {
        layer.name: _IN_FUNCTION
        for layer in layers
        if layer.facts is not None and not layer.facts.sites and layer.facts.moving_mean in hidden
    }
    for layer, site in sites:
        node = split_tensor(site.x)[0]
        if node in loops or node in branches:
            found[layer] = _IN_LOOP if node in loops else _IN_BRANCH
    return found


def _of_several_axes(meta: MetaGraph, layers: Sequence[BatchNormLayer]) -> dict[str, str]:
    """Return the layers with statistics for more than each channel, with the reason why they cannot be measured."""
    nodes = {name: node for node, name in meta.saved_names.items()}
    found = {}
    for layer in layers:
        mean = nodes.get(layer.facts.moving_mean or "") if layer.facts is not None else None
        sizes = [] if mean is None else [dim.size for dim in meta.graph.nodes[mean].attr["shape"].shape.dim]
        if sum(size != 1 for size in sizes) > 1:
            found[layer.name] = (
                f"it stores statistics of shape {sizes}, for several axes at once; only layers with one axis, the "
                "channels, can be measured"
            )
    return found


def _statistics(meta: MetaGraph, layers: Sequence[BatchNormLayer]) -> dict[str, tuple[str, ...]]:
    """Return the nodes of the variables of mean and variance of each layer."""
    nodes = {name: node for node, name in meta.saved_names.items()}
    return {
        layer.name: tuple(
            nodes[name]
            for name in (layer.facts.moving_mean, layer.facts.moving_variance)
            if name is not None and name in nodes
        )
        for layer in layers
        if layer.facts is not None
    }


def _read_before(opened: CutGraph) -> dict[str, str]:
    """Return the layers whose input depends on their own statistics, read elsewhere than where they normalise."""
    graph = Graph(opened.proto)
    reading = {name for name in graph.nodes if name.startswith(READ)}
    if not reading:
        return {}
    found = {}
    for site in opened.sites:
        own = {split_tensor(tensor)[0] for tensor in (site.mean, site.variance)}
        through = graph.ancestors([split_tensor(site.x)[0]], control=False) & reading
        if graph.ancestors(through, control=False) & own:
            found[site.layer] = _READ_BEFORE
    return found


def _behind_absent(checkpoint: Checkpoint, meta: MetaGraph, opened: CutGraph) -> dict[str, str]:
    """Return the layers whose input depends on a variable that the checkpoint lacks, with the reason."""
    absent = [node for node in opened.variables if checkpoint.variable(meta.saved_names[node]) is None]
    if not absent:
        return {}
    graph = Graph(opened.proto)
    hidden = graph.descendants(absent)
    names = sorted(meta.saved_names[node] for node in absent)
    reason = (
        f"its input is computed with variables that the checkpoint lacks ({', '.join(names[:3])}"
        f"{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
    )
    return {site.layer: reason for site in opened.sites if split_tensor(site.x)[0] in hidden}


def _refuse_other_weights(checkpoint: Checkpoint, meta: ServedGraph, opened: CutGraph) -> None:
    """Refuse an export that holds two versions of a weight: statistics would be right for one of its loaders only.

    Raises:
        RepairRefused: It does.
    """
    copies: dict[str, list[str]] = {}
    for copy, name in meta.copies.items():
        copies.setdefault(name, []).append(copy)
    for node in opened.variables:
        own = checkpoint.variable(meta.saved_names[node])
        for copy in copies.get(meta.saved_names[node], ()) if own is not None else ():
            other = checkpoint.variable(copy)
            if own is not None and other is not None and not same_values(own.read(), other.read()):
                raise RepairRefused(
                    f"{own.name} and its exported copy {copy} differ, so tf.saved_model.load and TensorFlow Serving "
                    "run different models; first copy the right one into both, or measure what tf.saved_model.load "
                    "runs with --unproven"
                )


def _fixed(opened: CutGraph, feeds: Mapping[str, tuple[str, str]]) -> dict[str, Array]:
    """Return the constant feeds: tensor of the cut graph to value.

    Args:
        opened: The cut graph.
        feeds: Tensor to what the user calls it, and to the text of its value.
    """
    by_name = {entry.original: entry for entry in opened.inputs}
    fixed: dict[str, Array] = {}
    for tensor, (given, text) in feeds.items():
        words = {"true": 1, "false": 0}
        try:
            value = np.array(words[text.lower()] if text.lower() in words else float(text))
        except ValueError:
            raise BadRequest(f"--feed {given}={text}: {text!r} is neither a number nor true or false") from None
        entry = by_name.get(tensor)
        if entry is not None:  # else nothing that is measured depends on it
            fixed[entry.tensor] = value.astype(numpy_dtype(entry.dtype))
    return fixed


def _part(variable: Variable, place: tuple[slice, ...]) -> Array:
    return variable.read()[place]


def _values(checkpoint: Checkpoint, meta: MetaGraph, opened: CutGraph) -> dict[str, Callable[[], Array]]:
    values: dict[str, Callable[[], Array]] = {}
    absent = []
    for node in opened.variables:
        name = meta.saved_names[node]
        variable = checkpoint.variable(name)
        if variable is None:
            absent.append(name)
            continue
        expected = DTYPES.get(plain_dtype(meta.graph.nodes[node].attr["dtype"].type))
        if variable.dtype != expected:
            raise RepairRefused(f"{name}: the checkpoint holds {variable.dtype}, its graph expects {expected}")
        part = meta.saver.parts.get(node) if meta.saver is not None else None
        shape = meta.graph.nodes[node].attr["shape"].shape
        sizes = tuple(dim.size for dim in shape.dim)
        open_ended = shape.unknown_rank or any(size < 0 for size in sizes)
        if part is None and not open_ended and sizes != variable.shape:
            raise RepairRefused(
                f"{name}: the checkpoint holds the shape {list(variable.shape)}, its graph expects "
                f"{list(sizes)}; they belong to different models"
            )
        values[node] = variable.read if part is None else partial(_part, variable, part[1])
    if absent:
        raise RepairRefused(
            f"the graph reads {len(absent)} variables that the checkpoint lacks ({', '.join(sorted(absent)[:3])}"
            f"{', …' if len(absent) > 3 else ''}); the model cannot run without them"
        )
    return values
