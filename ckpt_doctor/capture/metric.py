"""The user's own measure of a model: `--metric MODULE:FUNCTION`, `f(predict, data) -> float`, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.capture.data import fits, read_unmatched
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.estimation import Loaded, load_model
from ckpt_doctor.capture.user_code import call, load_function
from ckpt_doctor.checkpoint import Array, Checkpoint, numpy_dtype
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.graphs.graph import tensor_name
from ckpt_doctor.options import DataOptions, RepairOptions

MetricFunction = tuple[str, Callable[..., Any]]
_Statistics = Mapping[str, tuple[Array, Array]]


def load_metric(text: str) -> MetricFunction:
    """Return the function that `--metric` names, with the text that named it."""
    return text, load_function("--metric", text)


def measure_metric(
    judge: MetricFunction,
    request: RepairOptions,
    checkpoint: Checkpoint,
    inventory: Inventory,
    statistics: tuple[_Statistics, _Statistics],
) -> tuple[float, float]:
    """Return the measure before and after a repair.

    Args:
        judge: The function; its data are what `--metric-data` names, else what `--data` names.
        request: The model, how to feed it, and the data.
        checkpoint: Gives the weights.
        inventory: Its batch-norm layers.
        statistics: Layer to mean and variance, before and after.

    Raises:
        BadRequest: The data cannot be read, or the function fails or gives no number.
    """
    values = []
    for stored in statistics:
        with ExitStack() as kept:
            predictor = _Predictor(checkpoint, inventory, request, stored, kept)
            # Read anew each time: what a function gave may be used up, or changed.
            result = call("--metric", judge[0], judge[1], predictor, _data(request, predictor))
        try:
            values.append(float(result))
        except (TypeError, ValueError):
            raise BadRequest(f"--metric {judge[0]}: returned {type(result).__name__}; expected a number") from None
        if not np.isfinite(values[-1]):
            raise BadRequest(f"--metric {judge[0]}: returned {values[-1]}; expected a finite number")
    return values[0], values[1]


def _data(request: RepairOptions, predictor: _Predictor) -> Any:
    if not request.metric_data and not request.data:
        return None
    option = "--metric-data" if request.metric_data else "--data"
    named = replace(request, data=request.metric_data or request.data)
    return read_unmatched(option, named, lambda: predictor.engine(())[0].program.inputs)


class _Predictor:
    """`predict(dict of arrays) -> dict of arrays`: inputs by name, outputs by name or by any tensor of a TF1 graph."""

    def __init__(
        self, checkpoint: Checkpoint, inventory: Inventory, request: DataOptions, stored: _Statistics, kept: ExitStack
    ) -> None:
        self.load: Callable[[tuple[str, ...]], Loaded] = lambda outputs: load_model(
            checkpoint, inventory, request, outputs
        )
        self.stored = stored
        self.kept = kept
        self.engines: dict[tuple[str, ...], tuple[Loaded, Engine]] = {}

    def engine(self, outputs: tuple[str, ...]) -> tuple[Loaded, Engine]:
        """Return the model that gives the outputs, loaded once."""
        if outputs not in self.engines:
            loaded = self.load(outputs)
            self.engines[outputs] = (loaded, self.kept.enter_context(Engine(loaded.program, self.stored)))
        return self.engines[outputs]

    def __call__(self, arrays: Mapping[str, Any]) -> Mapping[str, Array]:
        """Return the outputs for some samples."""
        return _Outputs(self, {name: np.asarray(value) for name, value in arrays.items()})


class _Outputs(Mapping[str, Array]):
    """The outputs for some samples, computed when they are asked for."""

    def __init__(self, predictor: _Predictor, arrays: Mapping[str, Array]) -> None:
        self.predictor = predictor
        self.arrays = arrays
        self.names = predictor.engine(())[0].outputs
        self.found: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self.found:
            outputs = () if name in self.names else (tensor_name(name),)
            loaded, engine = self.predictor.engine(outputs)
            tensors = [loaded.outputs[name]] if name in loaded.outputs else list(outputs)
            (self.found[name],) = engine.run(tensors, self._feeds(loaded))
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _feeds(self, loaded: Loaded) -> dict[str, Array]:
        feeds = {}
        for entry in loaded.program.inputs:
            fitting = [name for name in (entry.name, entry.tensor) if name in self.arrays]
            if not fitting and len(loaded.program.inputs) == 1 and len(self.arrays) == 1:
                fitting = list(self.arrays)
            if not fitting:
                raise BadRequest(f"predict: the model needs the input {entry.name}; given are {', '.join(self.arrays)}")
            value = self.arrays[fitting[0]]
            fits(f"predict: {fitting[0]}", value, entry)
            feeds[entry.tensor] = value.astype(numpy_dtype(entry.dtype), copy=False)
        return feeds
