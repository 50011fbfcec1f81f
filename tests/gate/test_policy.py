"""What is reported, what is held back, and what is no longer needed: through the command line."""

import json
import shutil
from importlib import resources

import jsonschema
import pytest

from ckpt_doctor import baseline
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import Finding
from ckpt_doctor.result import AuditResult, CheckpointResult
from ckpt_doctor.suppression import path_ignores, suppress
from tests.gate.conftest import FIXTURES, copy_bundle

SICK = ["zoo/model04/model.h5", "zoo/model17/model.ckpt-400", "zoo/model25/model.ckpt-400"]


def sick(out):
    return sorted(one["path"] for one in json.loads(out)["checkpoints"] if one["findings"])


def scan(run, *argv):
    code, out, err = run("scan", "zoo", "--format", "json", *argv)
    document = json.loads(out)
    schema = json.loads((resources.files("ckpt_doctor") / "schemas" / "scan-1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    return code, document, err


def test_a_folder_of_30_fails_for_the_3_sick_passes_with_the_baseline_and_fails_for_a_fourth(zoo_of_30, run, tmp_path):
    code, document, _ = scan(run)
    assert code == 1
    assert document["summary"]["checkpoints"] == 30
    assert sick(json.dumps(document)) == SICK
    code, document, err = scan(run, "--write-baseline", "known.json")
    assert code == 0
    known = len(json.loads((tmp_path / "known.json").read_text())["findings"])
    assert err == f"ckpt-doctor: known.json: {known} known findings written; scan with --baseline known.json\n"
    code, document, err = scan(run, "--baseline", "known.json")
    assert (code, err, sick(json.dumps(document))) == (0, "", [])
    assert document["summary"]["suppressed"] == known
    assert document["summary"]["error"] == 0
    assert document["unused_suppressions"] == []
    copy_bundle(True, zoo_of_30 / "model30")
    code, document, _ = scan(run, "--baseline", "known.json")
    assert code == 1
    assert sick(json.dumps(document)) == ["zoo/model30/model.ckpt-400"]


def test_a_baseline_is_steady_is_reviewable_and_holds_in_every_clone(zoo, run, tmp_path, monkeypatch):
    scan(run, "--write-baseline", "known.json")
    first = (tmp_path / "known.json").read_text()
    schema = json.loads((resources.files("ckpt_doctor") / "schemas" / "baseline-1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(first))
    rows = json.loads(first)["findings"]
    assert {row["path"] for row in rows} == set(SICK)
    scan(run, "--write-baseline", "known.json")
    assert (tmp_path / "known.json").read_text() == first
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "zoo", tmp_path / "elsewhere" / "zoo")
    shutil.move(tmp_path / "known.json", tmp_path / "elsewhere" / "known.json")
    code, out, _ = run("scan", "elsewhere/zoo", "--baseline", "elsewhere/known.json", "--format", "json")
    assert (code, sick(out)) == (0, [])
    monkeypatch.chdir(tmp_path / "elsewhere" / "zoo")
    assert run("scan", ".", "--baseline", "../known.json")[0] == 0


def test_what_the_baseline_no_longer_needs_is_reported(zoo, run):
    scan(run, "--write-baseline", "known.json")
    shutil.copy(FIXTURES / "keras_h5" / "healthy.h5", zoo / "model04" / "model.h5")
    shutil.rmtree(zoo / "model17")
    code, document, _ = scan(run, "--baseline", "known.json")
    assert code == 0
    unused = document["unused_suppressions"]
    assert {one["path"] for one in unused} == {"zoo/model04/model.h5", "zoo/model17/model.ckpt-400"}
    assert {one["by"] for one in unused} == {"baseline"}
    _, out, _ = run("scan", "zoo", "--baseline", "known.json")
    assert "no longer needed in baseline known.json: zoo/model04/model.h5: BN" in out
    # Of what was not looked at nothing is said.
    unused = scan(run, "--baseline", "known.json", "--select", "CK")[1]["unused_suppressions"]
    assert {one["path"] for one in unused} == {"zoo/model17/model.ckpt-400"}  # It is gone, whatever the rules.
    _, out, _ = run("scan", "zoo/model00", "--baseline", "known.json", "--format", "json")
    assert {one["path"] for one in json.loads(out)["unused_suppressions"]} == {"zoo/model17/model.ckpt-400"}


def test_no_baseline_is_written_where_there_is_no_verdict(zoo, run, tmp_path):
    code, _, err = run("scan", "zoo", "gone", "--write-baseline", "known.json")
    assert code == 2
    assert "nothing written" in err
    assert not (tmp_path / "known.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "known.json: does not exist; `scan … --write-baseline known.json` creates it"),
        ("{", "known.json: is not a baseline of ckpt-doctor (JSONDecodeError: "),
        ("[]", "known.json: is not a baseline of ckpt-doctor (expected a JSON object with a schema)"),
        ('{"schema": "ckpt-doctor/scan/1"}', "known.json: is a ckpt-doctor/scan/1, not a ckpt-doctor/baseline/1"),
        (
            '{"schema": "ckpt-doctor/baseline/1", "findings": [{}]}',
            "baseline of ckpt-doctor (a finding without 'path')",
        ),
    ],
)
def test_what_is_no_baseline_is_an_error(zoo, run, tmp_path, text, message):
    if text is not None:
        (tmp_path / "known.json").write_text(text)
    code, out, err = run("scan", "zoo", "--baseline", "known.json")
    assert (code, out) == (2, "")
    assert message in err


def test_rules_are_ignored_for_some_paths(zoo, run, tmp_path):
    config = tmp_path / ".ckpt-doctor.toml"
    config.write_text(
        '[per-path-ignores]\n"zoo/model04" = ["BN", "CK"]\n"zoo/model1*" = "BN"\n'
        '"zoo/*/model.ckpt-4??" = "saver-omits-statistics"\n'
    )
    document = scan(run)[1]
    assert sick(json.dumps(document)) == ["zoo/model25/model.ckpt-400"]
    hidden = [one for checkpoint in document["checkpoints"] for one in checkpoint["suppressed"]]
    assert {one["by"] for one in hidden} == {"per-path-ignores"}
    assert {one["where"] for one in hidden} == {"zoo/model04", "zoo/model1*", "zoo/*/model.ckpt-4??"}
    assert document["summary"]["suppressed"] == len(hidden)


def test_patterns_of_a_configuration_are_relative_to_it(zoo, run, tmp_path, monkeypatch):
    scan(run, "--write-baseline", "known.json")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.ckpt-doctor]\nbaseline = "known.json"\n[tool.ckpt-doctor.per-path-ignores]\n"zoo/model04" = "BN"\n'
    )
    monkeypatch.chdir(zoo / "model04")
    code, out, _ = run("scan", "..", "--format", "json")
    document = json.loads(out)
    assert code == 0
    assert document["unused_suppressions"] == []
    hidden = [one for checkpoint in document["checkpoints"] for one in checkpoint["suppressed"]]
    assert {one["by"] for one in hidden} == {"baseline", "per-path-ignores"}
    # The command line may write anew what the configuration names.
    assert run("scan", "..", "--write-baseline", "../../known.json")[0] == 0


def test_an_ignore_that_nothing_needs_is_reported(zoo, run, tmp_path):
    (tmp_path / ".ckpt-doctor.toml").write_text('[per-path-ignores]\n"zoo/model00" = "BN2"\n"other/*" = "BN2"\n')
    unused = scan(run)[1]["unused_suppressions"]
    assert [(one["where"], one["by"]) for one in unused] == [("zoo/model00", "per-path-ignores")]
    _, out, _ = run("scan", "zoo")
    assert "no longer needed in per-path-ignores zoo/model00: BN201, BN202" in " ".join(out.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--per-path-ignores", "zoo=never-updatd"],
            "per-path-ignores of zoo: no such rule: 'never-updatd'; did you mean never-updated?",
        ),
        (["--per-path-ignores", "zoo"], "--per-path-ignores zoo: must be NAME=VALUE"),
        (
            ["--baseline", "a", "--write-baseline", "b"],
            "--baseline and --write-baseline contradict each other; pass only one",
        ),
        (["--report", "sarif"], "--report sarif: must be FORMAT=FILE with FORMAT one of text, json, sarif, junit, "),
        (["--report", "pdf=x"], "--report pdf=x: must be FORMAT=FILE"),
        (["--report", "sarif=no/x"], "--report no/x: its folder no does not exist"),
        (["--write-baseline", "no/x"], "--write-baseline no/x: its folder no does not exist"),
    ],
)
def test_requests_that_cannot_be_met(zoo, run, argv, message):
    code, out, err = run("scan", "zoo", *argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"ckpt-doctor: {message}")


def test_a_typo_in_the_configuration_is_an_error_with_a_suggestion(zoo, run, tmp_path):
    (tmp_path / ".ckpt-doctor.toml").write_text('[per-path-ignore]\n"zoo/*" = "BN2"\n')
    code, _, err = run("scan", "zoo")
    assert code == 2
    assert "no such option: 'per-path-ignore'; did you mean per-path-ignores?" in err


def test_the_least_severity_to_report(zoo, run):
    document = scan(run, "--severity", "BN1=note", "--severity", "BN3=note", "--min-severity", "warning")[1]
    assert {finding["severity"] for one in document["checkpoints"] for finding in one["findings"]} <= {
        "error",
        "warning",
    }
    assert document["summary"]["note"] == 0
    # Held back by severity is not fixed: the entry of a baseline stays needed.
    scan(run, "--write-baseline", "known.json")
    document = scan(run, "--baseline", "known.json", "--severity", "BN=note", "--min-severity", "error")[1]
    assert document["unused_suppressions"] == []


def test_one_run_writes_several_reports(zoo, run, tmp_path):
    code, out, err = run(
        "scan", "zoo", "--report", "sarif=out.sarif", "--report", "junit=out.xml", "--report", "json=out.json"
    )
    assert (code, err) == (1, "")
    assert out.endswith("errors\n") or "errors" in out.splitlines()[-1]
    assert json.loads((tmp_path / "out.sarif").read_text())["version"] == "2.1.0"
    assert "<testsuites" in (tmp_path / "out.xml").read_text()
    assert sick((tmp_path / "out.json").read_text()) == SICK


def test_github_gets_annotations_and_a_summary(zoo, run, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    code, out, _ = run("scan", "zoo", "--format", "github")
    assert code == 1
    assert "file=zoo/model17/model.ckpt-400.index" in out
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("before\n## ckpt-doctor\n")
    assert all(path in summary for path in SICK)


def test_a_suppressed_finding_is_named_in_detail_and_counted(zoo, run):
    run("scan", "zoo", "--write-baseline", "known.json")
    _, out, _ = run("scan", "zoo", "--baseline", "known.json")
    assert "suppressed" in out.splitlines()[-1]
    assert "BN101 missing-moving-mean" not in out
    _, out, _ = run("-v", "scan", "zoo", "--baseline", "known.json")
    assert "BN101 missing-moving-mean bn1 (baseline: known.json)" in out


def one_finding(path, layer="bn", message="m", **more):
    finding = Finding("BN201", "never-updated", "error", "proven", layer, (layer,), ("v",), message, None, "estimate")
    return AuditResult((CheckpointResult(path, "keras-hdf5", None, 1, 1, ("names",), (), (), (finding,), **more),))


def test_a_finding_is_known_by_whom_it_concerns_and_not_by_its_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known.json").write_text(baseline.render(one_finding("m.h5"), "known.json"))
    known = baseline.read("known.json")

    def reported(result):
        return [finding.rule for one in suppress(result, (), known, ()).checkpoints for finding in one.findings]

    assert reported(one_finding("m.h5", message="other words")) == []
    assert reported(one_finding(str(tmp_path / "m.h5"))) == []
    assert reported(one_finding("m.h5", layer="bn2")) == ["BN201"]
    assert reported(one_finding("m2.h5")) == ["BN201"]


def test_a_checkpoint_that_could_not_be_opened_makes_no_suppression_unneeded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known.json").write_text(baseline.render(one_finding("m.h5"), "known.json"))
    damaged = AuditResult((CheckpointResult("m.h5", "keras-hdf5", None, 0, 1, (), (), (), ()),))
    ignores = path_ignores({"m.h5": ["BN2"]})
    result = suppress(damaged, ignores, baseline.read("known.json"), ("BN201", "BN202"))
    assert result.unused_suppressions == ()


def test_remote_paths_are_kept_as_they_are():
    (ignore,) = path_ignores({"gs://bucket/*": ["BN"]})
    assert ignore.concerns("gs://bucket/a/b")
    assert not ignore.concerns("s3://bucket/a")
    assert baseline.relative("gs://bucket/a", "x/known.json") == "gs://bucket/a"


def test_a_pattern_means_a_path_or_what_lies_below_it_or_what_it_matches():
    with pytest.raises(BadRequest, match="per-path-ignores of a: no such rule: 'BN9'"):
        path_ignores({"a": ["BN9"]})
    for pattern, path, concerns in [
        ("a", "a/b.h5", True),
        ("a/", "a/b/c.h5", True),
        ("a", "ab.h5", False),
        ("./a/../c", "c/x", True),
        ("*.h5", "a/b.h5", True),
        ("a/*/c", "a/b/d/c", True),
    ]:
        (ignore,) = path_ignores({pattern: ["BN"]})
        assert ignore.concerns(path) is concerns, pattern


@pytest.mark.parametrize("text", ["$(touch pwned)", "a b"])
def test_the_folder_may_have_any_name(tmp_path, monkeypatch, run, text):
    folder = tmp_path / text
    copy_bundle(True, folder / "m")
    monkeypatch.chdir(folder)
    assert run("scan", "m", "--write-baseline", "k.json")[0] == 0
    assert run("scan", "m", "--baseline", "k.json")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["k.json", "m"]


def test_strict_says_where_no_counter_tells_whether_averages_are_cold(run):
    """An export keeps no counter of steps; what it says nothing of is no finding, and is named to who asks for all."""
    exported = FIXTURES / "zoo" / "tf2" / "keras_export"
    assert run("scan", str(exported))[0] == 0
    code, out, _ = run("scan", str(exported), "--strict", "--format", "json")
    assert code == 1
    (place,) = json.loads(out)["checkpoints"][0]["not_judged"]
    assert place["where"] == str(exported)
    assert "are cold (BN202) is unknown: the file shows neither the number of their updates" in place["reason"]
    assert run("scan", str(exported), "--strict", "--ignore", "BN202")[0] == 0


def test_strict_fails_where_batch_norm_could_not_be_judged(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "formats" / "keras" / "keras3.weights.h5", tmp_path)
    code, out, _ = run("scan", "keras3.weights.h5")
    assert (code, "1 place not judged" in out) == (0, True)
    assert run("scan", "keras3.weights.h5", "--strict")[0] == 1
    (tmp_path / ".ckpt-doctor.toml").write_text("strict = true")
    for name in ("text", "json", "sarif", "junit", "markdown", "html"):
        code, out, _ = run("scan", "keras3.weights.h5", "--format", name)
        assert code == 1
        assert "gamma or beta: the file contains only its position" in " ".join(out.split()).replace("\\_", "_"), name
