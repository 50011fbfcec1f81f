"""What is fuzzed: for each reader its seeds, the ways to damage them, and what is done with the result."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import ckpt_doctor
from ckpt_doctor import baseline
from ckpt_doctor.analysis import analyse
from ckpt_doctor.capture.arrays import read_arrays, whole
from ckpt_doctor.checkpoint import Checkpoint, ModelDescriptions
from ckpt_doctor.cli import configuration
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import _snappy, _table, open_checkpoint
from ckpt_doctor.formats._damaged import Damaged
from ckpt_doctor.formats._json import parsed_or_none
from ckpt_doctor.formats._state_file import read_state
from ckpt_doctor.formats.receipt import repaired_layers
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb
from ckpt_doctor.selection import Selection
from ckpt_doctor.verdict import Policy, judge
from tests.fuzz import mutators
from tests.fuzz.mutators import Mutate

FIXTURES = Path(__file__).parents[2] / "fixtures"
FORMATS = FIXTURES / "formats"
KERAS = FORMATS / "keras"
ZOO = FIXTURES / "zoo" / "tf1"

# Content of the damaged file, and an empty folder of this one input.
Run = Callable[[bytes, Path], None]


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: What it reads.
        seeds: Whole files.
        mutate: Ways to damage one.
        run: Reads a damaged one; raises whatever escapes.
        share: How many of a thousand inputs are of it: the fewer, the longer one takes.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutate: tuple[Mutate, ...]
    run: Run
    share: int


# -- seeds


def _files(*paths: Path) -> list[bytes]:
    found = [path.read_bytes() for path in paths]
    assert found
    return found


def _tables() -> list[bytes]:
    return _files(*sorted(FORMATS.glob("bundle_*/*.index")), FORMATS / "v1" / "sample")


def _snappy_blocks() -> list[bytes]:
    """A literal, copies of each width, and a copy that overlaps itself (google/snappy, format_description.txt)."""
    return [
        b"\x05\x10hello",
        b"\x0c\x0cabcd\x01\x04\x0e\x04\x00",
        b"\x40\x00a\xfe\x01\x00",
        b"\x0a\x04ab\x1f\x02\x00\x00\x00",
        b"\x80\x01\xf0\x3f" + b"x" * 64 + b"\xfe\x40\x00",
    ]


@cache
def _object_graphs() -> list[bytes]:
    paths = [FORMATS / "bundle_objects" / "sample", FORMATS / "bundle_module" / "sample"]
    graphs = [open_checkpoint(path).descriptions.object_graph for path in paths]
    return [graph for graph in graphs if graph is not None]


def _configs() -> list[bytes]:
    found = []
    for name in ("keras3.keras", "keras12_whole.h5", "keras22_whole.h5", "keras3_float16.h5"):
        text = open_checkpoint(KERAS / name).descriptions.keras_config
        found.append(json.dumps([name, json.loads(text or "{}")]).encode())
    return found


_RECEIPT = {
    "schema": "ckpt-doctor/fix/1",
    "sha256": [{"path": "sample.index", "before": None, "after": "0" * 64}],
    "layers": [{"name": "bn", "method": "layerwise"}],
}
_BASELINE = {
    "schema": "ckpt-doctor/baseline/1",
    "findings": [{"path": "a.h5", "rule": "BN101", "layer": "bn", "message": "x", "fingerprint": "0" * 16}],
}
_POLICY = b"""[tool.ckpt-doctor]
select = ["BN", "CK104"]
severity = {BN206 = "note"}
per-path-ignores = {"a/*" = ["BN306"]}
strict = true
jobs = 2
[tool.ckpt-doctor.scan]
baseline = "b.json"
[tool.ckpt-doctor.fix]
batch-size = 32
"""
_STATE = b"""model_checkpoint_path: "model-2"
all_model_checkpoint_paths: "model-1"
all_model_checkpoint_paths: "/else/where/model-\\303\\251\\x41"
all_model_checkpoint_timestamps: 1.5
"""


def _arrays() -> list[bytes]:
    out = []
    for save in (np.save, np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, np.arange(24.0).reshape(4, 6))  # type: ignore[operator]
        out.append(buffer.getvalue())
    return out


# -- runs


def _scan(path: Path) -> None:
    """Scan a file and read every value of it."""
    result = ckpt_doctor.scan([path])
    for error in result.errors:
        if "internal error" in error.message:
            raise AssertionError(error.message)
    try:
        checkpoint = open_checkpoint(path)
    except CkptDoctorError:
        return
    for variable in checkpoint.variables:
        with contextlib.suppress(CkptDoctorError):
            variable.read()


def _scanned(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    _scan(folder / name)


def _beside(sample: Path, damaged: str, prefix: str, content: bytes, folder: Path) -> None:
    """Scan a checkpoint of several files, one of which is damaged."""
    for file in sample.iterdir():
        if file.is_file() and file.name.startswith(prefix.split("-")[0]):
            shutil.copyfile(file, folder / file.name)
    (folder / damaged).write_bytes(content)
    _scan(folder / prefix)


def _run_table(content: bytes, folder: Path) -> None:
    del folder
    with contextlib.suppress(Damaged):
        read = _table.Table(mutators.InMemory(content))  # type: ignore[arg-type]
        for key, _ in read.items():  # noqa: PERF102 - a table is no dict
            read.get(key)
        list(read.damages())


def _run_snappy(content: bytes, folder: Path) -> None:
    del folder
    with contextlib.suppress(Damaged):
        _snappy.unpack(content)


@cache
def _whole(path: Path) -> Checkpoint:
    return open_checkpoint(path)


def _judged(checkpoint: Checkpoint, **descriptions: Any) -> None:
    """Judge a whole checkpoint by a damaged description."""
    said = dataclasses.replace(ModelDescriptions(), **descriptions)
    described = dataclasses.replace(checkpoint, descriptions=said)
    # As in a scan, where it speaks of no variable of this file as well.
    judge(analyse(described, verify=False), Policy(Selection.of((), (), {}), strict=True))
    judge(analyse(dataclasses.replace(described, variables=()), verify=False), Policy(Selection.of((), (), {})))


def _run_meta_graph(content: bytes, folder: Path) -> None:
    del folder
    _judged(_whole(FORMATS / "tf1_bundle" / "sample"), meta_graph=content)


def _run_saved_model(content: bytes, folder: Path) -> None:
    del folder
    sample = _whole(FORMATS / "saved_model_tf2" / "sample")
    _judged(sample, saved_model=content, object_graph=sample.descriptions.object_graph)


def _run_object_graph(content: bytes, folder: Path) -> None:
    del folder
    _judged(_whole(FORMATS / "bundle_objects" / "sample"), object_graph=content)


def _run_config(content: bytes, folder: Path) -> None:
    del folder
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    names = [path.name for path in sorted(KERAS.glob("keras*_whole.h5"))] + ["keras3.keras"]
    known = isinstance(document, list) and len(document) == 2 and document[0] in names
    name, config = document if known else ("keras3.keras", document)
    text = json.dumps(config)
    _judged(_whole(KERAS / name), keras_config=text, keras_training=text)


def _run_state(content: bytes, folder: Path) -> None:
    (folder / "checkpoint").write_bytes(content)
    with contextlib.suppress(CkptDoctorError):
        read_state(str(folder), ["model-1.index", "model-2"])
    _scan(folder)


def _run_receipt(content: bytes, folder: Path) -> None:
    (folder / "x.receipt.json").write_bytes(content)
    sample = _whole(FORMATS / "tf1_bundle" / "sample")
    with contextlib.suppress(CkptDoctorError):
        repaired_layers(dataclasses.replace(sample, path=str(folder / "sample")))


def _run_baseline(content: bytes, folder: Path) -> None:
    (folder / "b.json").write_bytes(content)
    with contextlib.suppress(CkptDoctorError):
        baseline.read(folder / "b.json")
        ckpt_doctor.scan([KERAS / "keras03_weights.h5"], baseline=folder / "b.json", quick=True)


def _run_policy(content: bytes, folder: Path) -> None:
    (folder / "pyproject.toml").write_bytes(content)
    with contextlib.chdir(folder), contextlib.suppress(CkptDoctorError):
        configuration.load(ckpt_doctor_group)


def _run_arrays(content: bytes, folder: Path) -> None:
    path = folder / ("x.npz" if content.startswith(b"PK") else "x.npy")
    path.write_bytes(content)
    with contextlib.ExitStack() as kept, contextlib.suppress(CkptDoctorError):
        for array in read_arrays("--data", path, None, kept).values():
            whole("--data", array)


def _run_index(content: bytes, folder: Path) -> None:
    if parsed_or_none(content) is not None or content:
        _beside(KERAS, "keras3_sharded.weights.json", "keras3_sharded.weights.json", content, folder)


def _h5(pattern: str) -> Callable[[], list[bytes]]:
    return lambda: _files(*sorted(KERAS.glob(pattern)))


_entry = mutators.in_message(pb.BundleEntry)
_v1 = mutators.in_message(pb.SavedTensorSlices)
_BUNDLE, _SLICES = FORMATS / "tf1_bundle", FORMATS / "bundle_shards"

TARGETS = (
    Target("table", _tables, (mutators.in_bytes, mutators.block, mutators.block), _run_table, 420),
    Target("snappy", _snappy_blocks, (mutators.in_bytes,), _run_snappy, 300),
    Target(
        "bundle",
        lambda: _files(_BUNDLE / "sample.index"),
        (mutators.in_bytes, mutators.block, mutators.table(_entry), mutators.table(_entry)),
        partial(_beside, _BUNDLE, "sample.index", "sample"),
        25,
    ),
    Target(
        "slices",
        lambda: _files(_SLICES / "sample.index"),
        (mutators.table(_entry), mutators.table(mutators.in_bytes)),
        partial(_beside, _SLICES, "sample.index", "sample"),
        20,
    ),
    Target(
        "v1",
        lambda: _files(FORMATS / "v1" / "sample"),
        (mutators.in_bytes, mutators.block, mutators.table(_v1), mutators.table(_v1)),
        partial(_scanned, "sample"),
        25,
    ),
    Target(
        "meta-graph",
        lambda: _files(FORMATS / "tf1_bundle" / "sample.meta", *sorted(ZOO.glob("[chlr]*.meta"))[:8]),
        (mutators.in_message(pb.MetaGraphDef),),
        _run_meta_graph,
        20,
    ),
    Target(
        "saved-model",
        lambda: _files(*sorted(FORMATS.glob("saved_model_*/sample/saved_model.pb"))),
        (mutators.in_message(pb.SavedModel),),
        _run_saved_model,
        10,
    ),
    Target("object-graph", _object_graphs, (mutators.in_message(pb.TrackableObjectGraph),), _run_object_graph, 30),
    Target("keras-config", _configs, (mutators.in_json,), _run_config, 30),
    Target("keras-h5", _h5("keras[012]*.h5"), (mutators.in_bytes,), partial(_scanned, "m.h5"), 8),
    Target("keras-weights-h5", _h5("keras3*.weights.h5"), (mutators.in_bytes,), partial(_scanned, "m.weights.h5"), 8),
    Target(
        "keras-archive",
        _h5("*.keras"),
        (mutators.in_bytes, mutators.archive(mutators.in_bytes)),
        partial(_scanned, "m.keras"),
        8,
    ),
    Target("keras-index", _h5("*.weights.json"), (mutators.in_bytes, mutators.in_json), _run_index, 8),
    Target("state", lambda: [_STATE], (mutators.in_bytes,), _run_state, 25),
    Target("receipt", lambda: [json.dumps(_RECEIPT).encode()], (mutators.in_bytes, mutators.in_json), _run_receipt, 25),
    Target(
        "baseline", lambda: [json.dumps(_BASELINE).encode()], (mutators.in_bytes, mutators.in_json), _run_baseline, 10
    ),
    Target("policy", lambda: [_POLICY], (mutators.in_bytes, mutators.in_toml, mutators.in_toml), _run_policy, 30),
    Target("data", _arrays, (mutators.in_bytes, mutators.in_bytes), _run_arrays, 30),
)


def make(target: Target, seed: int, number: int) -> bytes:
    """Return a damaged input, the same for the same numbers."""
    chance = random.Random(f"{seed} {target.name} {number}")
    seeds = _seeds(target.name)
    return chance.choice(target.mutate)(chance.choice(seeds), chance)


@cache
def _seeds(name: str) -> Sequence[bytes]:
    return next(target for target in TARGETS if target.name == name).seeds()
