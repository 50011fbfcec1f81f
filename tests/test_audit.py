"""What a scan does beside judging: files that change, causes, order, selection."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from ckpt_doctor import audit, verdict
from ckpt_doctor.batchnorm import BatchNormLayer, Inventory
from ckpt_doctor.checkpoint import Damage
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import Finding
from ckpt_doctor.rules import RULES
from ckpt_doctor.rules.interface import Subject
from ckpt_doctor.selection import Selection, rule_of

HEALTHY = Path(__file__).parent.parent / "fixtures" / "tf1_layers" / "full" / "model.ckpt-400"
ALL = Selection.of((), (), {})


@pytest.fixture
def prefix(tmp_path):
    for file in HEALTHY.parent.glob(f"{HEALTHY.name}.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / HEALTHY.name


@pytest.fixture
def openings(monkeypatch):
    """Count how often a checkpoint is opened; `openings.meanwhile` runs after each opening."""

    class Openings:
        count = 0

        def meanwhile(self, number):
            pass

    openings = Openings()
    original = audit.open_checkpoint

    def open_checkpoint(path):
        checkpoint = original(path)
        openings.count += 1
        openings.meanwhile(openings.count)
        return checkpoint

    monkeypatch.setattr(audit, "open_checkpoint", open_checkpoint)
    return openings


def touch(path, number):
    os.utime(path, ns=(number, number))


def test_a_file_at_rest_is_read_once(prefix, openings):
    assert audit.scan(prefix).checkpoints[0].findings == ()
    assert openings.count == 1


def test_a_file_that_changes_while_it_is_read_is_read_once_more(prefix, openings):
    openings.meanwhile = lambda number: touch(f"{prefix}.index", 1) if number == 1 else None
    assert audit.scan(prefix).checkpoints[0].findings == ()
    assert openings.count == 2


def test_a_file_that_changes_all_the_time_is_an_unfinished_save(prefix, openings):
    openings.meanwhile = lambda number: touch(f"{prefix}.index", number)
    (finding,) = audit.scan(prefix).checkpoints[0].findings
    assert (finding.rule, finding.severity) == ("CK106", "warning")
    assert "changed twice while it was read" in finding.message


def test_another_step_of_the_same_run_is_no_change(prefix, openings):
    openings.meanwhile = lambda number: prefix.with_name("model.ckpt-4000.index").write_text(str(number))
    audit.scan(prefix)
    assert openings.count == 1


def finding(rule, name, severity="error", layers=()):
    return Finding(rule, name, severity, "proven", layers[0] if layers else None, layers, (), "…", None, "none")


def judge(monkeypatch, findings, selection=ALL):
    rules = [
        dataclasses.replace(rule, check=lambda rule, _: (one for one in findings if one.rule == rule.code))
        for rule in RULES
    ]
    monkeypatch.setattr(verdict, "RULES", rules)
    return verdict.judge_subject(Subject(Inventory(())), selection)


def test_findings_come_worst_first_and_then_by_code(monkeypatch):
    found = judge(
        monkeypatch,
        [
            finding("CK105", "stale-checkpoint-state", "warning"),
            finding("BN102", "missing-moving-variance", layers=("b",)),
            finding("BN102", "missing-moving-variance", layers=("a",)),
            finding("BN101", "missing-moving-mean", layers=("b",)),
            finding("BN201", "never-updated", "note", layers=("c",)),
        ],
    )
    assert [(one.rule, one.layer) for one in found] == [
        ("BN101", "b"),
        ("BN102", "b"),
        ("BN102", "a"),
        ("CK105", None),
        ("BN201", "c"),
    ]


def test_a_cause_explains_what_concerns_its_layers_only(monkeypatch):
    found = judge(
        monkeypatch,
        [
            finding("BN101", "missing-moving-mean", layers=("a",)),
            finding("BN101", "missing-moving-mean", layers=("b",)),
            finding("BN201", "never-updated", layers=("a",)),
            finding("BN301", "saver-omits-statistics", layers=("a", "c")),
        ],
    )
    assert [(one.rule, one.layers[0], one.cause) for one in found] == [
        ("BN101", "a", "BN301"),
        ("BN101", "b", None),
        ("BN201", "a", None),
        ("BN301", "a", None),
    ]


def test_the_saver_explains_missing_statistics_before_the_updates_do(monkeypatch):
    found = judge(
        monkeypatch,
        [
            finding("BN101", "missing-moving-mean", layers=("a",)),
            finding("BN301", "saver-omits-statistics", layers=("a",)),
            finding("BN302", "updates-not-run", layers=("a",)),
        ],
    )
    assert found[0].cause == "BN301"


def test_what_is_ignored_explains_nothing(monkeypatch):
    findings = [
        finding("BN101", "missing-moving-mean", layers=("a",)),
        finding("BN301", "saver-omits-statistics", layers=("a",)),
    ]
    (found,) = judge(monkeypatch, findings, Selection.of((), ("BN3",), {}))
    assert found.cause is None


def test_damage_that_no_rule_reports_is_a_crash():
    with pytest.raises(AssertionError, match="haunted"):
        verdict.judge_subject(Subject(Inventory(()), (Damage("haunted", "x", "y"),)), ALL)


def test_a_rule_that_raises_is_a_crash(monkeypatch):
    def check(rule, subject):
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(verdict, "RULES", [dataclasses.replace(RULES[0], check=check)])
    with pytest.raises(ZeroDivisionError):
        verdict.judge_subject(Subject(Inventory(())), ALL)


def test_damage_concerns_the_layers_whose_variables_it_touches():
    layers = (BatchNormLayer("a", {"gamma": "a/gamma"}), BatchNormLayer("b", {"gamma": "b/gamma"}))
    damage = Damage("checksum-mismatch", "x", "y", ("b/gamma", "other"))
    (found,) = (one for one in verdict.judge_subject(Subject(Inventory(layers), (damage,)), ALL) if one.rule == "CK103")
    assert found.layers == ("b",)
    assert found.variables == ("b/gamma", "other")


def test_many_places_are_one_finding():
    damages = tuple(Damage("checksum-mismatch", f"byte {number}", "bad", (f"v{number}",)) for number in range(9))
    (found,) = verdict.judge_subject(Subject(Inventory(()), damages), ALL)
    assert found.message.endswith("; and 6 other places")
    assert len(found.variables) == 9


@pytest.mark.parametrize(
    ("select", "ignore", "codes"),
    [
        (["CK101"], [], {"CK101"}),
        (["ck101,truncated"], [], {"CK101", "CK102"}),
        (["CK10"], ["CK101", "CK104,CK105", "unfinished-save"], {"CK102", "CK103", "CK107"}),
        ([" CK101 , "], [], {"CK101"}),
    ],
)
def test_rules_are_meant_by_code_name_or_beginning(select, ignore, codes):
    assert Selection.of(select, ignore, {}).codes == codes


def test_the_more_precise_severity_counts():
    chosen = Selection.of((), (), {"CK101": "note", "CK": "warning", "CK1": "error"})
    assert (chosen.severities["CK101"], chosen.severities["CK102"]) == ("note", "error")


def test_a_typo_is_an_error():
    for select, ignore, severity in ((["CK9"], [], {}), ([], ["nope"], {}), ([], [], {"XX": "note"})):
        with pytest.raises(BadRequest, match="no such rule:"):
            Selection.of(select, ignore, severity)
    with pytest.raises(BadRequest, match="did you mean CK101"):
        rule_of("CK1011")
    assert rule_of("missing-shard") is rule_of("ck101")
