"""From a TF1 meta graph and a checkpoint's values to a `Program`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.capture.program import ModelInput, Program
from ckpt_doctor.checkpoint import Array, Checkpoint, numpy_dtype
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.graphs.cut import CutGraph, cut
from ckpt_doctor.graphs.dropout import random_nodes
from ckpt_doctor.graphs.graph import DTYPES, Graph, plain_dtype, split_tensor, tensor_name
from ckpt_doctor.graphs.meta_graph import MetaGraph
from ckpt_doctor.graphs.saved_model import ServedGraph
from ckpt_doctor.graphs.specialise import resolve_tensor


def load(
    checkpoint: Checkpoint,
    meta: MetaGraph,
    layers: Iterable[BatchNormLayer],
    *,
    inputs: Sequence[str] = (),
    feeds: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    unproven: bool = False,
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

    Raises:
        BadRequest: A tensor is not in the graph, or a value is none.
        RepairRefused: The graph needs a variable that the checkpoint lacks, or draws random numbers.
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
    opened = cut(meta.inference, sites, resolved, [*inputs, *(feeds or {})])
    opened_graph = Graph(opened.proto)
    random = random_nodes(opened_graph, [*(site.x for site in opened.sites), *resolved])
    if random and not unproven:
        raise RepairRefused(
            f"the graph draws random numbers before a batch-norm layer ({opened_graph.nodes[random[0]].op} {random[0]}"
            f"{f' and {len(random) - 1} more' if len(random) > 1 else ''}), and they are no dropout that could be "
            "taken out; if the noise belongs there at inference, allow it with --unproven"
        )
    fixed = _fixed(opened, feeds or {})
    notes = []
    if meta.bypassed_dropout:
        notes.append(f"dropout was taken out of the graph at {len(meta.bypassed_dropout)} places")
    return Program(
        cut=opened,
        inputs=tuple(
            ModelInput(
                names.get(entry.original, split_tensor(entry.original)[0]), entry.tensor, entry.dtype, entry.shape
            )
            for entry in opened.inputs
            if entry.tensor not in fixed and not entry.optional
        ),
        values=_values(checkpoint, meta, opened),
        feeds=fixed,
        notes=tuple(notes),
    )


def _fixed(opened: CutGraph, feeds: Mapping[str, str]) -> dict[str, Array]:
    """Return the constant feeds: tensor of the cut graph to value."""
    by_name = {entry.original: entry for entry in opened.inputs}
    fixed: dict[str, Array] = {}
    for tensor, text in feeds.items():
        entry = by_name.get(tensor_name(tensor))
        if entry is None:
            # Nothing that is measured depends on it.
            continue
        try:
            words = {"true": 1, "false": 0}
            value = np.array(words[text.lower()] if text.lower() in words else float(text))
            fixed[entry.tensor] = value.astype(numpy_dtype(entry.dtype))
        except ValueError:
            raise BadRequest(f"--feed {tensor}={text}: {text!r} is no number and neither true nor false") from None
    return fixed


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
            raise RepairRefused(
                f"{name}: the checkpoint holds {variable.dtype}, the graph beside it expects {expected}"
            )
        values[node] = variable.read
    if absent:
        raise RepairRefused(
            f"the graph reads {len(absent)} variables that the checkpoint lacks ({', '.join(sorted(absent)[:3])}"
            f"{', …' if len(absent) > 3 else ''}); without them the model cannot be run"
        )
    return values
