"""What a model answers before and after a repair, as far as that tells without labels which is better.

Where all layers are estimated from the data, the repaired model answers as in training mode by construction, so its
agreement with training mode says nothing; of statistics that come from the file it says a lot. How well answers tell
the samples apart is their mutual information with the samples, `H(mean p) - mean H(p)`, in parts of the largest, ln k.
On 41 nets that were trained with batch moments and had all statistics at 0 and 1, a repair from right data raised it
by 0.3 (median) and lowered it by 0.24 at most (20 samples; 0.17 on a test set). Of 15 nets that had learned with 0 and
1, a repair, which makes them worse, lowered it by more than 0.3 in 10 (0.36 to 0.69), and 5 lay between -0.10 and 0.17.
It is a sign and no proof: on a hard task broken statistics can make a model sure of anything, so that a fall is an
improvement. So it is told and refuses nothing.

Source: the measure is that of Bridle, Heading and MacKay, "Unsupervised Classifiers, Mutual Information and 'Phantom
Targets'", NeurIPS 1991.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ckpt_doctor.checkpoint import Array
from ckpt_doctor.repair.contradiction import Objections

# Fewer answers tell nothing about shares and entropies.
FEWEST_ANSWERS = 20
# Parts of ln k; see the module's docstring.
_LARGEST_FALL = 0.3
# Share of answers by which the agreement may fall: repairs from right data lowered it by 0.02 at most (41 nets).
# Refused is what is beyond chance too, two standard errors of a share of n answers, 2 * sqrt(0.25 / n).
_LESS_AGREEMENT = 0.1


def _rows(values: Array) -> Array | None:
    """Return answers as float64, or None where they are few, no numbers, or single ones."""
    if not np.issubdtype(values.dtype, np.floating) or values.shape[-1] < 2 or len(values) < FEWEST_ANSWERS:
        return None
    return values.astype(np.float64) if np.isfinite(values).all() else None


def _is_probability(rows: Array) -> bool:
    return bool(np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1, atol=1e-3))


def _entropy(probabilities: Array) -> Array:
    terms: Array = np.where(probabilities > 0, -probabilities * np.log(np.maximum(probabilities, 1e-300)), 0.0)
    return np.asarray(terms.sum(axis=-1))


def information(probabilities: Array) -> float:
    """Return how well answers tell the samples apart, 0 to 1.

    Args:
        probabilities: Of shape `(answers, k)`; each row sums to 1.
    """
    parts = _entropy(probabilities.mean(axis=0)) - _entropy(probabilities).mean()
    return float(parts / np.log(probabilities.shape[1]))


def agreement(first: Array, second: Array) -> float:
    """Return the share of answers, each of shape `(k,)`, whose largest value is at the same place."""
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def objections(stored: Mapping[str, Array], repaired: Mapping[str, Array], training: Mapping[str, Array]) -> Objections:
    """Return what the answers say against a repair.

    Args:
        stored: Output to what the checkpoint answers as it is, of shape `(answers, k)`.
        repaired: The same of the repaired one.
        training: The same in training mode; empty where the repair is estimated from the data.
    """
    result = Objections()
    for name, values in repaired.items():
        before, after = (_rows(each) for each in (stored[name], values))
        if after is None and np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            text = f"output {name}: the repaired model returns NaN or infinite values"
            result += Objections((text,), (text,) if np.isfinite(stored[name]).all() else ())
        elif before is not None and after is not None:
            reference = _rows(training[name]) if name in training else None
            for text, refuses in _compared(name, before, after, reference):
                result += Objections((text,), (text,) if refuses else ())
    return result


def _compared(name: str, before: Array, after: Array, training: Array | None) -> Iterator[tuple[str, bool]]:
    if training is not None:
        was, now = agreement(before, training), agreement(after, training)
        if was - now > _LESS_AGREEMENT:
            yield (
                f"output {name}: {100 * was:.0f} % of {len(before):,} answers agreed with training mode before the "
                f"repair, {100 * now:.0f} % do after it",
                was - now > _LESS_AGREEMENT + 1 / np.sqrt(len(before)),
            )
    if _is_probability(before) and _is_probability(after):
        was, now = information(before), information(after)
        if was - now > _LARGEST_FALL:
            yield (
                f"output {name}: the repaired model separates the samples less well than the stored one: its answers "
                "carry "
                f"{now:.2f} of the largest possible information, {was:.2f} before, and their entropy is "
                f"{_entropy(after).mean():.2g} nats, {_entropy(before).mean():.2g} before; a model that was trained "
                "with its stored statistics (BN304) or wrong data look like this; decide by --metric",
                False,
            )
