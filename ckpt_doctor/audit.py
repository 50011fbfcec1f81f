"""From paths to verdicts: discover, open, verify, describe, take the inventory, run the rules.

Never writes. A broken file is a finding; a path that no verdict can be given on is a `PathError` and stops no other. An
error of our own is one too, with its traceback in the log.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.analysis import Analysis, analyse, refuse_another_model, with_meta_graph
from ckpt_doctor.baseline import read as read_baseline
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.errors import BadRequest, CkptDoctorError, UnreadableCheckpoint
from ckpt_doctor.finding import Finding, Severity
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats._storage import open_source
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.observation import Observation
from ckpt_doctor.progress import Listener, Progress, unheard
from ckpt_doctor.result import (
    AuditResult,
    ChannelValues,
    CheckpointResult,
    LayerSummary,
    LayerValues,
    PathError,
)
from ckpt_doctor.rules import RULES
from ckpt_doctor.rules.interface import Subject
from ckpt_doctor.selection import Selection
from ckpt_doctor.suppression import at_least, path_ignores, suppress
from ckpt_doctor.verdict import Policy, judge, judge_subject

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class _How:
    """What `scan` was asked to do with every checkpoint; see there."""

    selection: Selection
    quick: bool
    meta: bytes | None
    meta_path: str
    data: Sequence[str]
    model: str | None
    tolerance: float
    data_options: Mapping[str, Any]
    keep_values: bool


# Size and time of the last change of each file: what tells that one changed while it was read.
_Stamps = dict[str, tuple[int, int]]
_Outcome = CheckpointResult | PathError


def texts(entries: str | Path | Iterable[str | Path]) -> list[str]:
    """Return one or several arguments as a list of texts: a lone text is one argument and not a list of letters."""
    return [str(entry) for entry in ([entries] if isinstance(entries, (str, Path)) else entries)]


def scan(
    paths: str | Path | Iterable[str | Path],
    *,
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    severity: Mapping[str, Severity] | None = None,
    quick: bool = False,
    all_listed: bool = False,
    jobs: int = 1,
    meta: str | Path | None = None,
    data: str | Path | Iterable[str | Path] = (),
    model: str | Path | None = None,
    tolerance: float = 1.0,
    data_options: Mapping[str, Any] | None = None,
    per_path_ignores: Mapping[str, Sequence[str]] | None = None,
    baseline: str | Path | None = None,
    min_severity: Severity = "note",
    keep_values: bool = False,
    progress: Listener = unheard,
) -> AuditResult:
    """Return the verdict on every checkpoint under `paths`.

    Args:
        paths: Checkpoint prefixes or any of their files, SavedModel folders, Keras files, folders, globs.
        select: Codes or names of the rules to report, or the beginning of codes (`BN2`); empty means all.
        ignore: Likewise, of the rules not to report.
        severity: Code, name or beginning of codes to the severity that its findings get.
        quick: Read the index and the batch-norm statistics only: no checksums, and no values of anything else.
        all_listed: Take every checkpoint that a `checkpoint` state file lists, not only the latest.
        jobs: How many checkpoints to read at a time.
        meta: A `.meta` that describes the model of the checkpoints.
        data: Also run these data through the model and compare (BN401, BN402); needs TensorFlow. As for `fix`.
        model: The model, where none lies with the checkpoint; as for `fix`.
        tolerance: Multiplies the limits of that comparison.
        data_options: More of how data are read: `inputs`, `feeds`, `batch_size`, `samples`, `seed`, `parse`,
            `image_size`, `image_scale`, `unproven`, `allow_code`, as for `fix`.
        per_path_ignores: Path, folder or glob to the rules not to report there.
        baseline: A file of known findings, which are counted and not reported.
        min_severity: The least severity to report.
        keep_values: Keep the statistics of every layer, channel by channel, in the result: for plots.
        progress: Hears of every checkpoint that is done.

    Raises:
        BadRequest: An option names no rule, or `meta` or `baseline` cannot be read.
    """
    selection = Selection.of(texts(select), texts(ignore), severity or {})
    ignores = path_ignores(per_path_ignores or {})
    known = None if baseline is None else read_baseline(baseline)
    meta_graph = None if meta is None else _meta_graph(str(meta))
    asked = texts(paths)
    found = discover(asked, all_listed)

    how = _How(
        selection,
        quick,
        meta_graph,
        str(meta),
        texts(data),
        None if model is None else str(model),
        tolerance,
        data_options or {},
        keep_values,
    )

    def verdict_on(path: str) -> _Outcome:
        return _judge(path, found.damages.get(path, ()), how)

    checkpoints: list[CheckpointResult] = []
    errors = [_error(path, message) for path, message in found.errors]
    for done, outcome in enumerate(_in_order(verdict_on, found.checkpoints, jobs), start=1):
        if isinstance(outcome, PathError):
            errors.append(outcome)
        else:
            checkpoints.append(outcome)
        progress(Progress("scanning", done, len(found.checkpoints)))
    checkpoints += [_unreadable(error, (), selection) for error in found.unopened]
    if checkpoints and not found.checkpoints and not errors:
        errors.append(PathError(", ".join(asked), "there is no whole checkpoint to scan"))
    rules = tuple(rule.code for rule in RULES if rule.code in selection.codes)
    result = AuditResult(tuple(checkpoints), tuple(errors), found.passed_over, rules)
    # Without reading every byte the damage that is there may not be seen.
    looked_for = [code for code in rules if not (quick and code.startswith("CK"))]
    return at_least(suppress(result, ignores, known, looked_for), min_severity)


def _in_order(judge: Callable[[str], _Outcome], paths: Sequence[str], jobs: int) -> Iterator[_Outcome]:
    """Yield what `judge` says of every path, in their order, `jobs` at a time.

    Threads suffice: checksums and NumPy's passes over the values let go of the interpreter's lock.
    """
    if jobs <= 1 or len(paths) <= 1:
        yield from map(judge, paths)
        return
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(judge, path) for path in paths]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _meta_graph(path: str) -> bytes:
    try:
        source = open_source(path)
    except FileNotFoundError:
        raise BadRequest(f"{path}: is not there, and --meta needs it") from None
    return bytes(source.read(0, source.size))


def _error(path: str, message: str) -> PathError:
    return PathError(path, message.removeprefix(f"{path}: "))


def _judge(path: str, seen: tuple[Damage, ...], how: _How) -> _Outcome:
    """Return the verdict on one checkpoint; one that changes while it is read is read once more.

    `seen` is the damage that its folder shows.
    """
    try:
        for _attempt in range(2):
            before = _stamps(path)
            result = _read(path, how, seen)
            if _stamps(path) == before:
                return result
        unsettled = Damage(
            "unfinished-save", path, "changed while it was read, twice; scan again when nothing writes to it any more"
        )
        return _read(path, how, (*seen, unsettled))
    except CkptDoctorError as error:
        return _error(path, str(error))
    except OSError as error:
        return _error(path, f"cannot be read: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - see below
        # A bug of ours must read neither as damage nor as health, and must not take the verdicts on other files along.
        _log.exception("%s: internal error", path)
        return _error(path, f"internal error: {type(error).__name__}: {error}; please report it")


def _read(path: str, how: _How, seen: tuple[Damage, ...]) -> CheckpointResult:
    try:
        checkpoint = open_checkpoint(path)
    except UnreadableCheckpoint as error:
        return _unreadable(error, seen, how.selection)
    if how.meta is not None:
        checkpoint = with_meta_graph(checkpoint, how.meta, how.meta_path)
    if how.data:
        from ckpt_doctor.capture.estimation import with_model

        checkpoint = with_model(checkpoint, how.model)
    analysis = analyse(checkpoint, values=not how.quick, verify=not how.quick, seen=seen)
    if how.meta is not None:
        refuse_another_model(analysis, f"--meta {how.meta_path}")
    if how.data and how.model is not None:
        refuse_another_model(analysis, f"--model {how.model}")
    observed, unobserved = _observed(analysis, how)
    verdict = judge(analysis, Policy(how.selection, observed, unobserved, how.tolerance))
    worst = _worst(verdict.findings)
    inventory = analysis.inventory
    return CheckpointResult(
        path=checkpoint.path,
        format=checkpoint.format,
        producer=checkpoint.producer,
        variables=len(checkpoint.variables),
        bytes=checkpoint.bytes,
        evidence=tuple(inventory.evidence),
        batch_norm_layers=tuple(_summary(layer, worst.get(layer.name, "ok")) for layer in inventory.layers),
        not_judged=verdict.not_judged,
        findings=verdict.findings,
        values={layer.name: _values(layer, observed.get(layer.name)) for layer in inventory.layers}
        if how.keep_values
        else {},
        measured_with=_measured_with(how),
    )


def _values(layer: BatchNormLayer, observation: Observation | None) -> LayerValues:
    """Return what there is to plot of a layer."""
    vectors = {
        role: tuple(value.astype(np.float64).tolist())
        for role, value in layer.values.items()
        if role in ("moving_mean", "moving_variance") and value.ndim == 1
    }
    stored = ChannelValues(vectors.get("moving_mean"), vectors.get("moving_variance")) if vectors else None
    if observation is None:
        return LayerValues(stored)
    measured = (tuple(vector.astype(np.float64).tolist()) for vector in (observation.mean, observation.variance))
    return LayerValues(stored, ChannelValues(*measured))


def _measured_with(how: _How) -> tuple[str, ...]:
    """Return the options by which the data were read, as words of a command line."""
    if not how.data:
        return ()
    from ckpt_doctor.capture.estimation import Request

    request = Request(data=how.data, model=how.model, **how.data_options)
    words: list[str] = []
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if value == field.default or not value:
            continue
        option = {"inputs": "--input", "feeds": "--feed"}.get(field.name, f"--{field.name.replace('_', '-')}")
        values = [f"{key}={one}" for key, one in value.items()] if isinstance(value, Mapping) else value
        for one in [values] if isinstance(values, (str, int)) else values:
            words += [option] if one is True else [option, str(one)]
    return tuple(words)


def _observed(analysis: Analysis, how: _How) -> tuple[dict[str, Observation], dict[str, str]]:
    """Return what the data say of every layer, and which layers were not reached."""
    if not how.data or not analysis.inventory.layers:
        return {}, {}
    from ckpt_doctor.capture.estimation import Request, observe

    request = Request(data=how.data, model=how.model, **how.data_options)
    return observe(analysis.checkpoint, analysis.inventory, request)


def _unreadable(error: UnreadableCheckpoint, seen: tuple[Damage, ...], selection: Selection) -> CheckpointResult:
    """Return the verdict on a checkpoint that cannot be opened: its damage is all that can be said of it."""
    return CheckpointResult(
        path=error.path,
        format=error.format,
        producer=None,
        variables=0,
        bytes=sum(size for size, _ in _stamps(error.path).values()),
        evidence=(),
        batch_norm_layers=(),
        not_judged=(),
        findings=judge_subject(Subject(Inventory(layers=(), evidence=()), (*error.damages, *seen)), selection),
    )


def _worst(findings: Sequence[Finding]) -> dict[str, str]:
    """Return the name of the worst finding of every layer that has one."""
    found: dict[str, str] = {}
    for finding in findings:
        for layer in finding.layers:
            found.setdefault(layer, finding.name)
    return found


def _summary(layer: BatchNormLayer, status: str) -> LayerSummary:
    return LayerSummary(
        name=layer.name,
        gamma=layer.variables.get("gamma"),
        beta=layer.variables.get("beta"),
        moving_mean=layer.variables.get("moving_mean"),
        moving_variance=layer.variables.get("moving_variance"),
        companions=tuple(layer.companions.values()),
        channels=layer.channels,
        epsilon=layer.epsilon,
        momentum=layer.momentum,
        evidence=layer.evidence,
        status=status,
    )


def _stamps(path: str) -> _Stamps:
    """Return the stamps of all files that a checkpoint of this name could consist of; none for a remote one."""
    if "://" in path:
        return {}
    target = Path(path)
    stamps: _Stamps = {}
    if target.is_dir():
        files = list(target.rglob("*"))
    else:
        pattern = glob.escape(target.name)
        files = [target, *target.parent.glob(f"{pattern}[.-]*")]
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            stamps[str(file)] = (status.st_size, status.st_mtime_ns)
    return stamps
