"""The one judge: of a checkpoint as it is, as it will be written, and as it was written.

`scan` reports what `judge` finds; `fix` chooses by it what to repair, and proves the repair by it. So the two cannot
disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt_doctor.analysis import Analysis
from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import SEVERITIES, Finding
from ckpt_doctor.formats.receipt import repaired_layers
from ckpt_doctor.observation import Observation
from ckpt_doctor.result import NotJudged
from ckpt_doctor.rules import EXPLAINS, RULES
from ckpt_doctor.rules.interface import Subject
from ckpt_doctor.selection import Selection

ALL_RULES = Selection.of((), (), {})
_COLD = "BN202"


@dataclass(frozen=True, eq=False)
class Policy:
    """By what a checkpoint is judged, besides what it says itself.

    Attributes:
        selection: Which rules count, and how severe their findings are.
        observed: Layer to what went into it on the data that were given.
        unobserved: Layer to the reason why nothing was seen of it.
        tolerance: Multiplies the limits of the rules that compare with data.
        repaired: Names of the layers whose statistics are known to be new; None: as receipts beside the file say.
        strict: Whether what a file has no room to tell counts as not judged: cold averages without a step counter.
    """

    selection: Selection = ALL_RULES
    observed: Mapping[str, Observation] = field(default_factory=dict)
    unobserved: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 1.0
    repaired: frozenset[str] | None = None
    strict: bool = False


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is wrong with a checkpoint.

    Attributes:
        analysis: What it says.
        findings: Worst first, each with what explains it.
        not_judged: What no verdict is possible on.
        subject: What the rules were shown, with the signs that they computed on the way.
    """

    analysis: Analysis
    findings: tuple[Finding, ...]
    not_judged: tuple[NotJudged, ...]
    subject: Subject


def judge(analysis: Analysis, policy: Policy) -> Verdict:
    """Return the verdict on a checkpoint."""
    subject = Subject(
        analysis.inventory,
        analysis.defects,
        analysis.non_finite,
        repaired=policy.repaired or frozenset(),
        observed=policy.observed,
        tolerance=policy.tolerance,
    )
    if policy.repaired is None and (_judges_history(subject) or (policy.strict and uncounted(analysis, subject))):
        subject = replace(subject, repaired=repaired_layers(analysis.checkpoint))
    not_judged = _not_judged(analysis, policy.unobserved)
    if policy.strict and _COLD in policy.selection.codes:
        not_judged += _uncounted(analysis, subject)
    return Verdict(analysis, judge_subject(subject, policy.selection), not_judged, subject)


def judge_subject(subject: Subject, selection: Selection) -> tuple[Finding, ...]:
    """Return the findings of all rules on one checkpoint, worst first, each with what explains it."""
    unknown = {damage.kind for damage in subject.damages} - {rule.name for rule in RULES}
    if unknown:  # A format made up a kind that no rule reports: our own bug, and it must not pass for health.
        raise AssertionError(f"no rule reports damage of the kind {', '.join(sorted(unknown))}")
    findings = [finding for rule in RULES for finding in rule.check(rule, subject)]
    reported = list(selection.apply(findings))
    # The sort is stable: within a rule the order stays that of the layers.
    reported.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
    return tuple(_with_cause(reported))


def _with_cause(reported: Sequence[Finding]) -> list[Finding]:
    """Return the findings, each with the rule whose findings explain it on the layers that both concern."""
    explaining: dict[str, list[frozenset[str]]] = {}
    causes = {code for code, _ in EXPLAINS}
    for finding in reported:
        if finding.rule in causes:
            explaining.setdefault(finding.rule, []).append(frozenset(finding.layers))
    # Findings on one layer each are looked up; those on many are few.
    alone = {code: {next(iter(layers)) for layers in found if len(layers) == 1} for code, found in explaining.items()}
    many = {code: [layers for layers in found if len(layers) != 1] for code, found in explaining.items()}

    def explains(code: str, layers: Sequence[str]) -> bool:
        if len(layers) == 1 and layers[0] in alone.get(code, ()):
            return True
        return any(known.issuperset(layers) for known in many.get(code, ()))

    result = []
    for finding in reported:
        cause = finding.cause or next(
            (code for code, explained in EXPLAINS if finding.rule in explained and explains(code, finding.layers)), None
        )
        result.append(finding if cause == finding.cause else replace(finding, cause=cause))
    return result


def _judges_history(subject: Subject) -> bool:
    """Return whether a rule may judge what was done to the statistics before: what a receipt would answer."""
    return any(
        layer.slots
        or layer.copies
        or (layer.facts is not None and layer.facts.gradient_trains)
        or subject.shares.of(layer) is not None
        for layer in subject.inventory.layers
    )


def _not_judged(analysis: Analysis, unobserved: Mapping[str, str]) -> tuple[NotJudged, ...]:
    inventory = analysis.inventory
    found = [NotJudged(name, reason) for name, reason in inventory.not_judged.items()]
    if inventory.model is not None:
        found += [NotJudged(where, reason) for where, reason in inventory.model.not_judged]
        found += [NotJudged(analysis.checkpoint.path, problem) for problem in inventory.model.problems]
    return (*found, *(NotJudged(*pair) for pair in unobserved.items()))


def uncounted(analysis: Analysis, subject: Subject) -> list[BatchNormLayer]:
    """Return the layers of which nothing tells whether their averages are cold, in formats that keep no step counter.

    SavedModels, weights of Keras, and checkpoints of objects hold what a model is served with.
    """
    checkpoint = analysis.checkpoint
    layout = checkpoint.layout
    if not (layout.folder or layout.weights_only or checkpoint.descriptions.object_graph is not None):
        return []
    return [
        layer
        for layer in subject.inventory.layers
        if layer.name not in subject.repaired and subject.shares.is_open(layer)
    ]


def _uncounted(analysis: Analysis, subject: Subject) -> tuple[NotJudged, ...]:
    """Return that nothing tells whether averages are cold, where that is so."""
    layers = uncounted(analysis, subject)
    if not layers:
        return ()
    reason = (
        f"whether the averages of {len(layers)} layers (first: {layers[0].name}) are cold (BN202) is unknown: the "
        f"file shows neither the number of their updates nor their decay, and no variance below 0.05 rules it out"
    )
    return (NotJudged(analysis.checkpoint.path, reason),)
