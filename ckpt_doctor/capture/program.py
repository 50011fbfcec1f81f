"""A model, ready to be measured: a graph cut open at its batch-norm sites, its values, its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.graphs.cut import CutGraph


@dataclass(frozen=True)
class ModelInput:
    """A tensor that takes data.

    Attributes:
        name: What a user calls it: the placeholder without `:0`, or the Keras input's name.
        tensor: Its name in the graph.
        dtype: TensorFlow's name of its type.
        shape: Its dimensions, None where any size will do; None where even the rank is open.
        original: What the model itself calls it, where `tensor` is a name of ours: a tensor, or a Keras input.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None
    original: str | None = None

    @property
    def target(self) -> str:
        """What the options `--input` and `--feed` call it."""
        return self.original or self.tensor


@dataclass(frozen=True, eq=False)
class Program:
    """What the engine runs.

    Attributes:
        cut: The graph with its sites; every layer that may be measured is cut.
        inputs: The tensors that take data.
        values: Variable node to a function that reads its value. Whoever sets the variables takes them out: behind the
            functions lies a whole model in memory, which nothing needs afterwards.
        feeds: Tensor to a value that is fed in every run.
        notes: What was done to the graph, in words.
        left: Layer to the reason why it is not cut open.
        random: Names of the operations before a layer that draw random numbers, other ones in each run.
    """

    cut: CutGraph
    inputs: tuple[ModelInput, ...]
    values: MutableMapping[str, Callable[[], Array]]
    feeds: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    random: tuple[str, ...] = ()
