"""The whole of a repair, in order: judge, choose, estimate, write, verify, judge again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckpt_doctor import audit
from ckpt_doctor.analysis import Analysis, analyse, refuse_another_model
from ckpt_doctor.capture.estimation import Request, observe, with_model
from ckpt_doctor.capture.live import DEFAULT_LIMIT
from ckpt_doctor.capture.metric import load_metric
from ckpt_doctor.checkpoint import Array, Checkpoint
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.graphs import Description
from ckpt_doctor.progress import Listener, unheard
from ckpt_doctor.repair import writing
from ckpt_doctor.repair.planning import LayerPlan, changes_of
from ckpt_doctor.repair.proof import prove
from ckpt_doctor.repair.targets import ESTIMATES, METHODS, Targets, choose
from ckpt_doctor.repair.work import Work
from ckpt_doctor.repair_result import FileHash, LeftLayer, RepairedLayer, RepairResult, Spread, Statistics
from ckpt_doctor.result import ChannelValues
from ckpt_doctor.verdict import Policy, Verdict, judge

# In place, a file above this is only added to; hashing all of it would take longer than the repair.
_LARGEST_HASHED = 1 << 30


def fix(
    checkpoint: str | Path,
    *,
    data: str | Path | Iterable[str | Path] = (),
    output: str | Path | None = None,
    in_place: bool = False,
    backup: bool = True,
    overwrite: bool = False,
    model: str | Path | None = None,
    method: str = "auto",
    layers: str | Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    feeds: Mapping[str, str] | None = None,
    batch_size: int = 64,
    samples: int | None = None,
    seed: int = 0,
    parse: str | None = None,
    image_size: str | None = None,
    image_scale: str | None = None,
    cache_memory: int = DEFAULT_LIMIT,
    unproven: bool = False,
    force: bool = False,
    allow_code: bool = False,
    dry_run: bool = False,
    full_verify: bool = False,
    metric: str | None = None,
    metric_data: str | Path | None = None,
    progress: Listener = unheard,
) -> RepairResult:
    """Repair the batch-norm statistics of a checkpoint.

    Args:
        checkpoint: The checkpoint, in any form that `open_checkpoint` takes.
        data: What to feed: `FILE.npz`, `FILE.npz[key]`, `FILE.npy`, `FILE.h5[dataset]`, each also as `NAME=…`; a folder
            of images; `*.tfrecord`; `MODULE:FUNCTION`.
        output: Where to write: a new prefix, folder or file.
        in_place: Change the checkpoint itself instead.
        backup: With `in_place`, keep what was there.
        overwrite: Replace what lies at `output`.
        model: A `.meta` that describes the model, where none lies with the checkpoint.
        method: `layerwise`: the whole data set is one batch; `training`: every batch is normalised with its own
            moments; `copy`: what is in the file under another name; `debias`: take the initial value out of cold
            averages; `auto`: copy where exact, else layerwise with data and debias without.
        layers: Globs on layer names; they narrow or widen what is repaired.
        inputs: Name in the data to the tensor of the graph that it feeds.
        feeds: Tensor to the text of a value that is fed in every run.
        batch_size: Samples in a batch.
        samples: Use at most so many samples.
        seed: Decides the order of the samples.
        parse: `MODULE:FUNCTION` that reads one TFRecord.
        image_size: `HxW` that images are resized to.
        image_scale: `A,B`: a pixel p becomes `A * p + B`.
        cache_memory: Bytes of activations that are held in memory; more go to disk.
        unproven: Also repair what only looks broken.
        force: Also repair layers that were trained with their stored statistics.
        allow_code: Run Python that the checkpoint itself carries.
        dry_run: Write nothing.
        full_verify: Checksum every byte of a checkpoint that was changed in place.
        metric: `MODULE:FUNCTION`: `f(predict, data) -> float`, higher is better; a repair that lowers it is not
            written.
        metric_data: What the metric is measured on; the first of `data` where it is not given.
        progress: Hears of every batch.

    Returns:
        What was done. `complete` says whether the written checkpoint scans clean of what was to be repaired.

    Raises:
        BadRequest: An argument is wrong, or the data do not fit the model.
        RepairRefused: The repair would be wrong or cannot be made; nothing was written.
        VerificationFailed: The written file was not what was to be written; it was removed.
    """
    started = time.monotonic()
    if method not in METHODS:
        raise BadRequest(f"--method {method}: there is no such method; there are {', '.join(METHODS)}")
    if not dry_run and in_place == (output is not None):
        raise BadRequest("give either an output or in_place, not both or neither")
    request = Request(
        data=audit.texts(data),
        model=None if model is None else str(model),
        inputs=dict(inputs or {}),
        feeds=dict(feeds or {}),
        batch_size=batch_size,
        samples=samples,
        seed=seed,
        parse=parse,
        image_size=image_size,
        image_scale=image_scale,
        cache_memory=cache_memory,
        unproven=unproven,
        allow_code=allow_code,
    )
    source = with_model(open_checkpoint(checkpoint), request.model, allow_code=allow_code)
    if output is not None:
        writing.check_output(source, str(output), overwrite=overwrite)
    measure = load_metric(metric) if metric is not None else None
    analysis = analyse(source)
    if model is not None:
        refuse_another_model(analysis, f"--model {model}")
    if analysis.defects:
        first = analysis.defects[0]
        raise RepairRefused(f"{first.where}: {first.message}; a damaged checkpoint is not repaired")

    def targets_of(verdict: Verdict) -> Targets:
        return choose(
            verdict,
            audit.texts(layers),
            method=method,
            has_data=bool(request.data),
            unproven=unproven or measure is not None,
            force=force,
        )

    before = judge(analysis, Policy())
    targets = targets_of(before)
    if not (targets.layers or targets.left) and request.data and analysis.inventory.layers:
        # Nothing in the file is wrong; whether the data agree is what `scan --data` would ask too.
        observed, unobserved = observe(source, analysis.inventory, request, progress)
        before = judge(analysis, Policy(observed=observed, unobserved=unobserved))
        targets = targets_of(before)
    if not targets.layers:
        return _nothing_to_do(source, targets, started, dry_run=dry_run)
    if targets.estimated and not request.data:
        raise BadRequest(
            f"{len(targets.estimated)} layers need statistics that only data can give; name some with --data FILE.npz "
            "(a few hundred samples of what the model was trained on)"
        )
    with ExitStack() as kept:
        work = Work(before, request, targets, kept, progress)
        plans = [*work.without_data(), *work.estimated(whole=method != "training")]
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
            unchanged_variables=sum(variable.name not in changes.values for variable in source.variables),
            metric=work.compare(measure, None if metric_data is None else str(metric_data), plans)
            if measure is not None
            else None,
            sha256=(),
            seconds=time.monotonic() - started,
            dry_run=dry_run,
            complete=not work.left,
            notes=tuple(work.notes),
        )
        if dry_run:
            return result
        largest = _LARGEST_HASHED if in_place and not full_verify else None
        before_files = writing.hashes(source.files, largest=largest)
        written = writing.write_verified(
            source,
            changes,
            None if in_place else str(output),
            overwrite=overwrite,
            backup=backup,
            full_verify=full_verify,
        )
        described = _described_alike(written.checkpoint, source) if model is not None else written.checkpoint
        after = analyse(
            described,
            verify=not in_place or full_verify,
            described=_described_before(analysis, described, changes),
        )
        seen = work.observe(after.inventory)
    proof = prove(result.layers, after, seen)
    return replace(
        result,
        output=written.path,
        layers=proof.layers,
        unchanged_variables=written.unchanged,
        sha256=_file_hashes(before_files, writing.hashes(written.checkpoint.files, largest=largest)),
        seconds=time.monotonic() - started,
        complete=not work.left and not proof.remaining,
        backups=written.backups,
        notes=(*result.notes, *proof.remaining, *proof.notes),
        clean=proof.clean,
        needs_receipt=proof.needs_receipt,
    )


def _described_before(analysis: Analysis, written: Checkpoint, changes: Changes) -> Description | None:
    """Return what the description of a written checkpoint says, where that is known from before; else None.

    A `.meta` to whose saver new variables were added describes the same model; that it is the one which was made is
    compared byte for byte when it is written.
    """
    old, new = analysis.checkpoint.descriptions, written.descriptions
    same = all(
        getattr(new, each) == getattr(old, each)
        for each in ("saved_model", "object_graph", "keras_config", "keras_training")
    )
    meta_graph = old.meta_graph if changes.meta_graph is None else changes.meta_graph
    return analysis.description if same and new.meta_graph == meta_graph else None


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
