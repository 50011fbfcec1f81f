"""What is fed to a model: arrays, in batches, in an order that a seed decides.

`file.npz` (arrays matched to the inputs by name; a single array feeds a single input), `file.npz[key]`, `file.npy`,
each also as `NAME=…` for one of several inputs.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.checkpoint import Array, numpy_dtype
from ckpt_doctor.errors import BadRequest

_ARGUMENT = re.compile(r"^(?:(?P<name>[^=\[\]/\\]+)=)?(?P<path>.+?)(?:\[(?P<key>[^\[\]]+)\])?$")


@dataclass(frozen=True, eq=False)
class Samples:
    """Arrays that belong together, sample by sample.

    Attributes:
        arrays: Tensor name to array, each of shape `(samples, …)`.
        order: Indices of the samples in the order of use.
        batch_size: Samples in a batch; the last one may be shorter.
        notes: What looks odd about the data, a sentence each.
    """

    arrays: Mapping[str, Array]
    order: Array
    batch_size: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.order)

    @property
    def batch_count(self) -> int:
        """Number of batches."""
        return -(-len(self.order) // self.batch_size)

    def batch(self, number: int) -> dict[str, Array]:
        """Return one batch: tensor name to array of shape `(batch, …)`."""
        chosen = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        return {tensor: np.ascontiguousarray(array[chosen]) for tensor, array in self.arrays.items()}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self.batch(number) for number in range(self.batch_count))


def read_samples(
    arguments: Sequence[str],
    inputs: Sequence[ModelInput],
    *,
    renamed: Mapping[str, str] | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    seed: int = 0,
) -> Samples:
    """Return the data that the arguments name, matched to the inputs of a model.

    Args:
        arguments: The forms in the module's docstring.
        inputs: The inputs that have to be fed.
        renamed: Name in the data to the input or tensor that it feeds.
        batch_size: Samples in a batch.
        limit: Use at most so many samples, chosen by the seed.
        seed: Decides the order: `numpy.random.default_rng(seed).permutation(samples)`.

    Raises:
        BadRequest: A file is absent or unreadable, or its arrays do not fit the inputs.
    """
    if batch_size < 1:
        raise BadRequest(f"--batch-size {batch_size}: a batch holds at least one sample")
    if limit is not None and limit < 1:
        raise BadRequest(f"--samples {limit}: at least one sample is needed")
    found: dict[str, tuple[str, Array]] = {}
    for argument in arguments:
        for name, array in _arrays(argument).items():
            if name in found:
                raise BadRequest(f"--data {argument}: {name or 'the array'} was given before, by {found[name][0]}")
            found[name] = (argument, array)
    if not found:
        raise BadRequest("no data given; name it with --data FILE.npz")
    matched = _match(found, inputs, dict(renamed or {}))
    notes: list[str] = []
    arrays = {entry.tensor: _fitting(argument, name, array, entry, notes) for name, argument, array, entry in matched}
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) > 1:
        raise BadRequest(
            "the inputs have different numbers of samples: "
            + ", ".join(f"{tensor} {len(array)}" for tensor, array in arrays.items())
        )
    count = lengths.pop()
    if count == 0:
        raise BadRequest("the data hold no samples")
    order = np.random.default_rng(seed).permutation(count)[: limit or count]
    return Samples(arrays, order, batch_size, tuple(notes))


def _arrays(argument: str) -> dict[str, Array]:
    """Return the arrays of one `--data` argument by name; the name is empty where nothing names the only array."""
    found = _ARGUMENT.match(argument)
    assert found is not None
    path, key, name = Path(found["path"]), found["key"], found["name"]
    if not path.exists() and Path(argument).exists():
        path, key, name = Path(argument), None, None
    if not path.exists():
        raise BadRequest(f"--data {argument}: there is no file {path}")
    arrays = _read(argument, path)
    if key is not None:
        if key not in arrays:
            raise BadRequest(f"--data {argument}: {path.name} has no array {key!r}; it has {_listed(arrays)}")
        arrays = {name or "": arrays[key]}
    elif name is not None:
        if len(arrays) != 1:
            raise BadRequest(
                f"--data {argument}: {path.name} holds {_listed(arrays)}; say which one is meant: {path}[NAME]"
            )
        arrays = {name: next(iter(arrays.values()))}
    return arrays


def _read(argument: str, path: Path) -> dict[str, Array]:
    try:
        if path.suffix == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadRequest(f"--data {argument}: {path} cannot be read as {path.suffix}: {error}") from error
    raise BadRequest(f"--data {argument}: {path.name} is of no form that is read; .npz and .npy are")


def _listed(names: Mapping[str, Array]) -> str:
    return ", ".join(f"{name or 'one array'} {array.shape}" for name, array in names.items()) or "nothing"


def _match(
    found: Mapping[str, tuple[str, Array]], inputs: Sequence[ModelInput], renamed: Mapping[str, str]
) -> list[tuple[str, str, Array, ModelInput]]:
    """Return name, argument, array and input for every input of the model."""
    by_input = {target.split(":")[0]: name for name, target in renamed.items()}
    for name in renamed:
        if name not in found:
            raise BadRequest(
                f"--input {name}={renamed[name]}: the data have no array {name!r}; they have {_names(found)}"
            )
    matched = []
    for entry in inputs:
        candidates = [by_input.get(entry.tensor.split(":")[0]), by_input.get(entry.name), entry.name, entry.tensor]
        fitting = [candidate for candidate in candidates if candidate is not None and candidate in found]
        if not fitting and len(inputs) == 1 and len(found) == 1:
            fitting = list(found)
        if not fitting:
            wanted = ", ".join(f"{other.name} {_shape(other)}" for other in inputs)
            raise BadRequest(
                f"nothing in the data is called {entry.name!r}, which the model needs as input; the data hold "
                f"{_listed({key: array for key, (_, array) in found.items()})}, the model takes {wanted}; name it "
                f"with --data {entry.name}=FILE.npz[KEY] or map it with --input KEY={entry.tensor}"
            )
        name = fitting[0]
        matched.append((name, found[name][0], found[name][1], entry))
    return matched


def _names(found: Mapping[str, object]) -> str:
    return ", ".join(name or "one without a name" for name in found) or "none"


def _shape(entry: ModelInput) -> str:
    if entry.shape is None:
        return "of any shape"
    return "(" + ", ".join("?" if size is None else str(size) for size in entry.shape) + ")"


def _fitting(argument: str, name: str, array: Array, entry: ModelInput, notes: list[str]) -> Array:
    """Return the array in the type of the input."""
    where = f"--data {argument}: array {name or '(the only one)'}"
    if array.ndim == 0:
        raise BadRequest(f"{where} is a single number; expected samples of {entry.name} {_shape(entry)}")
    if entry.shape is not None:
        fits = len(array.shape) == len(entry.shape) and all(
            wanted is None or wanted == size for wanted, size in zip(entry.shape[1:], array.shape[1:], strict=False)
        )
        if not fits:
            raise BadRequest(f"{where} has shape {array.shape}; the input {entry.name} takes {_shape(entry)}")
    wanted = numpy_dtype(entry.dtype)
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b", "c": "fiubc", "V": "fiub"}
    if wanted.kind != array.dtype.kind and array.dtype.kind not in kinds.get(wanted.kind, ""):
        raise BadRequest(f"{where} is of type {array.dtype}; the input {entry.name} takes {entry.dtype}")
    if wanted.kind == "f" and array.dtype.kind in "iu" and array.size and np.max(array[:64]) > 1:
        notes.append(
            f"{name or 'the data'}: whole numbers of type {array.dtype} feed the float input {entry.name}; if the "
            "model was trained on scaled values, scale these alike"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"{where} holds NaN or infinite values; statistics of them would be useless")
    if not np.any(array):
        notes.append(f"{name or 'the data'}: every value is zero")
    return array if array.dtype == wanted else array.astype(wanted)
