"""The whole of a repair, in order: judge, choose, estimate, write, verify, judge again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckpt_doctor import audit, graphs
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory, take_inventory
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.estimation import (
    DEFAULT_EPSILON,
    Loaded,
    Request,
    load_model,
    read_data,
    residuals,
    stored_statistics,
    with_model,
)
from ckpt_doctor.capture.live import DEFAULT_LIMIT
from ckpt_doctor.checkpoint import Array, Checkpoint, numpy_dtype
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.finding import Finding
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats.interface import Changes
from ckpt_doctor.graphs.saver import extend_saver
from ckpt_doctor.observation import Observation
from ckpt_doctor.progress import Listener, Progress, unheard
from ckpt_doctor.repair import writing
from ckpt_doctor.repair.companions import companion_values
from ckpt_doctor.repair.targets import Targets, choose
from ckpt_doctor.repair_result import FileHash, LeftLayer, RepairedLayer, RepairResult, Spread, Statistics
from ckpt_doctor.rules.interface import Subject
from ckpt_doctor.selection import Selection

METHODS = ("auto", "layerwise", "training")


def fix(
    checkpoint: str | Path,
    *,
    data: str | Sequence[str] = (),
    output: str | Path | None = None,
    in_place: bool = False,
    backup: bool = True,
    overwrite: bool = False,
    model: str | None = None,
    method: str = "auto",
    layers: Sequence[str] = (),
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
            moments; `auto`: layerwise.
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
        data=[data] if isinstance(data, str) else list(data),
        model=model,
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
    source = with_model(open_checkpoint(checkpoint), model)
    if output is not None:
        writing.check_output(source, str(output), overwrite=overwrite)
    inventory, findings = _judged(source)
    targets = choose(inventory, findings, layers, unproven=unproven, force=force)
    if not targets.layers:
        return _nothing_to_do(source, targets, started, dry_run=dry_run)
    if not request.data:
        raise BadRequest(
            f"{len(targets.layers)} layers need statistics that only data can give; name some with --data FILE.npz "
            "(a few hundred samples of what the model was trained on)"
        )
    progress(Progress("reading the model", 0, None))
    loaded = load_model(source, inventory, request)
    measurable = [name for name in targets.layers if name not in loaded.left]
    left = [*targets.left, *((name, loaded.left[name]) for name in targets.layers if name in loaded.left)]
    if not measurable:
        raise RepairRefused("; ".join(f"layer {name}: {reason}" for name, reason in left[:3]))
    whole = method != "training"
    by_name = {layer.name: layer for layer in inventory.layers}
    with ExitStack() as kept:
        feed = read_data(loaded, request, kept)
        engine = kept.enter_context(
            Engine(loaded.program, stored_statistics(inventory.layers), cache_memory=request.cache_memory)
        )
        measured, unsettled = engine.measure(feed, measurable, whole=whole, progress=progress)
        left += unsettled.items()
        measurable = [name for name in measurable if name in measured]
        if not measurable:
            raise RepairRefused("; ".join(f"layer {name}: {reason}" for name, reason in left[:3]))
        values = _planned_values(source, loaded, [by_name[name] for name in measurable], measured)
        repaired = tuple(
            RepairedLayer(
                name=name,
                method="layerwise" if whole else "training",
                before=_described(by_name[name].values.get("moving_mean"), by_name[name].values.get("moving_variance")),
                after=_described(measured[name].mean, measured[name].variance),
                standard_error=measured[name].largest_error(by_name[name].epsilon or DEFAULT_EPSILON),
            )
            for name in measurable
        )
        result = RepairResult(
            checkpoint=source.path,
            output=None,
            method="layerwise" if whole else "training",
            samples=len(feed),
            batches=feed.batch_count,
            layers=repaired,
            left=tuple(LeftLayer(name, reason) for name, reason in left),
            unchanged_variables=sum(variable.name not in values for variable in source.variables),
            metric=None,
            sha256=(),
            seconds=time.monotonic() - started,
            dry_run=dry_run,
            complete=not left,
            notes=(*loaded.program.notes, *feed.notes),
        )
        if dry_run:
            return result
        changes = Changes(values=values, meta_graph=_new_meta(source, loaded, values))
        before_files = writing.hashes(source.files)
        before = writing.fingerprints(source)
        target = None if in_place else str(output)
        written, backups = writing.write(source, changes, target, overwrite=overwrite, backup=backup)
        created = () if in_place else tuple(writing.files_at(source, written))
        reopened, unchanged = writing.verify(written, before, values, created)
        if full_verify:
            for damage in format_of(reopened).verify(reopened):
                raise RepairRefused(f"{damage.where}: {damage.message}")
        after, after_findings = _judged(with_model(reopened, model))
        engine.stored = stored_statistics(after.layers)
        seen = engine.observe(feed, progress=progress)
    repaired, within = _proven(repaired, after, seen)
    still = {
        name
        for finding in after_findings
        if finding.rule.startswith(("BN1", "BN2")) and finding.severity != "note"
        for name in finding.layers
    }
    return replace(
        result,
        output=written,
        layers=repaired,
        unchanged_variables=unchanged,
        sha256=_file_hashes(before_files, writing.hashes(reopened.files)),
        seconds=time.monotonic() - started,
        complete=not left and within and not still & set(measurable),
        backups=backups,
    )


def _judged(checkpoint: Checkpoint) -> tuple[Inventory, tuple[Finding, ...]]:
    """Return the inventory and the findings of a checkpoint; damage stops a repair."""
    damage = next(iter(checkpoint.damages), None) or next(format_of(checkpoint).verify(checkpoint), None)
    if damage is not None:
        raise RepairRefused(f"{damage.where}: {damage.message}; a damaged checkpoint is not repaired")
    inventory = take_inventory(checkpoint, graphs.describe(checkpoint))
    return inventory, audit.judge_subject(Subject(inventory), Selection.of((), (), {}))


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
        notes=("there is nothing to repair; nothing was written",),
    )


def _described(mean: Array | None, variance: Array | None) -> Statistics | None:
    if mean is None or variance is None:
        return None

    def spread(values: Array) -> Spread:
        exact = np.asarray(values, np.float64)
        return Spread(float(exact.min()), float(np.median(exact)), float(exact.max()))

    return Statistics(spread(mean), spread(variance))


def _planned_values(
    source: Checkpoint, loaded: Loaded, layers: Sequence[BatchNormLayer], measured: Mapping[str, Observation]
) -> dict[str, Array]:
    """Return name and new value, in stored type and shape, of everything that is written."""
    values: dict[str, Array] = {}
    for layer in layers:
        seen = measured[layer.name]
        statistics = {"moving_mean": seen.mean, "moving_variance": seen.variance}
        names = {role: layer.variables.get(role) or layer.absent[role] for role in statistics}
        planned = [(names[role], statistics[role]) for role in statistics]
        planned += companion_values(layer, statistics, _stored_steps(source, layer))
        for name, value in planned:
            values[name] = _cast(source, loaded, layer, name, np.asarray(value, np.float64))
    return values


def _stored_steps(source: Checkpoint, layer: BatchNormLayer) -> dict[str, float]:
    steps = {}
    for key, name in layer.companions.items():
        variable = source.variable(name)
        if key.endswith("/local_step") and variable is not None:
            steps[name] = float(variable.read().reshape(-1)[0])
    return steps


def _cast(source: Checkpoint, loaded: Loaded, layer: BatchNormLayer, name: str, value: Array) -> Array:
    """Return a value in the type and shape that the file, or else the graph, gives its variable."""
    variable = source.variable(name)
    shape: tuple[int, ...] = value.shape
    dtype = np.dtype(np.float32)
    if variable is not None:
        shape, dtype = variable.shape, numpy_dtype(variable.dtype)
    elif loaded.meta is not None:
        nodes = {saved: node for node, saved in loaded.meta.saved_names.items()}
        text, declared = loaded.meta.variable_type(nodes[name])
        shape = declared if all(size >= 0 for size in declared) else shape
        dtype = numpy_dtype(text)
    else:
        sibling = next((source.variable(other) for other in layer.variables.values()), None)
        dtype = numpy_dtype(sibling.dtype) if sibling is not None else dtype
    if int(np.prod(shape)) != value.size:
        raise RepairRefused(
            f"layer {layer.name}: its input has {value.size} channels, and {name} has the shape {list(shape)}"
        )
    with np.errstate(over="ignore"):
        result = value.reshape(shape).astype(dtype)
    if not np.isfinite(result.astype(np.float64)).all():
        raise RepairRefused(f"{name}: the new value {float(value.max()):.6g} does not fit into its type {dtype}")
    return result


def _new_meta(source: Checkpoint, loaded: Loaded, values: Mapping[str, Array]) -> bytes | None:
    """Return a meta graph whose own saver restores the variables that the file gets; None where none are added."""
    if loaded.meta is None:
        return None
    nodes = {saved: node for node, saved in loaded.meta.saved_names.items()}
    added = {name: nodes[name] for name in values if source.variable(name) is None and name in nodes}
    if not added or loaded.meta.saver is None:
        return None
    data: bytes = extend_saver(loaded.meta.proto, added).SerializeToString()
    return data


def _proven(
    repaired: Sequence[RepairedLayer], after: Inventory, seen: Mapping[str, Observation]
) -> tuple[tuple[RepairedLayer, ...], bool]:
    """Return the layers with their residuals, and whether all are within tolerance."""
    by_name = {layer.name: layer for layer in after.layers}
    proven = []
    within = True
    for entry in repaired:
        layer = by_name[entry.name]
        residual, good = residuals(
            seen[entry.name], layer.values["moving_mean"], layer.values["moving_variance"], layer.epsilon
        )
        proven.append(replace(entry, residual=residual))
        within = within and good
    return tuple(proven), within


def _file_hashes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[FileHash, ...]:
    return tuple(FileHash(path, before.get(path), after.get(path)) for path in dict.fromkeys([*before, *after]))
