"""Results that hold everything a result can hold."""

from __future__ import annotations

import dataclasses

from ckpt_doctor.finding import Finding
from ckpt_doctor.result import (
    AuditResult,
    ChannelValues,
    CheckpointResult,
    LayerSummary,
    LayerValues,
    NotJudged,
    PathError,
    SuppressedFinding,
    UnusedSuppression,
)


def finding(rule, name, layer=None, **more):
    fields = {
        "severity": "error",
        "certainty": "proven",
        "layers": (layer,) if layer else (),
        "variables": (),
        "message": "something is wrong",
        "cause": None,
        "repair": "estimate",
    }
    return Finding(rule=rule, name=name, layer=layer, **(fields | more))


def checkpoint(findings=(), **more):
    fields = {
        "path": "models/model.ckpt-7",
        "format": "tensor-bundle",
        "producer": "TensorFlow 1.15.5",
        "variables": 51,
        "bytes": 1025928,
        "evidence": ("graph",),
        "batch_norm_layers": (
            LayerSummary("bn1", "bn1/gamma", None, None, None, ("bn1/shadow",), 32, 1e-3, 0.9, "graph", "ok"),
        ),
        "not_judged": (),
        "findings": tuple(findings),
    }
    return CheckpointResult(**(fields | more))


LAYERS = tuple(f"net/block{number}/bn" for number in range(53))
BROKEN = checkpoint(
    [
        *(
            finding(
                rule,
                name,
                layer,
                message=f"`{layer}/{variable}` is not in the file",
                variables=(f"{layer}/{variable}",),
                cause="BN301",
            )
            for rule, name, variable in (
                ("BN101", "missing-moving-mean", "moving_mean"),
                ("BN102", "missing-moving-variance", "moving_variance"),
            )
            for layer in LAYERS
        ),
        finding(
            "BN301",
            "saver-omits-statistics",
            layers=LAYERS,
            message="the saver's list leaves out all 106 statistics",
            repair="none",
        ),
    ]
)
EVERYTHING = AuditResult(
    checkpoints=(
        BROKEN,
        checkpoint(
            [
                finding("BN201", "never-updated", "bn1", severity="warning", certainty="unproven"),
                finding("CK105", "stale-checkpoint-state", severity="note", repair="none"),
            ],
            path="odd name.h5",
            format="keras-hdf5",
            not_judged=(NotJudged("x", "could be two things"),),
        ),
        checkpoint(path="healthy"),
    ),
    errors=(PathError("gone", "is not there"),),
    passed_over=4,
)

# One run with findings at all levels, suppressed ones included, names that every format must escape, and errors.
EVIL = "models/<b>&\"'|`%3A,::error::@all\x1b[2J\n.h5"
ALL_LEVELS = dataclasses.replace(
    EVERYTHING,
    checkpoints=(
        *EVERYTHING.checkpoints,
        checkpoint(
            [
                finding("BN205", "dead-channels", EVIL, severity="note", certainty="likely", message=EVIL),
                finding("BN205", "dead-channels", EVIL, severity="note", certainty="likely", message="again"),
            ],
            path=EVIL,
            format="keras-hdf5",
            not_judged=(NotJudged(EVIL, EVIL),),
            suppressed=(
                SuppressedFinding(finding("BN201", "never-updated", "bn9"), "baseline", "known.json"),
                SuppressedFinding(finding("CK105", "stale-checkpoint-state"), "per-path-ignores", "models/*"),
            ),
        ),
    ),
    unused_suppressions=(
        UnusedSuppression("baseline", "known.json", "models/old.ckpt", "BN101", "bn1"),
        UnusedSuppression("per-path-ignores", "legacy/*", "legacy/*", "BN201", None),
    ),
)
NOTHING_FOUND = AuditResult((checkpoint(path="healthy"),))


def with_values(number: int, channels: int, status: str = "ok") -> CheckpointResult:
    """Return a checkpoint of `number` layers with stored and measured statistics."""
    names = [f"block{n}/bn" for n in range(number)]
    vectors = [tuple(((n * 37 + c * 11) % 101 + 1) / 17 for c in range(channels)) for n in range(number)]
    layers = [
        LayerSummary(name, "g", "b", "m", "v", (), channels, 1e-3, 0.99, "graph", status if n == 0 else "ok")
        for n, name in enumerate(names)
    ]
    values = {
        name: LayerValues(ChannelValues(vector, vector), ChannelValues(vector[::-1], vector))
        for name, vector in zip(names, vectors, strict=True)
    }
    return checkpoint(path="model.h5", batch_norm_layers=tuple(layers), values=values)
