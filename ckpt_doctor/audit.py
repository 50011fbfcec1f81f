"""From paths to verdicts: discover, open, verify, describe, take the inventory, run the rules.

Never writes, but to settle what a run that was cut off has left. A broken file is a finding; a path that no verdict can
be given on is a `PathError` and stops no other. An error of our own is one too, with its traceback in the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import logging
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckpt_doctor.analysis import Analysis, analyse, refuse_another_model, with_meta_graph
from ckpt_doctor.baseline import read as read_baseline
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.errors import BadRequest, CkptDoctorError, UnreadableCheckpoint
from ckpt_doctor.finding import Finding
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats._hdf5_data import holds_data_only
from ckpt_doctor.formats._storage import open_source
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.observation import Observation
from ckpt_doctor.options import DataOptions, ScanOptions, takes
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
from ckpt_doctor.rules.interface import Needs, Subject
from ckpt_doctor.selection import Selection
from ckpt_doctor.suppression import at_least, path_ignores, suppress
from ckpt_doctor.verdict import Policy, judge, judge_subject

if TYPE_CHECKING:
    from ckpt_doctor.workers import Workers

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class _How:
    """What `scan` was asked to do with every checkpoint; see there."""

    selection: Selection
    quick: bool
    meta: bytes | None
    meta_path: str
    request: DataOptions
    tolerance: float
    keep_values: bool
    strict: bool


# Size and time of the last change of each file: what tells that one changed while it was read.
_Stamps = dict[str, tuple[int, int]]
_Outcome = CheckpointResult | PathError


def texts(entries: str | Path | Iterable[str | Path]) -> list[str]:
    """Return one or several arguments as a list of texts: a lone text is one argument and not a list of letters."""
    return [str(entry) for entry in ([entries] if isinstance(entries, (str, Path)) else entries)]


@takes(ScanOptions)
def scan(
    paths: str | Path | Iterable[str | Path],
    *,
    data_options: Mapping[str, Any] | None = None,
    keep_values: bool = False,
    strict: bool = False,
    progress: Listener = unheard,
    **options: Any,
) -> AuditResult:
    """Return the verdict on every checkpoint under `paths`.

    Args:
        paths: Checkpoint prefixes or any of their files, SavedModel folders, Keras files, folders, globs.
        data_options: Options that say how data are read (`batch_size`, `inputs` and so on) in one mapping; they may
            also be given as keywords.
        keep_values: Keep the statistics of every layer, channel by channel, in the result: for plots.
        strict: List as not judged also what a file has no room to tell: cold averages where it has no step counter.
        progress: Hears of every checkpoint that is done.
        **options: The options of the command line, see `ckpt_doctor.options.ScanOptions`.

    Raises:
        BadRequest: There is no such option, it cannot have this value or names no rule, or `meta` or `baseline` cannot
            be read.
    """
    asked_for = ScanOptions.asked(options, data_options)
    selection = Selection.of(asked_for.select, asked_for.ignore, asked_for.severity)
    ignores = path_ignores(asked_for.per_path_ignores)
    known = None if asked_for.baseline is None else read_baseline(asked_for.baseline)
    meta_graph = None if asked_for.meta is None else _meta_graph(asked_for.meta)
    asked = texts(paths)

    how = _How(
        selection,
        asked_for.quick,
        meta_graph,
        str(asked_for.meta),
        asked_for,
        asked_for.tolerance,
        keep_values,
        strict,
    )

    def verdict_on(path: str) -> _Outcome:
        return _judge(path, found.damages.get(path, ()), how)

    with contextlib.ExitStack() as resources:
        workers: Workers | None = None
        judge_one, opened_by = verdict_on, holds_data_only
        if asked_for.timeout is not None or asked_for.max_memory is not None:
            from ckpt_doctor.workers import Workers  # Few scans need processes.

            workers = resources.enter_context(Workers(asked_for.timeout, asked_for.max_memory, __name__))
            opened_by = partial(_looked_at_apart, workers)
        found = discover(asked, asked_for.all_listed, asked_for.skip_non_checkpoints, opened_by=opened_by)
        if workers is not None:
            judge_one = partial(_judge_apart, workers, found.damages, how)
        checkpoints: list[CheckpointResult] = []
        errors = [_error(path, message) for path, message in found.errors]
        for done, outcome in enumerate(_in_order(judge_one, found.checkpoints, asked_for.jobs), start=1):
            if isinstance(outcome, PathError):
                errors.append(outcome)
            else:
                checkpoints.append(outcome)
            progress(Progress("scanning", done, len(found.checkpoints)))
    checkpoints += [_unreadable(error, (), selection) for error in found.unopened]
    if checkpoints and not found.checkpoints and not errors:
        errors.append(PathError(", ".join(asked), "no complete checkpoint to scan"))
    rules = tuple(rule.code for rule in RULES if rule.code in selection.codes)
    coverage = found.books.coverage(found.checkpoints, [error.path for error in errors])
    result = AuditResult(tuple(checkpoints), tuple(errors), found.passed_over, rules, coverage=coverage)
    # Without reading every byte the damage that is there may not be seen.
    looked_for = [code for code in rules if not (asked_for.quick and code.startswith("CK"))]
    return at_least(suppress(result, ignores, known, looked_for), asked_for.min_severity)


def _in_order(judge: Callable[[str], _Outcome], paths: Sequence[str], jobs: int) -> Iterator[_Outcome]:
    """Yield what `judge` says of every path, in their order, `jobs` at a time.

    Threads suffice: checksums and NumPy's passes over the values let go of the interpreter's lock.
    """
    if jobs <= 1 or len(paths) <= 1:
        yield from map(judge, paths)
        return
    from concurrent.futures import ThreadPoolExecutor  # Not needed for one checkpoint.

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
        raise BadRequest(f"{path}: does not exist (from --meta)") from None
    return bytes(source.read(0, source.size))


def _error(path: str, message: str) -> PathError:
    return PathError(path, message.removeprefix(f"{path}: "))


def _looked_at_apart(workers: Workers, path: str) -> bool:
    """Return whether an HDF5 file holds data only; where that costs a process, the verdict says so once more."""
    from ckpt_doctor.workers import Gone

    try:
        return workers.call(holds_data_only, path)
    except Gone as error:
        _log.debug("%s: %s", path, error)
        return False


def _judge_apart(workers: Workers, damages: Mapping[str, tuple[Damage, ...]], how: _How, path: str) -> _Outcome:
    """Return the verdict on one checkpoint that another process gives; or why it gives none, and stops no other."""
    from ckpt_doctor.workers import Gone

    try:
        return workers.call(_judge, path, damages.get(path, ()), how)
    except Gone as error:
        return _error(path, str(error))


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
            "unfinished-save", path, "changed twice while it was read; scan again when no program writes to it"
        )
        return _read(path, how, (*seen, unsettled))
    except CkptDoctorError as error:
        return _error(path, str(error))
    except OSError as error:
        return _error(path, f"cannot be read: {error.strerror or error}")
    except MemoryError:
        return _error(path, "needs more memory than is available; --quick needs less")
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
    model = how.request.model
    if model is not None:
        from ckpt_doctor.capture.estimation import with_model

        checkpoint = with_model(checkpoint, model, allow_code=how.request.allow_code)
    analysis = analyse(checkpoint, values=not how.quick, verify=not how.quick, seen=seen)
    if how.meta is not None:
        refuse_another_model(analysis, f"--meta {how.meta_path}")
    if model is not None:
        refuse_another_model(analysis, f"--model {model}")
    observed, unobserved = _observed(analysis, how)
    verdict = judge(analysis, Policy(how.selection, observed, unobserved, how.tolerance, strict=how.strict))
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
        measured_with=how.request.words(DataOptions) if how.request.data or how.request.model else (),
        not_run=_not_run(how),
    )


def _not_run(how: _How) -> tuple[str, ...]:
    """Return the codes of the rules that need what this scan does not have."""
    has: dict[Needs, bool] = {"file": True, "every value": not how.quick, "data": bool(how.request.data)}
    return tuple(rule.code for rule in RULES if not has[rule.needs])


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


def _observed(analysis: Analysis, how: _How) -> tuple[dict[str, Observation], dict[str, str]]:
    """Return what the data say of every layer, and which layers were not reached."""
    if not how.request.data or not analysis.inventory.layers:
        return {}, {}
    from ckpt_doctor.capture.estimation import observe

    return observe(analysis.checkpoint, analysis.inventory, how.request)


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
