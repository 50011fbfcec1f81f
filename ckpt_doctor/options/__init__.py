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
        "Training-like inputs: FILE.npz[key], a folder of images, MODULE:FUNCTION …",
        "Training-like inputs: `FILE.npz`, `FILE.npz[key]`, `FILE.npy`, `FILE.h5[dataset]`, each also as `NAME=…`; a "
        "folder of images; `*.tfrecord`; `MODULE:FUNCTION`. Needs TensorFlow.",
        metavar="DATA",
    )
    model: str | None = option(
        None,
        Text(),
        "The model, if it is not stored next to the checkpoint: .meta, .keras …",
        "The model, if it is not stored next to the checkpoint: a `.meta`, a Keras file or its `.json`, or "
        "`MODULE:FUNCTION`.",
        metavar="MODEL",
    )
    inputs: Mapping[str, str] = option(
        {},
        Pairs(),
        "Feed the array NAME of the data to this tensor.",
        "Maps an array's name in the data to the tensor of the graph that it is fed to.",
        flag="--input",
        metavar="NAME=TENSOR",
    )
    feeds: Mapping[str, str] = option(
        {},
        Pairs(),
        "Feed a constant to this tensor.",
        "Maps a tensor to a number, `true` or `false` to feed in every run.",
        flag="--feed",
        metavar="TENSOR=VALUE",
    )
    batch_size: int = option(
        64,
        Whole(1),
        "Samples in a batch, unless the model fixes the batch size.",
        "Samples in a batch; a batch size that the model fixes has precedence.",
        metavar="N",
    )
    samples: int | None = option(
        None,
        Whole(1),
        "Randomly choose at most N samples; of a stream, take the first N.",
        "Randomly choose at most so many samples (see `seed`); of a stream (a dataset, a generator), take the first.",
        metavar="N",
    )
    seed: int | None = option(
        0,
        Whole(),
        "Seed of the order of the samples.",
        "Seed of the order of the samples; None keeps the order of the data.",
        metavar="N",
        optional=True,
    )
    parse: str | None = option(
        None,
        Reference(),
        "Function that reads one record of *.tfrecord data.",
        "`MODULE:FUNCTION`: the function that reads one TFRecord.",
        metavar="MODULE:FUNCTION",
    )
    image_size: tuple[int, int] | None = option(
        None,
        HeightAndWidth(),
        "Resize the images of a folder.",
        "`HxW`, or a pair: resize images to this height and width.",
        metavar="HxW",
    )
    image_scale: tuple[float, float] | None = option(
        None,
        FactorAndOffset(),
        "Scale images: a pixel p of 0..255 becomes A*p+B.",
        "`A,B`, or a pair: scale images; a pixel p of 0..255 becomes `A * p + B`.",
        metavar="A,B",
    )
    cache_memory: int = option(
        2 * 10**9,
        Size(),
        "Memory for activations; the rest goes to disk.",
        "Bytes of activations to keep in memory, or a text like `2GB`; the rest goes to disk.",
        metavar="SIZE",
        shell="2GB",
    )
    unproven: bool = option(
        False,
        Flag(),
        "Accept random operations that are not dropout; fix also repairs unproven findings.",
        "Accept random operations that are not dropout; `fix` also repairs unproven findings.",
    )
    allow_code: bool = option(
        False,
        Flag(),
        "Run Python code, file and network operations that the checkpoint contains.",
        "Run Python code, file and network operations that the checkpoint contains.",
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
    overwrite: bool = option(False, Flag(), "Replace what exists at --output.", "Replace what exists at `output`.")
    in_place: bool = option(
        False,
        Flag(),
        "Repair the checkpoint itself and keep a backup.",
        "Change the checkpoint itself instead of writing a repaired copy.",
    )
    backup: bool = option(
        True,
        Flag(),
        "With --in-place: do not keep a backup.",
        "With `in_place`: keep a backup of the replaced files.",
        flag="--no-backup",
        negative=True,
    )
    method: str = option(
        "auto",
        Choice(METHODS),
        "How to repair.",
        "`layerwise`: the whole data set is one batch; `training`: every batch is normalised with its own moments; "
        "`copy`: the values are in the file under another name; `debias`: remove the initial value from cold "
        "averages; "
        "`initial`: restore the initial values of a network that was trained with them; "
        "`auto`: `copy` if it is exact, else `layerwise` with data and `debias` without.",
    )
    layers: tuple[str, ...] = option(
        (),
        Texts(),
        "Repair exactly the layers that match GLOB, healthy ones included.",
        "Globs on layer names: repair exactly the layers that match, healthy ones included.",
        metavar="GLOB",
    )
    metric: str | None = option(
        None,
        Reference(),
        "f(predict, data) -> float; a repair that lowers it is not written.",
        "`MODULE:FUNCTION`: `f(predict, data) -> float`, higher is better; a repair that lowers it is not written.",
        metavar="MODULE:FUNCTION",
    )
    metric_data: tuple[str, ...] = option(
        (),
        Texts(),
        "Data to measure the metric on, in any form of --data (default: --data).",
        "Data to measure the metric on, in any form of `data`; if absent, `data` itself. The metric receives a dict of "
        "the arrays of files (all of them, labels too) or of the images of a folder; for records what `parse` returns, "
        "stacked; or what a function returns.",
        metavar="DATA",
    )
    force: bool = option(
        False,
        Flag(),
        "Also re-estimate layers trained in inference mode (BN304); this usually breaks the model.",
        "Also re-estimate layers that were trained in inference mode, with their stored statistics (BN304); this "
        "usually breaks the model.",
    )
    dry_run: bool = option(False, Flag(), "Show the planned values; write nothing.", "Write nothing.")
    full_verify: bool = option(
        False,
        Flag(),
        "Verify the checksum of every byte after writing.",
        "Verify the checksum of every byte of a checkpoint that was changed in place.",
    )

    def check_destination(self) -> None:
        """Refuse options that contradict each other, before anything is read.

        Raises:
            BadRequest: Where to write is not said, or said twice; or an option has nothing to work on.
        """
        if self.in_place and self.output is not None:
            raise BadRequest("--in-place and --output PATH contradict each other; pass only one")
        if not self.in_place and self.output is None and not self.dry_run:
            raise BadRequest("no destination: pass --output PATH, --in-place (keeps a backup) or --dry-run")
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
        "Report only these rules (codes, names or prefixes, comma-separated).",
        "Report only these rules: codes, names, or prefixes of codes (`BN2`). If empty, all are reported.",
        metavar="CODES",
    )
    ignore: tuple[str, ...] = option(
        (),
        Texts(),
        "Do not report these rules.",
        "Do not report these rules; written as for `select`.",
        metavar="CODES",
    )
    severity: Mapping[str, Severity] = option(
        {},
        Levels(values=SEVERITIES),
        "Override a rule's severity: CODE=error, warning or note.",
        "Override a rule's severity: maps a code, name or prefix to `error`, `warning` or `note`.",
        metavar="CODE=LEVEL",
    )
    min_severity: Severity = option(  # noqa: RUF009 - a field
        "note", Choice(SEVERITIES), "Hide findings below this severity.", "Hide findings below this severity."
    )
    per_path_ignores: Mapping[str, tuple[str, ...]] = option(
        {},
        Lists(),
        "Ignore rules for a path or glob, e.g. 'models/gan/*=BN306'.",
        "Ignore rules for a path: maps a path, folder or glob to the rules.",
        metavar="PATH=CODES",
        beside=True,
    )
    baseline: str | None = option(
        None,
        Text(),
        "Known findings: they are counted and not reported.",
        "A file of known findings: they are counted and not reported.",
        metavar="FILE",
        beside=True,
    )
    quick: bool = option(
        False,
        Flag(),
        "Read only the index and the batch-norm statistics; skip the checksums of the rest.",
        "Read only the index and the batch-norm statistics; skip all other values and their checksums.",
    )
    all_listed: bool = option(
        False,
        Flag(),
        "Scan every checkpoint listed in a `checkpoint` file, not only the latest.",
        "Scan every checkpoint listed in a `checkpoint` state file, not only the latest.",
        flag="--all",
    )
    skip_non_checkpoints: bool = option(
        False,
        Flag(),
        "Skip named files that are not checkpoints, as in a folder.",
        "Skip named files that are not checkpoints, as in a folder: for hooks, which name every file with certain "
        "endings. It is then not an error if no checkpoint is found.",
    )
    jobs: int = option(
        1,
        Whole(1),
        "Number of checkpoints to scan in parallel.",
        "Number of checkpoints to scan in parallel.",
        metavar="N",
        shell=None,
    )
    timeout: float | None = option(
        None,
        Above(),
        "Time limit for each checkpoint.",
        "Time limit for each checkpoint, in seconds; each is judged in its own process, and the others go on.",
        metavar="SECONDS",
    )
    max_memory: int | None = option(
        None,
        Size(),
        "Memory limit for each checkpoint, e.g. 2GB (Linux only).",
        "Memory limit for each checkpoint, in bytes or a text like `2GB`; each is judged in its own process, and the "
        "others go on. Linux only.",
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
        1.0,
        Above(),
        "Multiply the limits of BN401 by X.",
        "Multiplies the limits of the comparison with data (BN401).",
        metavar="X",
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
        "Exit 1 for findings of this severity or higher.",
        "Fail for findings of this severity or higher, or `never`.",
    )
    strict: bool = option(
        False,
        Flag(),
        "Also exit 1 if anything about batch norm was not judged or a model file was not opened.",
        "Also fail if anything about batch norm was not judged or a model file was not opened.",
    )
