"""What is fed to a model: every form of `--data`, matched to the inputs, in an order that a seed decides.

Arrays in `file.npz` (matched to the inputs by name; a single array feeds a single input), `file.npz[key]`, `file.npy`,
`file.h5[dataset]`, each also as `NAME=…` for one of several inputs; a folder of images; `*.tfrecord`; and
`MODULE:FUNCTION` or `path.py:FUNCTION`, which gives a `tf.data.Dataset` or an iterable of batches.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.capture.arrays import listed, read_arrays, whole
from ckpt_doctor.capture.images import image_samples
from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.capture.samples import Samples, from_arrays, from_stream, permutation
from ckpt_doctor.capture.streams import Stream, by_input, record_batches, stacked, user_batches, within_bounds
from ckpt_doctor.capture.user_code import call, is_reference, load_function
from ckpt_doctor.checkpoint import Array, numpy_dtype
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.graphs.graph import tensor_name
from ckpt_doctor.options import DataOptions
from ckpt_doctor.progress import Listener, unheard

_log = logging.getLogger(__name__)

_ARGUMENT = re.compile(r"^(?P<path>.*?)(?:\[(?P<key>[^\[\]]+)\])?$", re.DOTALL)
_ARRAY_FILES = (".npz", ".npy", ".h5", ".hdf5")
# Values looked at for the warnings on ranges: enough to see a scale, cheap for any size.
_LOOKED_AT = 64
_NOT_FINITE = "holds NaN or infinite values; remove them first"


@dataclass(frozen=True)
class _Found:
    """An array of a file.

    Attributes:
        argument: The argument that names the file, for messages.
        name: What the user calls it: `NAME=FILE`; None where it was not named.
        key: What the file calls it; empty in a file that holds one array without a name.
        chosen: Whether the user picked it: `FILE[KEY]`.
        array: An array, or what can be indexed like one.
    """

    argument: str
    name: str | None
    key: str
    chosen: bool
    array: Any


def read_samples(
    options: DataOptions, inputs: Sequence[ModelInput], kept: ExitStack, progress: Listener = unheard
) -> Samples:
    """Return the data that `--data` names, matched to the inputs of a model.

    Args:
        options: What to read, in the forms of the module's docstring, and how. The seed decides the order of arrays and
            images, `numpy.random.default_rng(seed).permutation(samples)`; streams keep theirs, and a user's own batches
            stay as they are.
        inputs: The inputs that have to be fed.
        kept: Frees files and temporary copies when it is closed.
        progress: Hears of every batch of a stream.

    Raises:
        BadRequest: A file is absent or unreadable, or its arrays do not fit the inputs, or a stream does not end.
    """
    if not options.data:
        raise BadRequest("no data: pass --data FILE.npz")
    argument = _single_source("--data", options.data)
    if argument is None:
        samples = _from_array_files(options, inputs, kept)
    elif Path(argument).is_dir():
        entry = _only_input(f"--data {argument}", inputs)
        samples = image_samples(Path(argument), entry, options, limit=options.samples, seed=options.seed)
    else:
        notes: list[str] = []
        stream = _stream("--data", argument, options, limited=options.samples is not None)
        batches = _checked(argument, stream.batches, inputs, options, notes)
        if not stream.ends and options.samples is None:
            batches = within_bounds(f"--data {argument}", batches)
        samples = from_stream(batches, options.samples, notes, kept, progress)
    if not len(samples):
        raise BadRequest(f"--data {options.data[0]}: the data contain no samples")
    return samples


def read_unmatched(option: str, options: DataOptions, inputs: Callable[[], Sequence[ModelInput]]) -> Any:
    """Return all that `--data` names as it is: in the order that it has, and what no input takes (labels) too.

    Args:
        option: The option that named the data, for messages.
        options: What to read, and how.
        inputs: Gives the inputs of the model, which say how images are read.

    Returns:
        For files, and for a folder of images, a dict of arrays by name: the user's, else the file's (empty for a
        `.npy`), else the input's. For TFRecords what `--parse` returns, all records stacked. For a function what it
        returns.

    Raises:
        BadRequest: A file is absent or unreadable, or a function fails.
    """
    argument = _single_source(option, options.data)
    if argument is None:
        return _all_arrays(option, options.data)
    path = Path(argument)
    if path.is_dir():
        entry = _only_input(f"{option} {argument}", inputs())
        images = image_samples(path, entry, options, limit=None, seed=None, option=option)
        return {entry.name: np.concatenate([batch[entry.tensor] for batch in images])}
    if _is_records(argument):
        batches = list(_stream(option, argument, options, limited=False).batches)
        if not batches:
            raise BadRequest(f"{option} {argument}: the data contain no samples")
        return stacked(f"{option} {argument}", batches)
    return call(option, argument, load_function(option, argument))


def fixed_shapes(options: DataOptions, inputs: Sequence[ModelInput]) -> tuple[tuple[int, ...], ...] | None:
    """Return the dimensions of the arrays that feed the inputs; None for data whose batches may differ in shape.

    Raises:
        BadRequest: As `read_samples` does.
    """
    if not options.data or any(map(_is_single_source, options.data)):
        return None
    with ExitStack() as kept:
        first = _from_array_files(options, inputs, kept).read(0)
        return tuple(first[entry.tensor].shape for entry in inputs)


def _is_records(argument: str) -> bool:
    return ".tfrecord" in Path(argument).name


def _is_single_source(argument: str) -> bool:
    """Return whether an argument is a folder of images, TFRecord files or a function, and no file of arrays."""
    path = Path(argument)
    return _is_records(argument) or path.is_dir() or (is_reference(argument) and not path.exists())


def _single_source(option: str, arguments: Sequence[str]) -> str | None:
    """Return the argument that is a folder, records or a function; None where all are array files."""
    for argument in arguments:
        if not _is_single_source(argument):
            continue
        if len(arguments) > 1:
            raise BadRequest(f"{option} {argument}: feeds the whole model and cannot be combined with other {option}")
        kind = "a folder of images" if Path(argument).is_dir() else "records" if _is_records(argument) else "a function"
        _log.debug("%s %s: is read as %s", option, argument, kind)
        return argument
    return None


def _only_input(where: str, inputs: Sequence[ModelInput]) -> ModelInput:
    if len(inputs) != 1:
        raise BadRequest(f"{where}: images feed a single input; the model has {len(inputs)}")
    return inputs[0]


def _stream(option: str, argument: str, options: DataOptions, *, limited: bool) -> Stream:
    if _is_records(argument):
        return Stream(record_batches(option, argument, options.parse, options.batch_size), ends=True)
    return user_batches(option, argument, limited=limited)


def _checked(
    argument: str, batches: Iterator[Any], inputs: Sequence[ModelInput], options: DataOptions, notes: list[str]
) -> Iterator[dict[str, Array]]:
    entries = {entry.tensor: entry for entry in inputs}
    renamed = _renamed(options, inputs)
    for number, batch in enumerate(batches):
        table = by_input(argument, batch, inputs, renamed)
        fitted = {}
        for tensor, array in table.items():
            fits(f"--data {argument}: a batch for {entries[tensor].name}", array, entries[tensor])
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise BadRequest(f"--data {argument}: a batch {_NOT_FINITE}")
            notes.extend(remarks("the data", array, entries[tensor]))
            fitted[tensor] = array.astype(numpy_dtype(entries[tensor].dtype), copy=False)
            if not number:
                name = entries[tensor].name
                _log.debug("--data %s: %s %s feeds the input %s (%s)", argument, array.shape, array.dtype, name, tensor)
        if len({len(array) for array in fitted.values()}) > 1:
            raise BadRequest(f"--data {argument}: the inputs of one batch have different numbers of samples")
        yield fitted


def _from_array_files(options: DataOptions, inputs: Sequence[ModelInput], kept: ExitStack) -> Samples:
    found: dict[str, tuple[str, Any]] = {}
    for argument in options.data:
        for one in _arrays("--data", argument, kept):
            name = one.name if one.name is not None else "" if one.chosen else one.key
            if name in found:
                raise BadRequest(f"--data {argument}: {name or 'the array'} is already fed, by {found[name][0]}")
            found[name] = (argument, one.array)
    notes: list[str] = []
    arrays: dict[str, Any] = {}
    for name, entry in _match(found, inputs, _renamed(options, inputs)):
        argument, array = found[name]
        where = f"--data {argument}: array {name or '(the only one)'}"
        fits(where, array, entry)
        notes.extend(remarks(name or "the data", array, entry))
        _log.debug("%s %s %s feeds the input %s (%s)", where, tuple(array.shape), array.dtype, entry.name, entry.tensor)
        arrays[entry.tensor] = _Typed(array, entry, where)
    lengths = {tensor: len(array) for tensor, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise BadRequest(
            "the inputs have different numbers of samples: "
            + ", ".join(f"{tensor} {length}" for tensor, length in lengths.items())
        )
    count = next(iter(lengths.values()))
    order = permutation(count, options.seed)[: options.samples or count]
    return from_arrays(arrays, order, options.batch_size, notes)


def _all_arrays(option: str, arguments: Sequence[str]) -> dict[str, Array]:
    """Return the arrays of files as they are, in memory."""
    table: dict[str, Array] = {}
    for argument in arguments:
        with ExitStack() as kept:
            for one in _arrays(option, argument, kept, several=True):
                name = one.name if one.name is not None else one.key
                if name in table:
                    raise BadRequest(f"{option} {argument}: {name or 'the array'} is already fed")
                table[name] = whole(f"{option} {argument}", one.array)
    return table


def _renamed(options: DataOptions, inputs: Sequence[ModelInput]) -> dict[str, str]:
    """Return name in the data to the tensor of the input that `--input` says it feeds."""
    by_tensor = {tensor_name(target): name for name, target in options.inputs.items()}
    return {
        name: entry.tensor
        for entry in inputs
        for target, name in by_tensor.items()
        if target in (tensor_name(entry.name), entry.target)
    }


class _Typed:
    """An array, read and cast batch by batch; refuses values that are not finite."""

    def __init__(self, array: Any, entry: ModelInput, where: str) -> None:
        self.array = array
        self.dtype = numpy_dtype(entry.dtype)
        self.where = where

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __getitem__(self, chosen: Array) -> Array:
        value: Array = self.array[chosen]
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise BadRequest(f"{self.where} {_NOT_FINITE}")
        return value.astype(self.dtype, copy=False)


def _parsed(argument: str) -> tuple[str | None, Path, str | None]:
    """Return name, file and key of `NAME=FILE[KEY]`; what is there under the longer name is that file."""
    found = _ARGUMENT.match(argument)
    assert found is not None
    for path, key in ((argument, None), (found["path"], found["key"])):
        if Path(path).exists():
            return None, Path(path), key
    name, equals, path = found["path"].partition("=")
    return (name, Path(path), found["key"]) if equals and name and path else (None, Path(found["path"]), found["key"])


def _arrays(option: str, argument: str, kept: ExitStack, *, several: bool = False) -> list[_Found]:
    """Return the arrays of one argument.

    Args:
        option: The option that named it, for messages.
        argument: What was given.
        kept: Frees files and temporary copies when it is closed.
        several: Whether all datasets of an HDF5 file are wanted where none is picked.
    """
    name, path, key = _parsed(argument)
    where = f"{option} {argument}"
    if not path.exists():
        raise BadRequest(f"{where}: no such file: {path}")
    if path.suffix.lower() not in _ARRAY_FILES:
        raise BadRequest(
            f"{where}: {path.name}: unsupported data format; expected .npz, .npy, .h5[DATASET], a folder of images, "
            "*.tfrecord or MODULE:FUNCTION"
        )
    arrays = read_arrays(where, path, key, kept, several=several and name is None)
    if name is not None and len(arrays) != 1:
        raise BadRequest(f"{where}: {path.name} holds {listed(arrays)}; choose one with {path}[NAME]")
    return [_Found(argument, name, found, key is not None, array) for found, array in arrays.items()]


def _match(
    found: Mapping[str, tuple[str, Any]], inputs: Sequence[ModelInput], renamed: Mapping[str, str]
) -> Iterator[tuple[str, ModelInput]]:
    """Yield the name in the data for every input of the model."""
    if len(renamed) == 1 and list(found) == [""]:
        # `--data FILE.npz[x] --input x=TENSOR`: the only array there is, whatever it is called.
        renamed = {"": next(iter(renamed.values()))}
    targets = {target: name for name, target in renamed.items()}
    for name, target in renamed.items():
        if name not in found:
            names = ", ".join(other or "one without a name" for other in found)
            raise BadRequest(f"--input {name}={target}: the data have no array {name!r}; they have {names}")
    for entry in inputs:
        candidates = (targets.get(entry.tensor), entry.name, entry.tensor)
        fitting = [name for name in candidates if name is not None and name in found]
        if not fitting and len(inputs) == 1 and len(found) == 1:
            fitting = list(found)
        if not fitting:
            wanted = ", ".join(f"{other.name} {shape_of(other)}" for other in inputs)
            held = listed({name: array for name, (_, array) in found.items()})
            constant = f"; or feed a constant with --feed {entry.target}=VALUE" if entry.shape in ((), None) else ""
            likely = [name for name, (_, array) in found.items() if name and _could_feed(array, entry)]
            key = likely[0] if len(likely) == 1 else "KEY"
            raise BadRequest(
                f"no array {entry.name!r} in the data, which the model needs as input; the data contain {held}, the "
                f"model takes {wanted}; map an array with --input {key}={entry.target}, or name it with --data "
                f"{entry.name}=FILE.npz[{key}]{constant}"
            )
        yield fitting[0], entry


def shape_of(entry: ModelInput) -> str:
    """Return an input's shape in words."""
    if entry.shape is None:
        return "of any shape"
    return "(" + ", ".join("?" if size is None else str(size) for size in entry.shape) + ")"


def fits(where: str, array: Any, entry: ModelInput) -> None:
    """Refuse an array whose shape or type an input cannot take.

    Raises:
        BadRequest: It cannot.
    """
    shape = tuple(array.shape)
    if not shape:
        raise BadRequest(f"{where} is a single number; expected samples of {entry.name} {shape_of(entry)}")
    if entry.shape is not None and (
        len(shape) != len(entry.shape)
        or any(wanted not in (None, size) for wanted, size in zip(entry.shape[1:], shape[1:], strict=True))
    ):
        raise BadRequest(f"{where} has shape {shape}; the input {entry.name} takes {shape_of(entry)}")
    wanted = numpy_dtype(entry.dtype)
    # What NumPy can turn into the input's type without losing its meaning.
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b", "c": "fiubc", "V": "fiub", "O": "SU"}
    if wanted.kind != array.dtype.kind and array.dtype.kind not in kinds.get(wanted.kind, ""):
        raise BadRequest(f"{where} is of type {array.dtype}; the input {entry.name} takes {entry.dtype}")


def _could_feed(array: Any, entry: ModelInput) -> bool:
    """Return whether an array has a shape and a type that an input can take."""
    try:
        fits("", array, entry)
    except BadRequest:
        return False
    return True


def remarks(name: str, array: Any, entry: ModelInput) -> Iterator[str]:
    """Yield what looks odd about the values: judged by the first few samples."""
    if not array.shape[0]:
        return
    head = np.asarray(array[:_LOOKED_AT])
    if head.dtype.kind in "fiub" and not np.any(head):
        yield f"{name}: the first {len(head)} samples are all zero"
    elif numpy_dtype(entry.dtype).kind == "f" and head.dtype.kind in "iu" and head.size and np.max(head) > 1:
        yield (
            f"{name}: integers of type {head.dtype} feed the float input {entry.name}; if the model was trained on "
            "scaled values, scale these in the same way"
        )
