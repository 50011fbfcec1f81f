"""The reports that other programs read, against their published schemas, documented forms and real consumers."""

import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import junitparser
import pytest

from ckpt_doctor import scan
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports._explanation import explanations
from ckpt_doctor.reports._location import file_of, relative, uri
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult, PathError
from tests.reports.results import ALL_LEVELS, BROKEN, EVIL, NOTHING_FOUND, checkpoint, finding

PLAIN = Style()
FIXTURES = Path(__file__).parents[2] / "fixtures"
SARIF = json.loads((Path(__file__).parent.parent / "data" / "sarif-2.1.0-rtm.5.json").read_text())
BOTH = pytest.mark.parametrize("result", [ALL_LEVELS, NOTHING_FOUND, AuditResult(())], ids=["all", "none", "empty"])


def sarif(result, style=PLAIN):
    log = json.loads(REPORTS["sarif"](result, style))
    jsonschema.Draft4Validator.check_schema(SARIF)
    jsonschema.Draft4Validator(SARIF, format_checker=jsonschema.FormatChecker()).validate(log)
    (run,) = log["runs"]
    return run


@BOTH
def test_sarif_is_what_its_schema_says(result):
    run = sarif(result)
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in explanations()]
    for rule in rules:
        assert rule["help"]["text"]
        assert rule["help"]["markdown"]
        assert rule["shortDescription"]["text"].endswith(".")


def test_the_schema_of_sarif_refuses_what_is_none():
    log = json.loads(REPORTS["sarif"](ALL_LEVELS, PLAIN))
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SARIF).validate(log)


def test_sarif_says_levels_suppressions_and_what_gave_no_verdict():
    run = sarif(ALL_LEVELS)
    levels = [result["level"] for result in run["results"] if "suppressions" not in result]
    summary = ALL_LEVELS.summary
    counts = [levels.count(level) for level in ("error", "warning", "note")]
    assert counts == [summary.error, summary.warning, summary.note]
    hidden = [result for result in run["results"] if "suppressions" in result]
    assert [(one["ruleId"], one["suppressions"][0]["justification"]) for one in hidden] == [
        ("BN201", "baseline: known.json"),
        ("CK105", "per-path-ignores: models/*"),
    ]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    said = [(one["level"], one["message"]["text"]) for one in invocation["toolExecutionNotifications"]]
    assert ("error", "is not there") in said
    assert ("note", "not judged: x: could be two things") in said
    assert ("warning", "no longer needed: BN101 of models/old.ckpt bn1") in said
    assert sarif(NOTHING_FOUND)["invocations"][0]["executionSuccessful"] is True
    index = {rule["id"]: number for number, rule in enumerate(run["tool"]["driver"]["rules"])}
    assert all(result["ruleIndex"] == index[result["ruleId"]] for result in run["results"])


def test_sarif_lists_only_the_rules_that_were_to_be_reported():
    run = sarif(dataclasses.replace(NOTHING_FOUND, rules=("BN101", "CK103")))
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["BN101", "CK103"]


def fingerprints(result, style=PLAIN):
    return [one["partialFingerprints"]["finding/v1"] for one in sarif(result, style)["results"]]


def test_fingerprints_are_those_of_the_finding_and_of_nothing_else():
    one = AuditResult((BROKEN,))
    assert len(set(fingerprints(one))) == 107
    louder = dataclasses.replace(
        BROKEN,
        bytes=7,
        findings=tuple(dataclasses.replace(f, message="other", severity="note") for f in reversed(BROKEN.findings)),
    )
    assert sorted(fingerprints(AuditResult((louder,)))) == sorted(fingerprints(one))
    elsewhere = dataclasses.replace(BROKEN, path=f"/home/me/repo/{BROKEN.path}")
    assert fingerprints(AuditResult((elsewhere,)), Style(root="/home/me/repo")) == fingerprints(one)
    renamed = dataclasses.replace(BROKEN, path="models/model.ckpt-8")
    assert not set(fingerprints(AuditResult((renamed,)))) & set(fingerprints(one))


def test_a_fingerprint_does_not_change_between_versions():
    """Alerts that were dismissed would come back."""
    assert fingerprints(AuditResult((BROKEN,)))[0] == "003a5e273e8855b738ed79c66b9a749028edde0c2303e4498ea6938342febef7"


def locations(path, kind, root="/repo"):
    result = AuditResult((checkpoint([finding("CK102", "truncated")], path=path, format=kind),))
    place = sarif(result, Style(root=root))["results"][0]["locations"][0]["physicalLocation"]
    return place["artifactLocation"]


def test_sarif_names_files_of_the_repository_by_relative_uris():
    assert locations("a b/m.ckpt-1", "tensor-bundle") == {"uri": "a%20b/m.ckpt-1.index", "uriBaseId": "%SRCROOT%"}
    assert locations("/repo/x/m.h5", "keras-hdf5")["uri"] == "x/m.h5"
    assert locations("./x/../y/", "saved-model")["uri"] == "y/saved_model.pb"
    assert locations("/elsewhere/m.h5", "keras-hdf5") == {"uri": "file:///elsewhere/m.h5"}
    assert locations("gs://bucket/m ckpt", "keras-hdf5") == {"uri": "gs://bucket/m%20ckpt"}
    assert relative("/repository/m", "/repo") == "/repository/m"
    assert uri("100%.h5") == "100%25.h5"


def junit(result, style=PLAIN):
    return junitparser.JUnitXml.fromstring(REPORTS["junit"](result, style).encode())


@BOTH
def test_junit_is_read_by_a_consumer_and_its_counts_are_those_it_counts_itself(result):
    suites = junit(result)
    for suite in suites:
        counts = (suite.tests, suite.failures, suite.errors, suite.skipped)
        suite.update_statistics()
        assert (suite.tests, suite.failures, suite.errors, suite.skipped) == counts
    total = (suites.tests, suites.failures, suites.errors, suites.skipped)
    suites.update_statistics()
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == total


def cases(suite, kind):
    return [case.name for case in suite if any(isinstance(entry, kind) for entry in case.result)]


def test_junit_has_a_case_for_every_rule_and_fails_where_the_run_fails():
    suites = {suite.name: suite for suite in junit(ALL_LEVELS)}
    broken = suites["models/model.ckpt-7"]
    assert len(list(broken)) == len(explanations())
    assert cases(broken, junitparser.Failure) == [
        "BN101 missing-moving-mean",
        "BN102 missing-moving-variance",
        "BN301 saver-omits-statistics",
    ]
    assert cases(suites["odd name.h5"], junitparser.Failure) == []
    assert cases(suites["gone"], junitparser.Error) == ["verdict"]
    assert "judged: x" in cases(suites["odd name.h5"], junitparser.Skipped)
    evil = next(suite for name, suite in suites.items() if "@all" in name)
    assert {"BN201 never-updated", "CK105 stale-checkpoint-state"} <= set(cases(evil, junitparser.Skipped))
    loud = {suite.name: suite for suite in junit(ALL_LEVELS, Style(failing=("error", "warning")))}
    assert cases(loud["odd name.h5"], junitparser.Failure) == ["BN201 never-updated"]
    assert junit(ALL_LEVELS, Style(failing=())).failures == 0


def test_junit_skips_what_was_not_run():
    broken = FIXTURES / "keras_v3" / "broken.keras"
    (suite,) = (suite for suite in junit(scan(broken)) if suite.name == str(broken))
    assert cases(suite, junitparser.Skipped) == ["BN401 statistics-do-not-match-data", "BN402 too-little-data"]
    (quick,) = (suite for suite in junit(scan(broken, quick=True)) if suite.name == str(broken))
    assert "CK201 non-finite-weights" in cases(quick, junitparser.Skipped)
    assert "BN201 never-updated" in cases(quick, junitparser.Failure)


# Source: docs.gitlab.com, Code Quality, "Code Quality report format": the fields and their values.
GITLAB = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string", "minLength": 1},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "additionalProperties": False,
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "pattern": "^(?!\\./)(?!/)"},
                    "lines": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}


@BOTH
def test_gitlab_is_the_documented_array(result):
    issues = json.loads(REPORTS["gitlab"](result, PLAIN))
    jsonschema.Draft202012Validator(GITLAB).validate(issues)
    reported = result.summary
    assert len(issues) == reported.error + reported.warning + reported.note + len(result.errors)
    assert len({issue["fingerprint"] for issue in issues}) == len(issues)


def test_gitlab_has_a_severity_for_each_of_ours():
    issues = json.loads(REPORTS["gitlab"](ALL_LEVELS, PLAIN))
    assert {issue["check_name"]: issue["severity"] for issue in issues} == {
        "BN101 missing-moving-mean": "critical",
        "BN102 missing-moving-variance": "critical",
        "BN301 saver-omits-statistics": "critical",
        "BN201 never-updated": "minor",
        "CK105 stale-checkpoint-state": "info",
        "BN205 dead-channels": "info",
        "no-verdict": "blocker",
    }


# Source: docs.github.com, Workflow commands: `::COMMAND name=value,name=value::message`, escaped.
COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\n]+)(?:,file=([^:,\n]+))?::([^\n]+)")


@BOTH
def test_github_has_nothing_but_well_formed_commands_and_the_count(result):
    lines = REPORTS["github"](result, PLAIN).splitlines()
    for line in lines[:-1]:
        found = COMMAND.fullmatch(line)
        assert found, line
        assert not re.search(r"%(?!25|0D|0A|3A|2C)", line)
    assert not lines[-1].startswith("::")


def test_github_annotates_the_worst_first_and_layers_together():
    commands = [COMMAND.fullmatch(line) for line in REPORTS["github"](ALL_LEVELS, PLAIN).splitlines()[:-1]]
    assert [found[1] for found in commands] == ["error"] * 4 + ["warning"] + ["notice"] * 3 + ["warning"] * 2
    assert commands[1][2] == "BN101 missing-moving-mean%3A 53 layers"
    assert commands[1][3] == "models/model.ckpt-7.index"
    assert "`…/moving_mean` is not in the file" in commands[1][4]


def test_no_name_can_give_github_a_command():
    for evil in (EVIL, "::error::x", "\n::error::x", "a ##[error]x"):
        text = REPORTS["github"](AuditResult((), (PathError(evil, evil),)), PLAIN)
        assert [bool(COMMAND.fullmatch(line)) for line in text.splitlines()] == [True, False]
        assert "##[" not in text  # The old form of a command counts anywhere in a line.


def test_a_location_is_a_file_of_the_checkpoint():
    assert file_of(checkpoint(), "") == "models/model.ckpt-7.index"
