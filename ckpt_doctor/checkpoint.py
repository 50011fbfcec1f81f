"""What any format gives: variables and, unread, what the file says about its model.

Names are those in the file and never normalised: they are the keys for rewriting. Values are read on demand, so that
looking at a checkpoint of ten gigabytes costs its index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The kinds of defects of a container: the names of the CK rules that report them.
DefectKind = Literal[
    "missing-shard",
    "truncated",
    "checksum-mismatch",
    "not-a-checkpoint",
    "stale-checkpoint-state",
    "unfinished-save",
    "missing-variables",
]
# The formats, as in the JSON reports.
FormatName = Literal[
    "tensor-bundle",
    "tensor-slices-v1",
    "saved-model",
    "keras-hdf5",
    "keras-weights-hdf5",
    "keras-v3",
    "keras-weights-v3",
]


@dataclass(frozen=True)
class Layout:
    """What code that does not read a format must know of it.

    Attributes:
        keras: Keras' own savers wrote it, each layer's variables in the order in which the layer made them.
        roles_by_position: A variable's name is its place in the layer (`…/vars/0`) and tells nothing of its role.
        weights_only: It has no room for a description of the model.
        restores_objects: TensorFlow restores it into objects (`tf.train.Checkpoint`), also without its graph.
        one_file: It is one file, or the index of several, and its extension says what it is.
        folder: It is a folder.
        suffix: What follows the path of the checkpoint in the name of the one file that stands for it.
    """

    keras: bool = False
    roles_by_position: bool = False
    weights_only: bool = False
    restores_objects: bool = False
    one_file: bool = False
    folder: bool = False
    suffix: str = ""

    @property
    def legacy_keras(self) -> bool:
        """Whether it is Keras' legacy HDF5: weights by name, in the order of lists that the file holds."""
        return self.keras and not self.roles_by_position


LAYOUTS: dict[FormatName, Layout] = {
    "tensor-bundle": Layout(restores_objects=True, suffix=".index"),
    "tensor-slices-v1": Layout(),
    "saved-model": Layout(restores_objects=True, folder=True, suffix="/saved_model.pb"),
    "keras-hdf5": Layout(keras=True, one_file=True),
    "keras-weights-hdf5": Layout(keras=True, weights_only=True, one_file=True),
    "keras-v3": Layout(keras=True, roles_by_position=True, one_file=True),
    "keras-weights-v3": Layout(keras=True, roles_by_position=True, weights_only=True, one_file=True),
}


@dataclass(frozen=True)
class Damage:
    """One defect of the container, found by a format; a rule of the CK family reports it.

    Attributes:
        kind: The name of the rule that reports it.
        where: The file, with an offset in bytes or the variable where that helps.
        message: What was found, what was expected, and what to do if that is certain.
        variables: Names of the variables that cannot be trusted because of it.
    """

    kind: DefectKind
    where: str
    message: str
    variables: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Variable:
    """One stored tensor.

    Attributes:
        name: Its key in the file, untouched.
        shape: Its dimensions; `()` for a scalar.
        dtype: TensorFlow's name of the type (`float32`, `bfloat16`, `string`, `qint8` …).
        nbytes: Its stored size in bytes.
        reader: Reads the value; `read` is its public face.
        label: The name for people that the file gives beside the key (the object graph's `full_name`, the `name`
            attribute of a Keras 3 group), or None.
        pieces: Yields the values in pieces of any shape, in any order, where the value is many times as large as what
            is stored of it; None where it is not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    reader: Callable[[], Array] = field(repr=False)
    label: str | None = None
    pieces: Callable[[], Iterator[Array]] | None = field(default=None, repr=False)

    def read(self) -> Array:
        """Return the value, of shape `shape`.

        Strings come as an object array of `bytes`; quantised integers as the integers that hold them.

        Raises:
            UnreadableCheckpoint: The bytes are missing or fail their checksum.
        """
        return self.reader()


@dataclass(frozen=True, eq=False)
class ModelDescriptions:
    """What the file, or a file beside it, says about the model: raw, unread, None where absent.

    Attributes:
        meta_graph: A serialised `MetaGraphDef` (the `.meta` beside a bundle).
        meta_graph_path: Where it was read from.
        saved_model: A serialised `SavedModel` (`saved_model.pb`).
        object_graph: A serialised `TrackableObjectGraph`.
        keras_config: The JSON of a Keras model: `{"class_name": …, "config": …}`.
        keras_training: The JSON of its compile call (`training_config`, `compile_config`).
        live: What a live model, built by the function that `--model` names, says of these variables: a
            `graphs.facts.ModelFacts`.
        unread: Why a model that lies there is not among these, where it cannot be read.
    """

    meta_graph: bytes | None = None
    meta_graph_path: str | None = None
    saved_model: bytes | None = None
    object_graph: bytes | None = None
    keras_config: str | None = None
    keras_training: str | None = None
    live: object | None = None
    unread: str | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One checkpoint as it lies in storage.

    Attributes:
        path: The name that its user would give: a prefix, a folder, or a file.
        format: What it is.
        variables: Every stored tensor in file order, optimizer slots included.
        bookkeeping: Entries that are no tensors of the model (`_CHECKPOINTABLE_OBJECT_GRAPH`, object-config strings).
        files: Every file that belongs to it, the one that commits a save last.
        bytes: Their summed size.
        producer: The program that wrote it, if it says so.
        descriptions: What is said about the model.
        damages: Defects that were seen while opening and leave the rest readable.
        attributes: What else the format must remember for a rewrite or a judgement (Keras version, layer names …).
        places: Where `path` and `files` are while they are only staged and have these names later (see
            `formats.staging`); empty for a checkpoint that is where its names say.
    """

    path: str
    format: FormatName
    variables: tuple[Variable, ...]
    files: tuple[str, ...]
    bytes: int
    bookkeeping: tuple[Variable, ...] = ()
    producer: str | None = None
    descriptions: ModelDescriptions = field(default_factory=ModelDescriptions)
    damages: tuple[Damage, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    def place_of(self, name: str) -> str:
        """Return the path at which the bytes of `name` are now: `path`, or one of `files`."""
        return self.places.get(name, name)

    @property
    def place(self) -> str:
        """The path that another program can open now; messages give `path`."""
        return self.place_of(self.path)

    @property
    def layout(self) -> Layout:
        """What its format is like."""
        return LAYOUTS[self.format]

    def variable(self, name: str) -> Variable | None:
        """Return the variable of exactly this name, or None."""
        return self._by_name.get(name)

    @property
    def _by_name(self) -> dict[str, Variable]:
        index: dict[str, Variable] | None = self.__dict__.get("_index")
        if index is None:
            index = {variable.name: variable for variable in self.variables}
            object.__setattr__(self, "_index", index)
        return index


# TensorFlow's names and NumPy's, where they differ or NumPy needs ml_dtypes (tensorflow/core/framework/types.proto).
_HELD_AS = {
    "string": "object",
    "qint8": "int8",
    "quint8": "uint8",
    "qint32": "int32",
    "qint16": "int16",
    "quint16": "uint16",
}


@cache
def find_numpy_dtype(name: str) -> np.dtype[Any] | None:
    """Return the NumPy dtype that holds values of TensorFlow's type `name`; None if NumPy and ml_dtypes have none."""
    name = _HELD_AS.get(name, name)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        exotic = getattr(ml_dtypes, name, None)
        return np.dtype(exotic) if isinstance(exotic, type) else None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype that holds values of TensorFlow's type `name`.

    Raises:
        KeyError: NumPy and ml_dtypes have no such type (`resource`, `variant`).
    """
    dtype = find_numpy_dtype(name)
    if dtype is None:
        raise KeyError(name)
    return dtype


def same_values(left: Array, right: Array) -> bool:
    """Return whether two arrays have one dtype, one shape and the same bytes (NaN equals the same NaN)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return bool(np.array_equal(left, right))
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


def by_name(variables: Iterable[Variable]) -> dict[str, Variable]:
    """Return the variables keyed by name."""
    return {variable.name: variable for variable in variables}
