"""The options of `scan` and `fix`, said once.

The command line, the signatures and docstrings of the Python functions, configuration files, the Keras callback, the
pytest fixture and `docs/options.md` are made from the fields below. Whoever gives the values, they are checked here: a
wrong name, type or value is a `BadRequest`.

An option has one name on the command line and one in Python, which differ where the word is Python's own or says too
little: `--all` is `all_listed`, `--input` is `inputs`. Python takes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import SEVERITIES, Severity
from ckpt_doctor.options.base import Option, Options, option, options_of, own_options_of, takes
from ckpt_doctor.options.kinds import (
    Above,
    Choice,
    FactorAndOffset,
    Flag,
    HeightAndWidth,
    Levels,
    Lists,
    Pairs,
    Reference,
    Size,
    Text,
    Texts,
    Whole,
    reference,
)

__all__ = [
    "METHODS",
    "DataOptions",
    "GateOptions",
    "Option",
    "Options",
    "RepairOptions",
    "ScanOptions",
    "options_of",
    "own_options_of",
    "reference",
    "takes",
]

METHODS = ("auto", "layerwise", "training", "debias", "copy", "initial")


@dataclass(frozen=True)
class DataOptions(Options):
    """What runs, and what it is fed: the same for `fix` and for `scan --data`."""

    data: tuple[str, ...] = option(
        (),
        Texts(),
        "FILE.npz[key], a folder of images, MODULE:FUNCTION …",
        "What to feed: `FILE.npz`, `FILE.npz[key]`, `FILE.npy`, `FILE.h5[dataset]`, each also as `NAME=…`; a folder of "
        "images; `*.tfrecord`; `MODULE:FUNCTION`. It needs TensorFlow.",
        metavar="DATA",
    )
    model: str | None = option(
        None,
        Text(),
        "The model, where the checkpoint does not say: .meta, .keras …",
        "The model, where none lies with the checkpoint: a `.meta`, a Keras file or its `.json`, or `MODULE:FUNCTION`.",
        metavar="MODEL",
    )
    inputs: Mapping[str, str] = option(
        {},
        Pairs(),
        "Feed NAME of the data to this tensor.",
        "Name in the data to the tensor of the graph that it feeds.",
        flag="--input",
        metavar="NAME=TENSOR",
    )
    feeds: Mapping[str, str] = option(
        {},
        Pairs(),
        "Feed a constant.",
        "Tensor to a number, `true` or `false` that is fed in every run.",
        flag="--feed",
        metavar="TENSOR=VALUE",
    )
    batch_size: int = option(
        64,
        Whole(1),
        "Samples in a batch, if the model does not fix it.",
        "Samples in a batch; a size that the model fixes goes before it.",
        metavar="N",
    )
    samples: int | None = option(
        None,
        Whole(1),
        "Use at most N samples: by the seed, of a stream the first.",
        "Use at most so many samples: chosen by the seed, of a stream (a dataset, a generator) the first.",
        metavar="N",
    )
    seed: int | None = option(
        0,
        Whole(),
        "Decides the order of the samples.",
        "Decides the order of the samples; None keeps the order that they have.",
        metavar="N",
        optional=True,
    )
    parse: str | None = option(
        None,
        Reference(),
        "Reads one record of *.tfrecord data.",
        "`MODULE:FUNCTION` that reads one TFRecord.",
        metavar="MODULE:FUNCTION",
    )
    image_size: tuple[int, int] | None = option(
        None,
        HeightAndWidth(),
        "Resize the images of a folder.",
        "`HxW`, or a pair, that images are resized to.",
        metavar="HxW",
    )
    image_scale: tuple[float, float] | None = option(
        None,
        FactorAndOffset(),
        "A pixel p of 0..255 becomes A*p+B.",
        "`A,B`, or a pair: a pixel p of 0..255 becomes `A * p + B`.",
        metavar="A,B",
    )
    cache_memory: int = option(
        2 * 10**9,
        Size(),
        "Activations held in memory.",
        "Bytes of activations that are held in memory, or a text like `2GB`; more go to disk.",
        metavar="SIZE",
        shell="2GB",
    )
    unproven: bool = option(
        False,
        Flag(),
        "Also repair what only looks broken; run graphs that draw noise.",
        "Also repair what only looks broken, and run graphs that draw noise.",
    )
    allow_code: bool = option(
        False,
        Flag(),
        "Run Python, and operations on files and the network, that the checkpoint holds.",
        "Run Python that the checkpoint itself carries, and operations of its graph on files and the network.",
    )


@dataclass(frozen=True)
class RepairOptions(DataOptions):
    """How to repair a checkpoint, and where to write it."""

    output: str | None = option(
        None,
        Text(),
        "Where to write the repaired checkpoint: a prefix, folder or file.",
        "Where to write: a new prefix, folder or file.",
        metavar="PATH",
    )
    overwrite: bool = option(False, Flag(), "Replace what lies at --output.", "Replace what lies at `output`.")
    in_place: bool = option(
        False, Flag(), "Repair the checkpoint itself; a backup is kept.", "Change the checkpoint itself instead."
    )
    backup: bool = option(
        True,
        Flag(),
        "With --in-place: keep no backup.",
        "With `in_place`, keep what was there.",
        flag="--no-backup",
        negative=True,
    )
    method: str = option(
        "auto",
        Choice(METHODS),
        "How to estimate.",
        "`layerwise`: the whole data set is one batch; `training`: every batch is normalised with its own moments; "
        "`copy`: what is in the file under another name; `debias`: take the initial value out of cold averages; "
        "`initial`: put back the initial values of a network that was trained with them; "
        "`auto`: copy where exact, else layerwise with data and debias without.",
    )
    layers: tuple[str, ...] = option(
        (),
        Texts(),
        "Only, or also, layers of these names.",
        "Globs on layer names; they narrow or widen what is repaired.",
        metavar="GLOB",
    )
    metric: str | None = option(
        None,
        Reference(),
        "f(predict, data) -> float; a repair may not lower it.",
        "`MODULE:FUNCTION`: `f(predict, data) -> float`, higher is better; a repair that lowers it is not written.",
        metavar="MODULE:FUNCTION",
    )
    metric_data: tuple[str, ...] = option(
        (),
        Texts(),
        "What the metric is measured on, in any form of --data; else --data.",
        "What the metric is measured on, in any form of `data`, which it is where this is not given. The metric gets a "
        "dict of the arrays of files (all of them, labels too) or of the images of a folder; of records what `parse` "
        "returns, all of them stacked; or what a function returns.",
        metavar="DATA",
    )
    force: bool = option(
        False,
        Flag(),
        "Repair layers that were trained in inference mode.",
        "Also repair layers that were trained with their stored statistics.",
    )
    dry_run: bool = option(False, Flag(), "Say what would be set; write nothing.", "Write nothing.")
    full_verify: bool = option(
        False,
        Flag(),
        "Checksum every byte of what was written.",
        "Checksum every byte of a checkpoint that was changed in place.",
    )

    def check_destination(self) -> None:
        """Refuse options that contradict each other, before anything is read.

        Raises:
            BadRequest: Where to write is not said, or said twice; or an option has nothing to work on.
        """
        if self.in_place and self.output is not None:
            raise BadRequest("--in-place and --output PATH contradict each other; give one")
        if not self.in_place and self.output is None and not self.dry_run:
            raise BadRequest("where to? give --output PATH, --in-place (a backup is kept) or --dry-run")
        if not self.backup and not self.in_place:
            raise BadRequest("--no-backup needs --in-place; --output leaves the checkpoint as it is")
        if self.overwrite and self.output is None:
            raise BadRequest("--overwrite needs --output PATH")


@dataclass(frozen=True)
class ScanOptions(DataOptions):
    """What to look for, where, and what is not reported."""

    select: tuple[str, ...] = option(
        (),
        Texts(),
        "Only these rules: BN101,CK or a name.",
        "Codes or names of the rules to report, or the beginning of codes (`BN2`); empty means all.",
        metavar="CODES",
    )
    ignore: tuple[str, ...] = option(
        (), Texts(), "Not these rules.", "Likewise, of the rules not to report.", metavar="CODES"
    )
    severity: Mapping[str, Severity] = option(
        {},
        Levels(values=SEVERITIES),
        "Another severity for a rule.",
        "Code, name or beginning of codes to the severity that its findings get.",
        metavar="CODE=LEVEL",
    )
    min_severity: Severity = option(  # noqa: RUF009 - a field
        "note", Choice(SEVERITIES), "Report nothing less.", "The least severity to report."
    )
    per_path_ignores: Mapping[str, tuple[str, ...]] = option(
        {},
        Lists(),
        "Not these rules for this path or glob.",
        "Path, folder or glob to the rules not to report there.",
        metavar="PATH=CODES",
        beside=True,
    )
    baseline: str | None = option(
        None,
        Text(),
        "Known findings, which are counted and not reported.",
        "A file of known findings, which are counted and not reported.",
        metavar="FILE",
        beside=True,
    )
    quick: bool = option(
        False,
        Flag(),
        "Index and batch-norm statistics only; no checksums of the rest.",
        "Read the index and the batch-norm statistics only: no checksums, and no values of anything else.",
    )
    all_listed: bool = option(
        False,
        Flag(),
        "Every checkpoint a `checkpoint` file lists, not the latest.",
        "Take every checkpoint that a `checkpoint` state file lists, not only the latest.",
        flag="--all",
    )
    skip_non_checkpoints: bool = option(
        False,
        Flag(),
        "Pass over named files that are not checkpoints, as in a folder.",
        "Pass over files that are named and are not checkpoints, as the search of a folder does: for hooks, which name "
        "every file of some endings. To find no checkpoint is then not an error.",
    )
    jobs: int = option(
        1, Whole(1), "How many to read at a time.", "How many checkpoints to read at a time.", metavar="N", shell=None
    )
    timeout: float | None = option(
        None,
        Above(),
        "Give up on a checkpoint after so many seconds.",
        "Seconds that the verdict on one checkpoint may take, each in a process of its own; the others go on.",
        metavar="SECONDS",
    )
    max_memory: int | None = option(
        None,
        Size(),
        "Give up on a checkpoint that needs more: 2GB.",
        "Bytes that the process may ask for which judges one checkpoint; the others go on. Linux only.",
        metavar="SIZE",
    )
    meta: str | None = option(
        None,
        Text(),
        "A .meta that describes the model.",
        "A `.meta` that describes the model of the checkpoints.",
        metavar="FILE",
        beside=True,
    )
    tolerance: float = option(
        1.0, Above(), "Widens the limits of BN401.", "Multiplies the limits of the comparison with data.", metavar="X"
    )

    @classmethod
    def asked(cls, given: Mapping[str, Any], data_options: Mapping[str, Any] | None) -> ScanOptions:
        """Return the options that were given by name, some of them in a mapping of their own.

        Raises:
            BadRequest: As for `of`.
        """
        if data_options is not None and not isinstance(data_options, Mapping):
            raise BadRequest(f"data_options {data_options!r}: must be a mapping of options to their values")
        named, inner = cls.named(given), DataOptions.named(data_options or {})
        twice = sorted(named.keys() & inner.keys())
        if twice:
            raise BadRequest(f"{twice[0]} was given twice, once in data_options")
        return cls(**named, **inner)


@dataclass(frozen=True)
class GateOptions(ScanOptions):
    """What fails a run, where there is an exit code: on the command line, in training and in tests."""

    fail_on: str = option(
        "error",
        Choice((*SEVERITIES, "never")),
        "Exit 1 for findings of this severity or above.",
        "The least severity that fails, or `never`.",
    )
    strict: bool = option(
        False,
        Flag(),
        "Exit 1 too where something about batch norm was not judged, or a model file was not opened.",
        "Fail too where something about batch norm was not judged, or a model file was not opened.",
    )
