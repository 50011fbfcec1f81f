"""The last look before a commit: does the file, or what the model answers, speak against the repair?

It costs nothing where there is nothing to compare. What goes into the layers at inference is known from the proof; only
where that looks wrong, or where statistics came from the file, is the model run in training mode, on part of the data.
The answers of the stored and of the repaired model take two plain passes over that part. A `.meta` names no outputs, so
there the file's word alone is heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.estimation import stored_statistics
from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.capture.trial import answers, in_training_mode, layers_at_several_sites, part_of
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.observation import Observation
from ckpt_doctor.repair import answers as answering
from ckpt_doctor.repair import contradiction
from ckpt_doctor.repair.contradiction import Objections, find_witnesses
from ckpt_doctor.repair.targets import Targets
from ckpt_doctor.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Trial:
    """What a repaired model can be tried with.

    Attributes:
        engine: The model; it holds the repaired statistics.
        samples: The data.
        outputs: Name of each output to its tensor; empty where the model names none.
        measured: Layer to what was estimated from the data; empty where everything came from the file.
        seen: Layer to its input at inference with the repaired statistics.
    """

    engine: Engine
    samples: Samples
    outputs: Mapping[str, str]
    measured: Mapping[str, Observation]
    seen: Mapping[str, Observation]


def objections(verdict: Verdict, targets: Targets, after: Inventory, trial: Trial) -> Objections:
    """Return what speaks against a repair.

    Args:
        verdict: What was wrong with the checkpoint.
        targets: What was repaired, and how.
        after: The repaired checkpoint.
        trial: The model and the data.
    """
    part = part_of(trial.samples)
    groups = find_witnesses(verdict, targets.estimated, layers_at_several_sites(trial.engine)) if trial.measured else ()
    # What was trained on initial values need not agree with training mode.
    from_file = bool(targets.copied or targets.debiased) and not targets.initial
    suspicious = contradiction.contradictions(groups, trial.seen)
    training: Mapping[str, Observation] = {}
    if suspicious or (from_file and trial.outputs):
        try:
            training = _training_mode(trial, part)
        except RepairRefused as refusal:
            return Objections((f"not compared with training mode: {refusal}",))
    found = contradiction.objections(groups, training) if suspicious else Objections()

    def answers_with(statistics: Mapping[str, tuple[Array, Array]]) -> dict[str, Array]:
        try:
            return answers(trial.engine, statistics, part, trial.outputs)
        except RepairRefused:  # What stands behind the layers cannot be run, and its answers are not compared.
            return {}

    stored = answers_with(stored_statistics(verdict.analysis.inventory.layers))
    repaired = answers_with(stored_statistics(after.layers)) if stored else {}
    reference: dict[str, Array] = {}
    if stored and from_file:
        reference = answers_with(
            {
                **trial.engine.stored,
                **{name: (observed.mean, observed.variance) for name, observed in training.items()},
            }
        )
    return found + answering.objections(stored, repaired, reference)


def _training_mode(trial: Trial, part: Samples) -> Mapping[str, Observation]:
    """Return what goes into every layer in training mode: what was measured, where that is all of them."""
    if {site.layer for site in trial.engine.sites} <= trial.measured.keys():
        return trial.measured
    return in_training_mode(trial.engine, part)
