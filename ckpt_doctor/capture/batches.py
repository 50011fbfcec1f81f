"""Data in the batches that a model takes: of one size, or of a size that it can split into equal parts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from ckpt_doctor.capture.program import ModelInput, Program
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.graphs.graph import Graph, split_tensor

_log = logging.getLogger(__name__)


def as_taken(samples: Samples, program: Program) -> Samples:
    """Return the samples in batches that a model takes; what fills no batch is left out, with a note.

    A size that the inputs have goes before that of the data: graphs of TensorFlow 1 are often made for one
    (`tf.placeholder(tf.float32, [32, …])`, `drop_remainder=True`, `tf.train.batch`).

    Raises:
        BadRequest: The data do not fill one batch.
    """
    sizes = {entry.shape[0] for entry in program.inputs if entry.shape} - {None}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if size is not None:
        if len(samples) >= size:
            _log.debug("the model takes batches of %d samples", size)
            return _regrouped(samples, size, size, f"the model takes batches of {size} samples")
        if _must_be(program.inputs):
            raise BadRequest(
                f"the data contain {len(samples)} samples, but the model takes batches of exactly {size}; pass {size} "
                "or more"
            )
        return samples
    parts = equal_parts(program)
    if parts == 1 or parts > len(samples):
        return samples
    size = max(parts, max(samples.lengths) // parts * parts)
    return _regrouped(samples, size, parts, f"the model splits its batches into {parts} equal parts")


def equal_parts(program: Program) -> int:
    """Return into how many equal parts a graph splits its batches, as towers do; 1 where it does not.

    Splitting another dimension that was moved to the front counts too: it costs a few samples more.
    """
    graph = Graph(program.cut.proto)
    behind = graph.descendants(split_tensor(entry.tensor)[0] for entry in program.inputs)
    parts = 1
    for node in graph.of_op(("Split",)):
        axis = graph.constant(graph.inputs(node)[0])
        if node.name in behind and axis is not None and axis.size == 1 and int(axis.reshape(-1)[0]) == 0:
            parts = math.lcm(parts, node.attr["num_split"].i or 1)
    return parts


def _must_be(inputs: Sequence[ModelInput]) -> bool:
    """Return whether a placeholder has a size; of what stands for an iterator or a queue, any may do."""
    return any(entry.shape and entry.shape[0] is not None and entry.original == entry.tensor for entry in inputs)


def _regrouped(samples: Samples, size: int, multiple: int, why: str) -> Samples:
    kept = len(samples) - len(samples) % multiple
    regrouped = replace(samples.regrouped(size, kept), multiple=multiple)
    if kept == len(samples):
        return regrouped
    note = f"{why}, so {len(samples) - kept} of {len(samples):,} samples were not used"
    return replace(regrouped, notes=(*regrouped.notes, note))
