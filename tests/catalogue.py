"""The fixtures by name, with what their `expected.json` and `oracle.npz` say; nothing here reads a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures"
CALIBRATION = FIXTURES / "data" / "calibration.npz"
DATA = f"{CALIBRATION}[x]"


@dataclass(frozen=True)
class Fixture:
    """One checkpoint of one folder.

    Attributes:
        folder: The folder's name: `tf1_layers`.
        member: The checkpoint in it: `trainable/model.ckpt-400`.
        expected: Its part of `expected.json`.
    """

    folder: str
    member: str
    expected: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.folder}/{self.member}"

    @property
    def path(self) -> Path:
        return FIXTURES / self.folder / self.member

    @property
    def is_bundle(self) -> bool:
        return self.path.with_name(f"{self.path.name}.index").exists()

    @property
    def layers(self) -> list[dict[str, Any]]:
        return self.expected["batch_norm_layers"]

    @cached_property
    def oracle(self) -> dict[str, np.ndarray]:
        with np.load(FIXTURES / self.folder / "oracle.npz") as archive:
            return {name: archive[name] for name in archive.files}


def all_fixtures() -> list[Fixture]:
    found = []
    for path in sorted([*FIXTURES.glob("tf1_*/expected.json"), *FIXTURES.glob("keras_*/expected.json")]):
        checkpoints = json.loads(path.read_text("utf-8"))["checkpoints"]
        found += [Fixture(path.parent.name, member, expected) for member, expected in checkpoints.items()]
    return found


BROKEN = [fixture for fixture in all_fixtures() if not fixture.expected["healthy"]]
HEALTHY = [fixture for fixture in all_fixtures() if fixture.expected["healthy"]]
BY_NAME = {str(fixture): fixture for fixture in all_fixtures()}
