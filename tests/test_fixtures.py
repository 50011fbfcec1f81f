"""Every checkpoint of `fixtures/` against its `expected.json`, which was written by hand."""

import json

import pytest

from ckpt_doctor.cli import main
from tests.catalogue import BROKEN, HEALTHY, Fixture, all_fixtures

pytestmark = pytest.mark.usefixtures("graphs_read_once")

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
# All of these networks have a switch, and no file shows what was fed to it.
BY_GRADIENTS = ("BN201", "BN302")


@pytest.fixture
def scanned(capsys):
    def scanned(fixture: Fixture):
        code = main(["scan", str(fixture.path), "--format", "json", "--strict"])
        streams = capsys.readouterr()
        assert streams.err == ""
        [checkpoint] = json.loads(streams.out)["checkpoints"]
        return code, checkpoint

    return scanned


def test_the_fixtures_are_here():
    assert {fixture.folder for fixture in all_fixtures()} == {
        "keras_h5",
        "keras_v3",
        "tf1_handwritten",
        "tf1_layers",
        "tf1_no_update_ops",
        "tf1_slim",
        "tf1_training_only",
    }
    assert (len(BROKEN), len(HEALTHY)) == (8, 6)


@pytest.mark.parametrize("fixture", all_fixtures(), ids=str)
def test_layers_are_those_of_the_script(fixture, scanned):
    _, checkpoint = scanned(fixture)
    found = {layer["name"]: layer for layer in checkpoint["batch_norm_layers"]}
    assert list(found) == [layer["name"] for layer in fixture.layers]
    for expected in fixture.layers:
        layer, missing = found[expected["name"]], set(expected["missing"])
        for role in ROLES:
            assert layer[role] == (None if expected[role] in missing else expected[role]), role
        assert sorted(layer["companions"]) == sorted(set(expected["companions"]) - missing)
        assert layer["channels"] == expected["channels"]
        assert layer["epsilon"] == pytest.approx(expected["epsilon"], rel=1e-6)  # float32 in graphs
        assert layer["momentum"] == pytest.approx(expected["momentum"], rel=1e-6)
    assert checkpoint["not_judged"] == []


@pytest.mark.parametrize("fixture", all_fixtures(), ids=str)
def test_findings_are_exactly_those_of_the_defect(fixture, scanned):
    code, checkpoint = scanned(fixture)
    found = sorted((one["rule"], one["layer"] or "", *one["layers"]) for one in checkpoint["findings"])
    expected = sorted((one["rule"], one["layer"] or "", *one["layers"]) for one in fixture.expected["findings"])
    assert found == expected
    assert code == int(bool(checkpoint["findings"]))
    for one in checkpoint["findings"]:
        said = ("proven", "error")
        if one["rule"] in BY_GRADIENTS:
            # No file shows what was fed to the switch of a network, but optimizer slots of kernel and gamma tell.
            said = ("likely", "error") if "trainable" not in fixture.member else ("unproven", "warning")
        assert (one["certainty"], one["severity"]) == said, one["rule"]


@pytest.mark.parametrize("fixture", BROKEN, ids=str)
def test_what_a_finding_names_is_missing_or_there(fixture, scanned):
    _, checkpoint = scanned(fixture)
    missing = {name for layer in fixture.layers for name in layer["missing"]}
    for one in checkpoint["findings"]:
        named = set(one["variables"])
        if one["rule"] in ("BN101", "BN102", "BN301"):
            assert named
            assert named <= missing
        else:
            assert not named & missing or one["rule"] == "BN302"


@pytest.mark.parametrize("fixture", HEALTHY, ids=str)
def test_a_healthy_twin_is_ok(fixture, scanned):
    code, checkpoint = scanned(fixture)
    assert (code, checkpoint["findings"]) == (0, [])
    assert {layer["status"] for layer in checkpoint["batch_norm_layers"]} == {"ok"}
