"""The whole of a repair, in order: judge, choose, estimate, stage, prove, commit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.analysis import Analysis, analyse, refuse_another_model
from ckpt_doctor.capture.estimation import observe, with_model
from ckpt_doctor.capture.metric import load_metric
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import BadRequest, CkptDoctorError, RepairRefused, tell_written
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.formats.settling import require_settled
from ckpt_doctor.graphs import Description
from ckpt_doctor.options import RepairOptions, takes
from ckpt_doctor.progress import Listener, unheard
from ckpt_doctor.repair import writing
from ckpt_doctor.repair.planning import LayerPlan, changes_of
from ckpt_doctor.repair.proof import confirm, prove
from ckpt_doctor.repair.targets import ESTIMATES, Targets, choose
from ckpt_doctor.repair.work import Work
from ckpt_doctor.repair_result import FileHash, LeftLayer, RepairedLayer, RepairResult, Spread, Statistics
from ckpt_doctor.result import ChannelValues
from ckpt_doctor.verdict import Policy, Verdict, judge

# In place, a file above this is only added to; hashing all of it would take longer than the repair.
_LARGEST_HASHED = 1 << 30


@takes(RepairOptions)
def fix(checkpoint: str | Path, *, progress: Listener = unheard, **options: Any) -> RepairResult:
    """Repair the batch-norm statistics of a checkpoint.

    Args:
        checkpoint: The checkpoint, in any form that `open_checkpoint` takes.
        progress: Hears of every batch.
        **options: The options of the command line, see `ckpt_doctor.options.RepairOptions`.

    Returns:
        What was done. `complete` says whether the written checkpoint scans clean of what was to be repaired.

    Raises:
        BadRequest: There is no such option, or it cannot have this value; or the data do not fit the model.
        RepairRefused: The repair would be wrong or cannot be made; nothing was written.
        VerificationFailed: What would be written is not what was planned; nothing was changed.
    """
    started = time.monotonic()
    request = RepairOptions.of(options)
    request.check_destination()
    for path in (checkpoint, *([] if request.output is None else [request.output])):
        require_settled(path)
    source = with_model(open_checkpoint(checkpoint), request.model, allow_code=request.allow_code)
    if request.output is not None:
        named = (request.model, *request.metric_data, *request.data)
        inputs = [one for one in named if one is not None]
        writing.check_output(source, request.output, overwrite=request.overwrite, inputs=inputs)
    measure = load_metric(request.metric) if request.metric is not None else None
    analysis = analyse(source)
    if request.model is not None:
        refuse_another_model(analysis, f"--model {request.model}")
    if analysis.defects:
        first = analysis.defects[0]
        raise RepairRefused(f"{first.where}: {first.message}; a damaged checkpoint cannot be repaired")

    def targets_of(verdict: Verdict) -> Targets:
        return choose(
            verdict,
            request.layers,
            method=request.method,
            has_data=bool(request.data),
            unproven=request.unproven or measure is not None,
            force=request.force,
        )

    before = judge(analysis, Policy())
    targets = targets_of(before)
    if not (targets.layers or targets.left) and request.data and analysis.inventory.layers:
        # Nothing in the file is wrong; whether the data agree is what `scan --data` would ask too.
        observed, unobserved = observe(source, analysis.inventory, request, progress)
        before = judge(analysis, Policy(observed=observed, unobserved=unobserved))
        targets = targets_of(before)
    if not targets.layers:
        return _nothing_to_do(source, targets, started, dry_run=request.dry_run)
    if targets.estimated and not request.data:
        raise BadRequest(
            f"{len(targets.estimated)} layers can only be repaired from data; pass --data FILE.npz (a few hundred "
            "samples of the training data)"
        )
    with ExitStack() as resources:
        work = Work(before, request, targets, resources, progress)
        plans = [*work.without_data(), *work.estimated(whole=request.method != "training")]
        if not plans:
            raise RepairRefused("; ".join(f"layer {name}: {reason}" for name, reason in work.left[:3]))
        changes = changes_of(source, work.meta, plans)
        result = RepairResult(
            checkpoint=source.path,
            output=None,
            method=next((plan.method for plan in plans if plan.method in ESTIMATES), plans[0].method),
            samples=work.samples,
            batches=work.batches,
            layers=tuple(map(_repaired, plans)),
            left=tuple(LeftLayer(name, reason) for name, reason in work.left),
            unchanged_variables=0,
            metric=work.compare(measure, plans) if measure is not None else None,
            sha256=(),
            seconds=0.0,
            dry_run=request.dry_run,
            complete=False,
            notes=tuple(work.notes),
        )
        result = _written(analysis, changes, result, request, work)
    return replace(result, seconds=time.monotonic() - started)


def _written(
    analysis: Analysis, changes: Changes, result: RepairResult, request: RepairOptions, work: Work
) -> RepairResult:
    """Write the changes, prove them by what was written, and put it in place; a dry run gives it up instead.

    Args:
        analysis: The checkpoint as it is.
        changes: What is different afterwards.
        result: What is known so far.
        request: Where to write.
        work: Observes what goes into the layers with their new statistics.
    """
    source, named = analysis.checkpoint, request.model is not None
    path = source.path if request.output is None else request.output
    # In place, a bundle is only added to: what was checked before is not read again, unless all is to be verified.
    whole = not request.in_place or request.full_verify
    largest = None if whole else _LARGEST_HASHED
    before_files = {} if request.dry_run else writing.hashes(source.files, largest=largest)
    with writing.staged(
        source,
        changes,
        None if request.in_place else request.output,
        overwrite=request.overwrite,
        backup=request.backup,
        full_verify=request.full_verify,
        dry_run=request.dry_run,
    ) as ready:
        after = _analysed_after(analysis, ready.checkpoint, changes, named=named, whole=whole)
        seen = work.observe(after.inventory)
        proof = prove(result.layers, after, seen, work.noise(seen))
        objections = work.objections(after.inventory, seen)
        result = replace(
            result,
            layers=proof.layers,
            unchanged_variables=ready.unchanged,
            complete=not work.left and not proof.remaining,
            notes=(*objections.told, *work.notes, *proof.remaining, *proof.notes),
            clean=proof.clean,
            needs_receipt=proof.needs_receipt,
        )
        if request.dry_run:
            return result
        try:
            written = ready.commit()
        except BaseException as error:
            if ready.is_committed:
                tell_written(error, path)
            raise
    result = replace(result, output=written.path, backups=written.backups, notes=(*result.notes, *written.notes))
    try:
        final = open_checkpoint(written.path)
        confirm(result.layers, after, _analysed_after(analysis, final, changes, named=named, whole=False))
        return replace(result, sha256=_file_hashes(before_files, writing.hashes(final.files, largest=largest)))
    except (CkptDoctorError, OSError) as error:
        # It is in place: to end in an error would read as if it were not.
        return replace(result, complete=False, notes=(*result.notes, f"{written.path} is written, but then: {error}"))
    except BaseException as error:
        tell_written(error, written.path)
        raise


def _analysed_after(analysis: Analysis, written: Checkpoint, changes: Changes, *, named: bool, whole: bool) -> Analysis:
    """Return what a written checkpoint says, described as the source was.

    Args:
        analysis: The source.
        written: What was written, staged or in place.
        changes: What is different in it.
        named: Whether `--model` describes the source.
        whole: Whether every byte is checked, and every value looked at.
    """
    described = _described_alike(written, analysis.checkpoint) if named else written
    after = analyse(described, values=whole, verify=whole, described=_described_before(analysis, described, changes))
    if whole:
        return after
    others = {name: count for name, count in analysis.non_finite.items() if name not in changes.values}
    return replace(after, non_finite=others)


def _described_before(analysis: Analysis, written: Checkpoint, changes: Changes) -> Description | None:
    """Return what the description of a written checkpoint says, where that is known from before; else None.

    A graph to whose saver new variables were added describes the same model; that it is the one which was made is
    compared byte for byte when it is written.
    """
    old, new = analysis.checkpoint.descriptions, written.descriptions
    same = all(
        getattr(new, each) == getattr(old, each) for each in ("object_graph", "keras_config", "keras_training", "live")
    )
    same = same and new.meta_graph in (old.meta_graph, changes.meta_graph)
    return analysis.description if same and new.saved_model in (old.saved_model, changes.saved_model) else None


def _described_alike(written: Checkpoint, source: Checkpoint) -> Checkpoint:
    """Return what was written with the description that `--model` gave of the source.

    Asking `--model` again would not do: Keras makes up other layer names every time a model is built.
    """
    said = source.descriptions
    return replace(
        written,
        descriptions=replace(
            written.descriptions,
            keras_config=said.keras_config,
            live=said.live,
            meta_graph=said.meta_graph,
            meta_graph_path=said.meta_graph_path,
        ),
    )


def _nothing_to_do(source: Checkpoint, targets: Targets, started: float, *, dry_run: bool) -> RepairResult:
    if targets.left:
        name, reason = targets.left[0]
        raise RepairRefused(f"nothing can be repaired: layer {name}: {reason}")
    return RepairResult(
        checkpoint=source.path,
        output=None,
        method=None,
        samples=0,
        batches=0,
        layers=(),
        left=(),
        unchanged_variables=len(source.variables),
        metric=None,
        sha256=(),
        seconds=time.monotonic() - started,
        dry_run=dry_run,
        complete=True,
    )


def _repaired(plan: LayerPlan) -> RepairedLayer:
    before = plan.layer.values
    return RepairedLayer(
        name=plan.layer.name,
        method=plan.method,
        before=_described(before.get("moving_mean"), before.get("moving_variance")),
        after=_described(plan.values["moving_mean"], plan.values["moving_variance"]),
        standard_error=plan.standard_error,
        before_values=_channels(before.get("moving_mean"), before.get("moving_variance")),
        after_values=_channels(plan.values["moving_mean"], plan.values["moving_variance"]),
    )


def _channels(mean: Array | None, variance: Array | None) -> ChannelValues | None:
    if mean is None and variance is None:
        return None
    vectors = (None if one is None else tuple(np.asarray(one, np.float64).tolist()) for one in (mean, variance))
    return ChannelValues(*vectors)


def _described(mean: Array | None, variance: Array | None) -> Statistics | None:
    if mean is None or variance is None:
        return None

    def spread(values: Array) -> Spread:
        exact = np.asarray(values, np.float64)
        return Spread(float(exact.min()), float(np.median(exact)), float(exact.max()))

    return Statistics(spread(mean), spread(variance))


def _file_hashes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[FileHash, ...]:
    return tuple(FileHash(path, before.get(path), after.get(path)) for path in dict.fromkeys([*before, *after]))
