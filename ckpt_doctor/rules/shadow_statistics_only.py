"""BN103: the statistics exist only as a copy under another name.

A moving-average shadow (`moving_mean/ExponentialMovingAverage`), or the companion that zero-debiasing keeps
(`moving_mean/biased` with `local_step`), holds what the layer needs, but the name that a loader looks for is not in the
file. A strict loader stops; a lenient one falls back to 0 and 1.

Usual cause: the checkpoint was exported from the averages alone, and the code that loads it does not map the names.

    saver = tf.train.Saver(ema.variables_to_restore())   # the mapping, where the shadows are wanted

False positives: a file of averages that its code restores with `variables_to_restore()` is complete. If only names
describe the layer, the finding is `likely`.

Repair: the values are in the file; `ckpt-doctor fix --method copy` writes them under the plain name, exactly and
    without data.

Repair is unsafe when: gamma, beta and the kernels are plain weights: averaged statistics then belong to slightly other
weights. A `biased` average is divided by `1 - d^N` with the decay of the given model; another decay leads to wrong
values.

Source: tensorflow/tpu issue 818 (EfficientNet-L2), google/automl issues 168 and 632.

"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_doctor.batchnorm import BatchNormLayer
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules._missing import certainty_of_absence, copy_of
from ckpt_doctor.rules.interface import Rule, Subject


def _check(rule: Rule, subject: Subject) -> Iterator[Finding]:
    for layer in subject.inventory.layers:
        found = {
            role: key
            for role in ("moving_mean", "moving_variance")
            if role in layer.absent and (key := copy_of(layer, role)) and not key.endswith("/drifted")
        }
        if not found:
            continue
        pairs = ", ".join(f"{layer.absent[role]} only as {layer.companions[key]}" for role, key in found.items())
        yield rule.finding(
            f"layer {layer.name} ({layer.channels} channels) has {pairs}; a loader that looks for the plain name does "
            "not find it; `fix --method copy` adds it",
            layer=layer,
            variables=tuple(layer.absent[role] for role in found),
            certainty=certainty_of_absence(layer),
        )


_BOTH = ("moving_mean", "moving_variance")


def _with(*keys: str, missing: tuple[str, ...] = _BOTH, momentum: float | None = None) -> BatchNormLayer:
    names = {key: f"bn/{key.replace('shadow', 'ExponentialMovingAverage')}" for key in keys}
    return replace(example(missing=missing), companions=names, momentum=momentum)


RULE = Rule(
    code="BN103",
    name="shadow-statistics-only",
    severity="warning",
    repair="copy",
    check=_check,
    fixed="always",
    healthy=(
        lambda: holding(example()),
        # Missing altogether: BN101 and BN102.
        lambda: holding(example(missing=_BOTH)),
        # The shadow is there beside the variable itself.
        lambda: holding(_with("moving_mean/shadow", "moving_variance/shadow", missing=())),
        # Without the decay nothing can be computed from the biased average.
        lambda: holding(_with("moving_mean/biased", "moving_mean/local_step", missing=("moving_mean",))),
    ),
    sick=(
        lambda: holding(_with("moving_mean/shadow", "moving_variance/shadow")),
        lambda: holding(_with("moving_mean/biased", "moving_mean/local_step", missing=("moving_mean",), momentum=0.9)),
    ),
)
