"""A defect of the container as a finding: formats see the damage, the rules of the CK family name it."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.finding import Certainty, Finding
from ckpt_doctor.rules.interface import Rule, Subject

# A message is one line for people; a bundle with a hole may fail the checksum of every tensor after it.
_PLACES_NAMED = 3


def report(rule: Rule, subject: Subject, certainty: Certainty) -> Iterator[Finding]:
    """Yield one finding for all damages of the kind that `rule` is named after, or none.

    The finding's `layers` are those with a variable that cannot be trusted because of it.
    """
    damages = [damage for damage in subject.damages if damage.kind == rule.name]
    if not damages:
        return
    variables = tuple(dict.fromkeys(name for damage in damages for name in damage.variables))
    untrusted = set(variables)
    layers = tuple(
        layer.name
        for layer in subject.inventory.layers
        if untrusted & {*layer.variables.values(), *layer.absent.values(), *layer.companions.values()}
    )
    places = [f"{damage.where}: {damage.message}" for damage in damages]
    message = "; ".join(places[:_PLACES_NAMED])
    if len(places) > _PLACES_NAMED:
        message += f"; and {len(places) - _PLACES_NAMED} other places"
    yield rule.finding(message, layers=layers, variables=variables, certainty=certainty)


def damaged(*damages: Damage) -> Subject:
    """Return a checkpoint of one layer with these defects: an example of the rules."""
    return Subject(Inventory(layers=(BatchNormLayer("bn", {"gamma": "w"}),)), damages=damages)
