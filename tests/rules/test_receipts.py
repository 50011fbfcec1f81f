"""A receipt beside a checkpoint turns what judges its history into a note, as long as the bytes are those it names."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ckpt_doctor import scan

ZOO = Path(__file__).parents[2] / "fixtures" / "zoo" / "tf1"


@pytest.fixture
def averaged(tmp_path: Path) -> Path:
    """The prefix of a copy of a checkpoint whose weights are averages (BN211)."""
    for file in ZOO.glob("averages_written_over.*"):
        shutil.copy(file, tmp_path / file.name.replace("averages_written_over", "model"))
    return tmp_path / "model"


def write_receipt(prefix: Path, digest: str, *layers: str) -> None:
    document = {
        "schema": "ckpt-doctor/fix/1",
        "layers": [{"name": layer} for layer in layers],
        "sha256": [{"path": f"/elsewhere/{prefix.name}.index", "before": None, "after": digest}],
    }
    (prefix.parent / "receipt.json").write_text(json.dumps(document), encoding="utf-8")


def severities(prefix: Path) -> dict[str | None, str]:
    (checkpoint,) = scan([str(prefix)]).checkpoints
    return {finding.layer: finding.severity for finding in checkpoint.findings if finding.rule == "BN211"}


def digest_of(prefix: Path) -> str:
    return hashlib.sha256(prefix.with_suffix(".index").read_bytes()).hexdigest()


def test_without_a_receipt_it_is_a_warning(averaged):
    assert severities(averaged) == {"bn1": "warning", "bn2": "warning"}


def test_a_receipt_for_these_bytes_makes_a_note_of_it_for_the_layers_that_it_names(averaged):
    write_receipt(averaged, digest_of(averaged), "bn1")
    assert severities(averaged) == {"bn1": "note", "bn2": "warning"}


def test_a_receipt_for_other_bytes_counts_for_nothing(averaged):
    write_receipt(averaged, "0" * 64, "bn1", "bn2")
    assert severities(averaged) == {"bn1": "warning", "bn2": "warning"}


@pytest.mark.parametrize("text", ["ckpt-doctor/fix/1", '{"schema": "ckpt-doctor/fix/1", "layers": 3}', "[]"])
def test_what_is_no_receipt_is_passed_over(averaged, text):
    (averaged.parent / "receipt.json").write_text(text, encoding="utf-8")
    assert severities(averaged) == {"bn1": "warning", "bn2": "warning"}
