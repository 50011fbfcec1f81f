"""The policy of the project where there is no command line: given, else environment, else files, else default."""

import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.cli.policy import Policy
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.keras_callback import check_saves
from ckpt_doctor.options import GateOptions, options_of

PROJECT = """
[tool.ckpt-doctor]
strict = true
quick = true
fail-on = "warning"
select = ["BN1", "CK"]
ignore = "BN205"
baseline = "known.json"
jobs = 3
tolerance = 2.5
samples = 100
model = "m.meta"
format = "sarif"
image-size = "8x8"

[tool.ckpt-doctor.severity]
BN211 = "note"

[tool.ckpt-doctor.per-path-ignores]
"models/gan" = ["BN306", "BN205"]

[tool.ckpt-doctor.input]
x = "images"
"""


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """Give the options of a policy in a folder with a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(PROJECT)

    def policy(**given):
        return Policy.of(given).options

    return policy


def test_what_the_project_says_counts_with_its_types(policy):
    assert policy() == GateOptions(
        strict=True,
        quick=True,
        fail_on="warning",
        select=("BN1", "CK"),
        ignore=("BN205",),
        baseline="known.json",
        jobs=3,
        tolerance=2.5,
        samples=100,
        model="m.meta",
        image_size=(8, 8),
        severity={"BN211": "note"},
        per_path_ignores={"models/gan": ("BN306,BN205",)},
        inputs={"x": "images"},
    )


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("strict", False, False),
        ("quick", False, False),
        ("select", [], ()),
        ("ignore", (), ()),
        ("ignore", ["BN1", "BN2"], ("BN1", "BN2")),
        ("baseline", None, None),
        ("model", None, None),
        ("samples", None, None),
        ("jobs", 1, 1),
        ("tolerance", 1.0, 1.0),
        ("fail_on", "error", "error"),
        ("severity", {}, {}),
        ("severity", {"BN1": "error"}, {"BN1": "error"}),
        ("per_path_ignores", {}, {}),
        ("per_path_ignores", {"a": ["BN1"], "b": "BN2"}, {"a": ("BN1",), "b": ("BN2",)}),
        ("inputs", {}, {}),
        ("input", {"y": "labels"}, {"y": "labels"}),
        ("image_size", (4, 2), (4, 2)),
        ("all", True, True),
    ],
)
def test_what_is_given_counts_before_the_file_and_the_environment(policy, monkeypatch, name, value, kept):
    canonical = {"input": "inputs", "all": "all_listed"}.get(name, name)
    before = vars(policy())
    assert before[canonical] != kept or canonical == "jobs" or name == "all"
    found = vars(policy(**{name: value}))
    assert found[canonical] == kept
    assert {key: one for key, one in found.items() if key != canonical} == {
        key: one for key, one in before.items() if key != canonical
    }
    for variable, text in {"STRICT": "1", "QUICK": "1", "SELECT": "BN3", "JOBS": "2", "FAIL_ON": "note"}.items():
        monkeypatch.setenv(f"CKPT_DOCTOR_{variable}", text)
    assert vars(policy(**{name: value}))[canonical] == kept


def test_the_environment_counts_before_the_file(policy, monkeypatch):
    monkeypatch.setenv("CKPT_DOCTOR_FAIL_ON", "note")
    monkeypatch.setenv("CKPT_DOCTOR_STRICT", "0")
    monkeypatch.setenv("CKPT_DOCTOR_TOLERANCE", "7")
    options = policy()
    assert (options.fail_on, options.strict, options.tolerance) == ("note", False, 7.0)


def test_without_a_project_the_defaults_are_those_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = Policy.of({}).options
    assert options.jobs >= 1
    assert all(
        getattr(options, option.name) == option.default for option in options_of(GateOptions) if option.name != "jobs"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fail_onn": "note"}, "no such option: 'fail_onn'; did you mean fail_on?"),
        ({"per_path_ignore": {}}, "no such option: 'per_path_ignore'; did you mean per_path_ignores?"),
        ({"output": "x"}, "no such option: 'output'"),
        ({"fail_on": "eror"}, "--fail-on eror: must be one of error, warning, note, never; did you mean error?"),
        ({"fail_on": None}, "--fail-on None: must be one of error, warning, note, never"),
        ({"strict": "no"}, "--strict no: must be true or false"),
        ({"strict": 0}, "--strict 0: must be true or false"),
        ({"ignore": ["BN9"]}, "no such rule: 'BN9'; did you mean BN209?"),
        ({"severity": {"BN9": "note"}}, "no such rule: 'BN9'; did you mean BN209?"),
        ({"per_path_ignores": {"a": "BN9"}}, "per-path-ignores of a: no such rule: 'BN9'"),
        ({"ignore": 5}, "--ignore 5: must be texts or paths"),
        (
            {"severity": {"BN101": "eror"}},
            "severity of BN101: 'eror' is not one of error, warning, note; did you mean error?",
        ),
        ({"jobs": 0}, "--jobs 0: must be a whole number of 1 or more"),
        ({"tolerance": float("nan")}, "--tolerance nan: must be a finite number above 0"),
        ({"all": True, "all_listed": True}, "all_listed was given twice, once as all"),
    ],
)
def test_what_is_wrong_is_said_at_once(policy, given, message):
    for make in (Policy.of, lambda options: check_saves("saves", **options)):
        with pytest.raises(BadRequest) as refused:
            make(given)
        assert str(refused.value).startswith(message)


def test_what_is_wrong_in_the_file_or_the_environment_is_said_too(policy, monkeypatch, tmp_path):
    monkeypatch.setenv("CKPT_DOCTOR_JOBS", "many")
    with pytest.raises(BadRequest, match="'many' is not a valid integer range"):
        policy()
    monkeypatch.delenv("CKPT_DOCTOR_JOBS")
    (tmp_path / "pyproject.toml").write_text("[tool.ckpt-doctor]\nfail-onn = 'note'")
    with pytest.raises(BadRequest, match=r"no such option: 'fail-onn'; did you mean fail-on\?"):
        policy()
    (tmp_path / "pyproject.toml").write_text("[tool.ckpt-doctor]\ntolerance = nan")
    with pytest.raises(BadRequest, match="--tolerance nan: must be a finite number above 0"):
        policy()


def test_the_verdict_is_that_of_the_command_line(zoo, monkeypatch, tmp_path):
    (tmp_path / ".ckpt-doctor.toml").write_text('strict = true\nquick = true\nseverity = {BN = "note"}\n')
    for given, argv in (
        ({}, []),
        ({"fail_on": "note"}, ["--fail-on", "note"]),
        ({"select": ["CK"]}, ["--select", "CK"]),
    ):
        assert Policy.of(given).judge(["zoo"])[1] == main(["scan", "zoo", *argv]), given
