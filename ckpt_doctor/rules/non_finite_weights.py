"""CK201: NaN or Inf in a variable that is not a batch-norm statistic.

One NaN in a weight makes every output that depends on it NaN; one in an optimizer slot does the same to the weights at
the next training step. A model with such a weight loads, serves and returns NaN.

Usual cause: training that diverged (a learning rate too high, a log or a division without a guard, an overflow in
    half precision) and went on saving.

False positives: values that are NaN or infinite on purpose: a row of a lookup table that means "unknown", the best loss
so far of a run that has none yet.

Repair: go back to the last checkpoint without them; the values cannot be computed from data.

Repair is unsafe when: NaN is replaced by zeros: the model works again, with a wrong weight that nothing shows. `fix`
changes no weights, and a repair of the statistics leaves the NaN in the file.

Source: tensorflow/core/kernels/check_numerics_op.cc, which stops a training for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.batchnorm import STATISTICS, BatchNormLayer, Inventory
from ckpt_doctor.finding import Finding
from ckpt_doctor.heuristics.exported_copies import twins_of
from ckpt_doctor.rules.interface import Rule, Subject

_NAMED = 3


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    layers = subject.inventory.layers
    # A statistic and its exported twins are one, and BN203's.
    statistics = {layer.variables.get(role) for layer in layers for role in STATISTICS}
    statistics |= {name for layer in layers for role in STATISTICS for name in twins_of(layer, role).values()}
    counts = {name: count for name, count in subject.non_finite.items() if name not in statistics}
    if not counts:
        return
    named = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_NAMED])
    more = f" and {len(counts) - _NAMED} more variables" if len(counts) > _NAMED else ""
    concerned = tuple(layer.name for layer in layers if counts.keys() & set(layer.variables.values()))
    yield rule.finding(
        f"{sum(counts.values()):,} values are NaN or infinite: {named}{more}; go back to a checkpoint without them",
        layers=concerned,
        variables=tuple(counts),
        certainty="proven",
    )


def _subject(*names: str) -> Subject:
    layer = BatchNormLayer(
        "bn", {"gamma": "bn/gamma", "moving_mean": "bn/moving_mean"}, companions={"moving_mean/twin": "exported/4"}
    )
    return Subject(Inventory((layer,)), non_finite=dict.fromkeys(names, 2))


def _all_finite() -> Subject:
    return _subject()


def _a_statistic() -> Subject:
    return _subject("bn/moving_mean")


def _a_statistic_and_its_twin() -> Subject:
    return _subject("bn/moving_mean", "exported/4")


def _a_weight() -> Subject:
    return _subject("dense/kernel")


def _gamma_of_a_layer() -> Subject:
    return _subject("bn/gamma")


def _many() -> Subject:
    return _subject("a", "b", "c", "d", "e")


RULE = Rule(
    code="CK201",
    needs="every value",
    name="non-finite-weights",
    severity="error",
    repair="none",
    check=_check,
    healthy=(_all_finite, _a_statistic, _a_statistic_and_its_twin),
    sick=(_a_weight, _gamma_of_a_layer, _many),
)
