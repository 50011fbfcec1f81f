"""What BN206 says of vectors in each other's place is true, whichever they are."""

from __future__ import annotations

import pytest

from ckpt_doctor.rules._examples import example, holding
from ckpt_doctor.rules.swapped_roles import RULE

# As training leaves them: gamma around 1, beta around 0, a mean of both signs, a variance above zero.
RIGHT = {
    "gamma": [0.8, 1.1, 1.3, 0.9],
    "beta": [-0.1, 0.2, -0.3, 0.1],
    "moving_mean": [-0.5, 0.3, 1.0, -2.0],
    "moving_variance": [0.5, 1.0, 2.0, 4.0],
}
ROLES = tuple(RIGHT)


def messages(order):
    """Return what is said of two layers of which each role holds the vector that belongs to another one."""
    given = {role: RIGHT[of] for role, of in zip(ROLES, order, strict=True)}
    subject = holding(*(example(name, channels=4, **given) for name in ("a", "b")))
    return list(RULE.check(RULE, subject))


@pytest.mark.parametrize(
    ("order", "says", "says_not"),
    [
        # Darknet's first is beta (mystic123/tensorflow-yolo-v3, issue 38).
        (("beta", "gamma", "moving_mean", "moving_variance"), "its own mean and variance look right", "method copy"),
        # A converter wrote mean and variance first (Vladkryvoruchko/PSPNet-Keras-tensorflow, issue 23).
        (("moving_mean", "moving_variance", "gamma", "beta"), "could be a gamma or a variance", "look right"),
        (("gamma", "beta", "moving_variance", "moving_mean"), "could be a variance", "look right"),
    ],
)
def test_the_reason_is_true(order, says, says_not):
    found = messages(order)
    assert len(found) == 2
    for finding in found:
        assert says in finding.message
        assert says_not not in finding.message
    undone = order[2:] == ("moving_variance", "moving_mean")
    assert all(("--method copy" in finding.message) is undone for finding in found)
