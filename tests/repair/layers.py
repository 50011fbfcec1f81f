"""Layers, checkpoints and verdicts made by hand, for the steps of a repair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ckpt_doctor.analysis import Analysis
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Checkpoint, Variable
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules import RULES
from ckpt_doctor.rules._examples import example
from ckpt_doctor.rules.interface import Subject
from ckpt_doctor.verdict import Verdict

BY_CODE = {rule.code: rule for rule in RULES}


def layer_with(companions: dict[str, Any] | None = None, name: str = "bn", **options: Any) -> BatchNormLayer:
    """Return a layer of three channels with companions: role to value; None for what only the names tell."""
    companions = companions or {}
    momentum = options.pop("momentum", None)
    return replace(
        example(name, **options),
        momentum=momentum,
        companions={key: f"{name}/{key}" for key in companions},
        companion_values={key: np.asarray(value) for key, value in companions.items() if value is not None},
    )


def checkpoint_of(**values: Any) -> Checkpoint:
    """Return a checkpoint of these arrays; `__` in a name stands for `/`."""
    arrays = {name.replace("__", "/"): np.asarray(value) for name, value in values.items()}
    variables = tuple(
        Variable(name, value.shape, str(value.dtype), value.nbytes, lambda value=value: value)  # type: ignore[misc]
        for name, value in arrays.items()
    )
    return Checkpoint("model", "tensor-bundle", variables, ("model.index",), 0)


def found(code: str, *layers: str, certainty: Any = "proven", **options: Any) -> Finding:
    """Return a finding of a rule on layers."""
    return replace(BY_CODE[code].finding("…", layers=layers, certainty=certainty), **options)


def verdict_on(layers: list[BatchNormLayer], *findings: Finding) -> Verdict:
    """Return a verdict with these findings."""
    inventory = Inventory(tuple(layers))
    return Verdict(Analysis(checkpoint_of(), inventory), findings, (), Subject(inventory))
