"""The batch-norm layers and the variables of a live Keras model."""

from __future__ import annotations

from typing import Any

from ckpt_doctor.capture.keras_captures import wrapped_variable
from ckpt_doctor.graphs.keras_layers import BATCH_NORM_CLASSES


def batch_norms(model: Any) -> list[Any]:
    """Return the batch-norm layers of a model, those inside custom layers and of derived classes included."""
    return [layer for layer in model._flatten_layers() if is_batch_norm(type(layer))]


def is_batch_norm(kind: type) -> bool:
    """Return whether a class is Keras' batch normalisation, or derived from it."""
    return any(base.__name__ in BATCH_NORM_CLASSES for base in kind.__mro__)


def is_variable(item: Any) -> bool:
    """Return whether a live object is a variable, of Keras or of TensorFlow."""
    return hasattr(item, "handle") or hasattr(wrapped_variable(item), "handle")


def identity(variable: Any) -> int:
    """Return what is the same for all objects that stand for one variable: Keras wraps it to cast what it gives.

    A table that Keras 2 lists among its weights has no handle, and stands for itself.
    """
    wrapped = wrapped_variable(variable)
    return id(getattr(wrapped, "handle", wrapped))


def named(model: Any) -> dict[str, Any]:
    """Return the batch-norm layers of a model by the names that `graphs.keras_config` gives them."""
    found: list[tuple[tuple[str, ...], Any]] = []
    everything: list[str] = []

    def visit(layer: Any, path: tuple[str, ...]) -> None:
        inner = getattr(layer, "layers", None)
        if isinstance(inner, list) and type(layer).__name__ not in BATCH_NORM_CLASSES:
            for child in inner:
                visit(child, (*path, child.name))
            return
        everything.append(path[-1])
        if is_batch_norm(type(layer)):
            found.append((path, layer))
        for attribute in ("layer", "forward_layer", "backward_layer"):
            child = getattr(layer, attribute, None)
            if child is not None and hasattr(child, "name"):
                visit(child, (*path, child.name))

    for layer in model.layers:
        visit(layer, (layer.name,))
    return {path[-1] if everything.count(path[-1]) == 1 else "/".join(path): layer for path, layer in found}
