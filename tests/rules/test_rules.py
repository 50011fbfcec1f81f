"""Every rule against its own cases, its documentation, and the published list of codes."""

import importlib
import pkgutil

import pytest

import ckpt_doctor.rules
from ckpt_doctor.rules import EXPLAINS, RULES

# Codes are never reused and never change their name: what other programs rely on. Code, name, severity, repair.
PUBLISHED = {
    "BN101": ("missing-moving-mean", "error", "estimate"),
    "BN102": ("missing-moving-variance", "error", "estimate"),
    "BN103": ("shadow-statistics-only", "warning", "copy"),
    "BN104": ("missing-companion", "warning", "copy"),
    "BN105": ("aliases-disagree", "error", "copy"),
    "BN106": ("drifted-name", "warning", "copy"),
    "BN201": ("never-updated", "error", "estimate"),
    "BN202": ("cold-average", "warning", "estimate"),
    "BN203": ("non-finite-statistics", "error", "estimate"),
    "BN204": ("negative-variance", "error", "estimate"),
    "BN205": ("dead-channels", "note", "none"),
    "BN206": ("swapped-roles", "error", "copy"),
    "BN207": ("scaled-statistics", "warning", "none"),
    "BN208": ("half-precision-statistics", "warning", "estimate"),
    "BN209": ("shape-mismatch", "error", "none"),
    "BN210": ("fresh-layer", "warning", "estimate"),
    "BN211": ("stale-statistics", "warning", "estimate"),
    "BN301": ("saver-omits-statistics", "error", "none"),
    "BN302": ("updates-not-run", "error", "none"),
    "BN303": ("training-mode-in-serving", "error", "none"),
    "BN304": ("inference-mode-in-training", "note", "none"),
    "BN305": ("statistics-trained-by-gradient", "warning", "estimate"),
    "BN306": ("batch-statistics-by-design", "note", "none"),
    "BN401": ("statistics-do-not-match-data", "error", "estimate"),
    "BN402": ("too-little-data", "warning", "none"),
    "CK101": ("missing-shard", "error", "none"),
    "CK102": ("truncated", "error", "none"),
    "CK103": ("checksum-mismatch", "error", "none"),
    "CK104": ("not-a-checkpoint", "error", "none"),
    "CK105": ("stale-checkpoint-state", "warning", "none"),
    "CK106": ("unfinished-save", "warning", "none"),
    "CK107": ("missing-variables", "error", "none"),
    "CK201": ("non-finite-weights", "error", "none"),
}

CASES = [
    pytest.param(rule, case, kind, id=f"{rule.code}-{kind}-{case.__name__}")
    for rule in RULES
    for kind in ("healthy", "sick")
    for case in getattr(rule, kind)
]


@pytest.mark.parametrize(("rule", "case", "kind"), CASES)
def test_a_rule_finds_something_in_what_is_sick_and_nothing_in_what_is_healthy(rule, case, kind):
    findings = list(rule.check(rule, case()))
    assert bool(findings) == (kind == "sick")
    for finding in findings:
        assert (finding.rule, finding.name) == (rule.code, rule.name)
        assert finding.message
        assert "\n" not in finding.message
        assert not finding.message.endswith(".")
        assert finding.certainty != "unproven" or finding.severity != "error"
        if finding.layer is not None:
            assert finding.layers == (finding.layer,)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_has_healthy_and_sick_cases(rule):
    assert rule.healthy
    assert rule.sick


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_is_called_what_was_published(rule):
    assert (rule.name, rule.severity, rule.repair) == PUBLISHED[rule.code]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_the_documentation_has_every_part(rule):
    first, *_ = rule.documentation.splitlines()
    assert first.startswith(f"{rule.code}: ")
    assert first.endswith(".")
    parts = ("Usual cause", "False positives", "Repair", "Repair is unsafe when", "Source")
    places = [rule.documentation.find(f"\n\n{part}: ") for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert max(map(len, rule.documentation.splitlines())) <= 120


def test_rules_are_in_the_order_of_their_codes_and_none_is_there_twice():
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))


def test_every_module_of_the_folder_is_registered():
    modules = {info.name for info in pkgutil.iter_modules(ckpt_doctor.rules.__path__)}
    rules = {name for name in modules if not name.startswith("_")} - {"interface"}
    registered = {rule.check.__module__.rpartition(".")[2] for rule in RULES}
    assert registered == rules
    for name in rules:
        assert importlib.import_module(f"ckpt_doctor.rules.{name}").RULE in RULES


def test_a_rule_lives_in_a_file_of_its_name():
    assert {rule.name.replace("-", "_") for rule in RULES} == {
        rule.check.__module__.rpartition(".")[2] for rule in RULES
    }


def test_what_explains_and_is_explained_was_published():
    for code, explained in EXPLAINS:
        assert {code, *explained} <= PUBLISHED.keys()
