"""How a layer ran in training, by everything that tells; layers whose stored statistics are right, whatever data say.

What tells, strongest first: a training graph that takes the moments of its batch whatever is fed; gradients
(`training_mode`); updates that the train op runs and that changed nothing, since the switch was off; a graph or a
config that runs the layer with its stored statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer, Inventory
from ckpt_doctor.finding import Certainty
from ckpt_doctor.heuristics.initial_values import affine_is_trained, at_initial_values, renorm_uses_initial_values


def ran_on(layer: BatchNormLayer) -> Literal["batch", "stored"] | None:
    """Return whether a layer ran on the moments of each batch or on its stored statistics.

    None where nothing tells, and where gradients contradict the training graph: one of the two is of another run.
    """
    facts = layer.facts
    if facts is not None and facts.trained:
        return None if layer.trained is not None and layer.trained.ran_on == "stored" else "batch"
    if layer.trained is not None:
        return layer.trained.ran_on
    if facts is not None and (facts.trained is False or _was_switched_off(layer)):
        return "stored"
    return None


def certainty_of_batch(layer: BatchNormLayer) -> Certainty | None:
    """Return how sure it is that a layer ran on the moments of each batch; None where that is unknown, or it did not.

    A graph proves it, and so do gradients that the layer's own optimizer slots remember.
    """
    if ran_on(layer) != "batch":
        return None
    if layer.trained is not None and not layer.trained.proves(layer.name):
        return "proven" if _graph_says_batch(layer) else "likely"
    return "proven" if layer.trained is not None or _graph_says_batch(layer) else None


def followed(layer: BatchNormLayer, others: Mapping[str, BatchNormLayer]) -> BatchNormLayer | None:
    """Return the layer whose weights this one's are copies or averages of, if its statistics moved and these did not.

    A teacher or target network gets the trainable weights of its student and not the statistics (CuriousAI/mean-teacher
    issue 9, openai/baselines issue 647).

    Args:
        layer: A layer.
        others: All layers, by name.
    """
    facts = layer.facts
    source = None if facts is None or facts.follows is None else others.get(facts.follows)
    if source is None or at_initial_values(layer) is None or not set(STATISTICS) <= set(source.values):
        return None
    alike = all(source.values[role].size == layer.values[role].size for role in STATISTICS)
    return source if alike and at_initial_values(source) is None else None


def _graph_says_batch(layer: BatchNormLayer) -> bool:
    return layer.evidence == "graph" and layer.facts is not None and bool(layer.facts.trained)


def _was_switched_off(layer: BatchNormLayer) -> bool:
    """Return whether the train op runs the updates of a layer, if its switch is on, and they changed nothing."""
    facts = layer.facts
    return (
        facts is not None
        and layer.evidence == "graph"
        and facts.mode == "switch"
        and facts.updates_run is True
        and at_initial_values(layer) is not None
        and affine_is_trained(layer) is True
    )


def never_updated(layer: BatchNormLayer) -> str | None:
    """Return the initial values that the statistics still have although they may be wrong, `0/1` or `0/0`; or None.

    None too where the layer was trained with its stored statistics, or as batch renormalisation whose averages never
    moved.
    """
    start = at_initial_values(layer)
    if start is None or ran_on(layer) == "stored" or renorm_uses_initial_values(layer):
        return None
    # A layer that no step has touched says nothing about updates; BN210 judges it beside its siblings.
    return None if affine_is_trained(layer) is False else start


def trained_on_stored(layer: BatchNormLayer) -> bool:
    """Return whether the layer was trained with the statistics that it started with, and still has them."""
    if at_initial_values(layer) is None:
        return False
    if renorm_uses_initial_values(layer) and affine_is_trained(layer) is not False:
        return True
    return ran_on(layer) == "stored" and (
        _runs_on_stored(layer) or layer.trained is not None or _was_switched_off(layer)
    )


def certainty_of_stored(layer: BatchNormLayer) -> Certainty:
    """Return how sure it is that a layer for which `trained_on_stored` holds was trained so."""
    if layer.trained is not None:
        return "proven" if layer.trained.proves(layer.name) else "likely"
    return "likely" if layer.evidence != "graph" or _was_switched_off(layer) else "proven"


def lost_initial_values(layer: BatchNormLayer) -> bool:
    """Return whether the file lacks statistics of the layer that are known to be its initial values.

    Gradients tell that it ran on them from the start. Others would break it, and these are exact.
    """
    told = layer.trained
    if not _lacks(layer) or ran_on(layer) != "stored" or told is None or not told.from_the_start:
        return False
    start = {"moving_mean": 0, "moving_variance": 0 if layer.initial == "0/0" else 1}
    return all(bool(np.all(layer.values[role] == start[role])) for role in STATISTICS if role in layer.values)


def lost_and_untold(layer: BatchNormLayer, inventory: Inventory) -> bool:
    """Return whether the layer lacks its statistics, and a graph that only serves is all that is known of it.

    Where it was trained on 0 and 1, a serving graph that initialises them so works, and estimates make it worse (seen:
    0.890 -> 0.865). A SavedModel that lacks variables works nowhere.
    """
    model = inventory.model
    return (
        model is not None
        and not model.trains
        and model.names is not None  # Not of a SavedModel.
        and layer.evidence == "graph"
        and layer.facts is not None
        and layer.facts.mode == "stored"
        and set(STATISTICS) <= layer.absent.keys()
        and ran_on(layer) is None
    )


def lost_and_frozen(layer: BatchNormLayer) -> bool:
    """Return whether the layer was trained with stored statistics that the file lacks, and that are not known.

    In a network that was trained from the start they are the initial values, in a fine-tuned one those of the
    checkpoint that it started from; the statistics of data are neither.
    """
    stored = ran_on(layer) == "stored" and (layer.trained is not None or _runs_on_stored(layer))
    return stored and _lacks(layer) and not lost_initial_values(layer)


def _lacks(layer: BatchNormLayer) -> bool:
    return any(role in layer.absent for role in STATISTICS)


def _runs_on_stored(layer: BatchNormLayer) -> bool:
    """Return whether the model trains, and runs the layer with its stored statistics while it does."""
    facts = layer.facts
    return (
        facts is not None
        and layer.evidence in ("graph", "config")
        and facts.mode == "stored"
        and facts.trained is False
    )
