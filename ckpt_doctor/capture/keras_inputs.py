"""What a live Keras model takes: names, types and shapes of its inputs, and how it is called with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_doctor.capture.runtime import tensorflow
from ckpt_doctor.errors import RepairRefused


@dataclass(frozen=True, eq=False)
class KerasInputs:
    """How a model is fed.

    Attributes:
        names: What its inputs are called.
        dtypes: TensorFlow's names of their types.
        shapes: Their dimensions, None where any size will do; the first is the batch.
        call: Calls the model at inference with a tensor for each input.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    call: Callable[[Sequence[Any]], Any]


def inputs_of(model: Any) -> KerasInputs:
    """Return how a model is fed.

    A class of its own says nothing of its inputs; what shapes it was built with lies in the file.

    Raises:
        RepairRefused: Nothing tells.
    """
    tensors = getattr(model, "inputs", None)
    if not tensors:
        return _as_built(model)
    structure = getattr(model, "input", tensors)
    named = isinstance(structure, Mapping) and len(structure) == len(tensors)

    def packed(given: Sequence[Any]) -> Any:
        if len(given) == 1 and not named:
            return given[0]
        return tensorflow().nest.pack_sequence_as(structure, list(given))

    names = getattr(model, "input_names", None) or [str(tensor.name).split(":")[0] for tensor in tensors]
    return KerasInputs(
        # Keras flattens a dict in the order of its sorted keys.
        names=tuple(sorted(structure)) if named else tuple(map(str, names)),
        dtypes=tuple(str(tensorflow().as_dtype(tensor.dtype).name) for tensor in tensors),
        shapes=tuple((None, *tuple(tensor.shape)[1:]) for tensor in tensors),
        call=lambda given: model(packed(given), training=False),
    )


def _as_built(model: Any) -> KerasInputs:
    built = model.get_build_config() if hasattr(model, "get_build_config") else None
    arguments = built or {}
    if set(arguments) == {"input_shape"}:
        arguments = {"": arguments["input_shape"]}
    names: list[str] = []
    shapes: list[tuple[int | None, ...]] = []
    for argument, shape in arguments.items():
        entries = shape if isinstance(shape, Mapping) else {argument.removesuffix("_shape"): shape}
        for name, sizes in entries.items():
            if not isinstance(sizes, (list, tuple)) or not all(size is None or isinstance(size, int) for size in sizes):
                raise RepairRefused(
                    f"the model {model.name} is a custom class and was built with inputs of an unusual form "
                    f"({shape}); pass a functional model with --model"
                )
            names.append(name or "input")
            shapes.append((None, *sizes[1:]))
    if not names:
        raise RepairRefused(
            f"the model {model.name} is a custom class, and the file does not show its inputs; pass a functional "
            "model with --model, or call it once before saving it"
        )

    def call(given: Sequence[Any]) -> Any:
        tensors = iter(given)
        values = {
            argument.removesuffix("_shape"): {name: next(tensors) for name in shape}
            if isinstance(shape, Mapping)
            else next(tensors)
            for argument, shape in arguments.items()
        }
        return model(values[""], training=False) if "" in values else model(**values, training=False)

    dtype = str(getattr(model, "variable_dtype", None) or "float32")
    return KerasInputs(tuple(names), (dtype,) * len(names), tuple(shapes), call)
