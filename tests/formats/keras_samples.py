"""The samples that real versions of Keras wrote, and what h5py and Keras say they hold."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np

from ckpt_doctor.checkpoint import Array
from tests.formats.contract import Expected

SAMPLES = Path(__file__).parents[2] / "fixtures" / "formats" / "keras"
NAMES = sorted(path.name.removesuffix(".expected.json") for path in SAMPLES.glob("*.expected.json"))


def recorded(name: str) -> dict[str, Any]:
    """Return what was recorded when a sample was made."""
    record: dict[str, Any] = json.loads((SAMPLES / f"{name}.expected.json").read_text())
    return record


def expected(name: str) -> Expected:
    """Return what a sample holds: name → type, value."""
    variables = recorded(name)["variables"]
    with np.load(SAMPLES / f"{name}.expected.npz") as arrays:
        values = [arrays[f"v{index}"] for index in range(len(variables))]
    return {
        variable: (about["dtype"], _typed(value, about["dtype"]))
        for (variable, about), value in zip(variables.items(), values, strict=True)
    }


def raw_values(path: str) -> dict[str, Array]:
    """Return every dataset of a file, an archive or a set of shards, by h5py alone."""
    values: dict[str, Array] = {}
    for holder in _holders(Path(path)):
        with h5py.File(holder, "r") as file:
            file.visititems(lambda name, item: values.__setitem__(name, _value(item)) if _is_dataset(item) else None)
    return values


def attributes(path: str) -> dict[str, Any]:
    """Return every group's and dataset's attributes and links, in their order."""
    found: dict[str, Any] = {}
    for number, holder in enumerate(_holders(Path(path))):
        with h5py.File(holder, "r") as file:

            def visit(name: str, item: Any, number: int = number) -> None:
                own = [(key, np.asarray(value).tolist()) for key, value in item.attrs.items()]
                found[f"{number}:{name}"] = (own, [] if _is_dataset(item) else list(item))

            visit("", file)
            file.visititems(visit)
    return found


def _holders(path: Path) -> list[Path | BinaryIO]:
    if path.name.endswith(".weights.json"):
        shards = json.loads(path.read_text())["weight_map"].values()
        flat = [name for each in shards for name in ([each] if isinstance(each, str) else each)]
        return [path.with_name(name) for name in dict.fromkeys(flat)]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [io.BytesIO(archive.read("model.weights.h5"))]
    return [path]


def _is_dataset(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def _value(dataset: Any) -> Array:
    value = np.asarray(dataset[()])
    return value.view(ml_dtypes.bfloat16) if value.dtype.kind == "V" else value


def _typed(value: Array, dtype: str) -> Array:
    return value.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else value
