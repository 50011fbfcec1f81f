"""Batch norm of which a checkpoint shows gamma and beta only, in the list of the optimizer that trained them."""

from __future__ import annotations

from collections.abc import Container, Iterator

from ckpt_doctor.batchnorm.layer import STATISTICS, BatchNormLayer
from ckpt_doctor.graphs.facts import ModelFacts, Unshown
from ckpt_doctor.naming.reading import is_other_normalization, looks_like_batch_norm

_LISTED = (
    "the optimizer lists gamma and beta, but the file has nothing else of their layer: Keras 3 does not expose layers "
    "in a list or a dict to TensorFlow; if it is batch norm, its statistics are not in the file; pass the "
    "model with --model"
)
_GONE = (
    "the optimizer has slots of its gamma and beta, but the file has nothing else of it; if it is batch norm, its "
    "statistics are not in the file; pass the model with --model"
)


def unshown_batch_norms(facts: ModelFacts | None, claimed: Container[str]) -> Iterator[BatchNormLayer]:
    """Yield the layers that the names of their slots call batch norm; their statistics are missing.

    Args:
        facts: What the model says.
        claimed: Names of the variables of layers that something describes.
    """
    for one in _open(facts, claimed):
        name = next(filter(looks_like_batch_norm, one.names), None)
        if one.gamma is not None and one.beta is not None and name is not None:
            yield BatchNormLayer(
                name=name,
                variables={"gamma": one.gamma, "beta": one.beta},
                absent={role: f"{name}/{role}" for role in STATISTICS},
            )


def unshown_places(facts: ModelFacts | None, claimed: Container[str]) -> dict[str, str]:
    """Return what may be batch norm and is not judged: a place to the reason."""
    found: dict[str, str] = {}
    for one in _open(facts, claimed):
        if any(map(is_other_normalization, one.names)):
            continue
        if one.gamma is None or one.beta is None:
            found[one.names[-1]] = _GONE
        elif not any(map(looks_like_batch_norm, one.names)):
            found |= {one.gamma: _LISTED, one.beta: _LISTED}
    return found


def _open(facts: ModelFacts | None, claimed: Container[str]) -> Iterator[Unshown]:
    for one in () if facts is None else facts.unshown:
        names = [name for name in (one.gamma, one.beta) if name is not None]
        known = facts is not None and facts.names is not None and any(name in facts.names for name in names)
        if not known and not any(name in claimed for name in names):
            yield one
