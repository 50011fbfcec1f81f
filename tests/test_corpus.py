"""The published checkpoints: every label of their manifest, which people gave by looking, against the scan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_doctor import scan
from ckpt_doctor.result import AuditResult, CheckpointResult

pytestmark = pytest.mark.corpus

# What the container is like is for the tests of the formats; here counts what is said of batch norm.
CONTAINER = frozenset(f"CK{number}" for number in (101, 102, 103, 104, 105, 106))
# A018 and A023 were trained in inference mode, as their `.meta` proves: what they hold is right.
TRAINED_IN_INFERENCE_MODE = ("A018", "A023")
# The layers of which the manifest says "never updated", by what their repository's later files show.
NEVER_UPDATED = {
    "A174": {f"ConvBNEluDr/batchnormalization_{n}" for n in (2, 3, 4, 5)},
    "A175": {f"ConvBNEluDr_5layer/batchnormalization_{n}" for n in (2, 3, 4, 5, 6)},
}


@pytest.fixture(scope="module")
def manifest(corpus: Path) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in json.loads((corpus / "MANIFEST.json").read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def results(corpus: Path, manifest: dict[str, dict[str, object]]) -> dict[str, AuditResult]:
    return {name: scan([str(corpus / name)]) for name in manifest}


def the_checkpoint(results: dict[str, AuditResult], name: str) -> CheckpointResult:
    (checkpoint,) = results[name].checkpoints
    return checkpoint


def codes(checkpoint: CheckpointResult) -> set[str]:
    return {finding.rule for finding in checkpoint.findings} - CONTAINER


def test_the_corpus_is_whole(manifest):
    assert len(manifest) == 32


def test_as_many_layers_as_the_manifest_counts(manifest, results):
    for name, row in manifest.items():
        if row["verdict"] != "corrupt":
            assert len(the_checkpoint(results, name).batch_norm_layers) == row["n_bn_layers"], name


def test_healthy_ones_and_negative_examples_are_silent(manifest, results):
    for name, row in manifest.items():
        if row["verdict"] in ("healthy", "negative_example"):
            checkpoint = the_checkpoint(results, name)
            assert not codes(checkpoint), name
            assert not checkpoint.not_judged, name


def test_what_was_trained_in_inference_mode_is_a_note_and_nothing_to_repair(manifest, results):
    for name in TRAINED_IN_INFERENCE_MODE:
        assert manifest[name]["verdict"] == "never_updated"
        checkpoint = the_checkpoint(results, name)
        (finding,) = [finding for finding in checkpoint.findings if finding.rule not in CONTAINER]
        assert (finding.rule, finding.severity, finding.repair, finding.certainty) == (
            "BN304",
            "note",
            "none",
            "proven",
        )
        assert len(finding.layers) == 5
        assert not checkpoint.not_judged


def test_the_layers_that_were_never_updated_are_exactly_those(manifest, results):
    for name, layers in NEVER_UPDATED.items():
        stats = manifest[name]["stats"]
        assert isinstance(stats, dict)
        assert len(layers) == stats["at_initial_values"]
        checkpoint = the_checkpoint(results, name)
        assert codes(checkpoint) == {"BN201"}
        assert {finding.layer for finding in checkpoint.findings} == layers
        assert all(finding.severity == "warning" for finding in checkpoint.findings)


def test_gamma_and_beta_without_statistics_are_missing_them(results):
    checkpoint = the_checkpoint(results, "A162")
    assert codes(checkpoint) == {"BN101", "BN102"}
    for code in ("BN101", "BN102"):
        assert len([finding for finding in checkpoint.findings if finding.rule == code]) == 109


def test_damaged_files_say_so_and_nothing_of_batch_norm(manifest, results):
    for name, row in manifest.items():
        if row["verdict"] == "corrupt":
            for checkpoint in results[name].checkpoints:
                assert not codes(checkpoint), name
                assert checkpoint.findings, name
