"""What a rule is: a code, a name, a severity, and a generator of findings.

A rule of a layer sees the layer and its siblings, never a path or a file. It yields; it does not record, sort or
filter. The docstring of a rule's module is its documentation: `ckpt-doctor explain CODE` prints it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.finding import Certainty, Finding, Repair, Severity
from ckpt_doctor.heuristics.initial_value_share import InitialValueShares
from ckpt_doctor.heuristics.role_swaps import RoleSwap, find_role_swaps
from ckpt_doctor.observation import Observation


@dataclass(frozen=True, eq=False)
class Subject:
    """What the rules judge: one checkpoint's batch norm and its defects.

    Attributes:
        inventory: The batch-norm layers, and what the model says of them.
        damages: Defects of the container.
        non_finite: Name to number of NaN and infinite values, of the variables that hold any; empty where the values
            were not looked at.
        repaired: Names of the layers that a receipt beside the file, made for exactly these bytes, says were repaired.
        observed: Layer to what went into it on the data that were given; empty where none were.
        tolerance: Multiplies the limits of the rules that compare with data.
    """

    inventory: Inventory
    damages: tuple[Damage, ...] = ()
    non_finite: Mapping[str, int] = field(default_factory=dict)
    repaired: frozenset[str] = frozenset()
    observed: Mapping[str, Observation] = field(default_factory=dict)
    tolerance: float = 1.0

    @cached_property
    def by_name(self) -> dict[str, BatchNormLayer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.inventory.layers}

    @cached_property
    def shares(self) -> InitialValueShares:
        """What is left of the initial values: what layers are compared by, computed once."""
        return InitialValueShares(self.inventory)

    @cached_property
    def role_swaps(self) -> dict[str, RoleSwap]:
        """The layers whose roles are swapped, by name."""
        return find_role_swaps(self.inventory.layers)


Fixed = Literal["always", "likely", "proven", "asked"]
Needs = Literal["file", "every value", "data"]


@dataclass(frozen=True, eq=False)
class Rule:
    """One kind of defect.

    Attributes:
        code: Stable, never reused: `BN101`.
        name: Stable: `missing-moving-mean`.
        severity: Of its findings, unless one says another.
        repair: What `fix` can do about it.
        check: Yields the findings of one checkpoint.
        fixed: When `fix` repairs it: `always` (what is missing cannot be right), `proven` (a proven finding), `likely`
            (one that values of the file make likely, too), `asked` (with --unproven, or by the layer's name).
        healthy: Subjects in which it finds nothing, near misses included: its tests.
        sick: Subjects in which it finds something: its tests.
        needs: What it looks at, and without which it finds nothing: `every value` is what `--quick` leaves out, `data`
            is what `--data` brings.
    """

    code: str
    name: str
    severity: Severity
    repair: Repair
    check: Callable[[Rule, Subject], Iterator[Finding]]
    healthy: tuple[Callable[[], Subject], ...]
    sick: tuple[Callable[[], Subject], ...]
    fixed: Fixed = "asked"
    needs: Needs = "file"

    @property
    def documentation(self) -> str:
        """The docstring of the module that defines the rule."""
        return (sys.modules[self.check.__module__].__doc__ or "").strip()

    def finding(
        self,
        message: str,
        *,
        layer: BatchNormLayer | None = None,
        layers: tuple[str, ...] = (),
        variables: tuple[str, ...] = (),
        certainty: Certainty,
        severity: Severity | None = None,
        repair: Repair | None = None,
    ) -> Finding:
        """Return a finding of this rule; severity and repair are the rule's own if they are not given.

        Args:
            message: What was seen, in numbers, and what to do next.
            layer: The layer that it is about, if it is about one.
            layers: All affected layers; `layer` alone if they are not given.
            variables: Names of the affected variables.
            certainty: `proven` if the bytes of the file or the graph show it; `likely` or `unproven` if it rests on
                names, a config, a counter, the optimizer, or on what values usually look like. No default: every
                rule has to decide.
            severity: Another severity than the rule's.
            repair: Another repair than the rule's.
        """
        return Finding(
            rule=self.code,
            name=self.name,
            severity=severity or self.severity,
            certainty=certainty,
            layer=layer.name if layer else None,
            layers=layers or ((layer.name,) if layer else ()),
            variables=variables,
            message=message,
            cause=None,
            repair=repair or self.repair,
        )
