"""What a live model says of its batch norm, joined with what is in the file.

A file may hold more than the model of `--model`: a second network beside it. Of that its own object graph speaks.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_doctor.graphs.facts import LayerFacts, ModelFacts


def with_live_layers(own: ModelFacts | None, live: ModelFacts) -> ModelFacts:
    """Return the facts of both; of a layer that both know, those of the live model.

    Args:
        own: What a config or an object graph in the file says, or None where there is none.
        live: What the live model says; it speaks for the variables that it names.
    """
    if own is None or own.problems:
        return live
    known = {name for layer in live.layers for name in _names(layer)}
    further = [
        replace(layer, evidence=layer.evidence or own.evidence)
        for layer in own.layers
        if not known.intersection(_names(layer))
    ]
    before = {name: layer for layer in own.layers for name in _names(layer)}
    joined = []
    for layer in live.layers:
        same = next((before[name] for name in _names(layer) if name in before), None)
        if same is not None and own.evidence == "config" and _names(same) == _names(layer):
            # The config in a file says what the model was when it was saved.
            layer = same
        elif same is not None:
            layer = replace(layer, gradient_trains=same.gradient_trains, companions=layer.companions or same.companions)
        joined.append(layer)
    return replace(
        live,
        layers=(*joined, *further),
        trains=live.trains or own.trains,
        other_normalization=own.other_normalization | live.other_normalization,
        not_judged=(*own.not_judged, *live.not_judged),
        slots=own.slots,
        copies=own.copies,
        unshown=own.unshown,
    )


def _names(layer: LayerFacts) -> set[str]:
    return {name for name in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance) if name is not None}
