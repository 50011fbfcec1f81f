"""Options from files and from the environment; the command line overrides both."""

import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.cli.options import environment_variable


@pytest.fixture
def explain_configured(tmp_path, monkeypatch, capsys):
    """Write a configuration, run the cheapest command under it, return code and message."""
    monkeypatch.chdir(tmp_path)

    def run(text, name=".ckpt-doctor.toml", argv=("explain", "CK101")):
        (tmp_path / name).write_text(text)
        return main(list(argv)), capsys.readouterr().err

    return run


@pytest.fixture
def heard(monkeypatch):
    """What `scan` is called with."""
    calls = []

    def listen(paths, **options):
        from ckpt_doctor.result import AuditResult

        calls.append(options)
        return AuditResult(())

    monkeypatch.setattr("ckpt_doctor.audit.scan", listen)
    return calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fail_onn = 'note'", "no such option: 'fail_onn'; did you mean fail-on?"),
        ("[diff]\ndata = 'x'", "no such option: 'data'"),
        ("scan = 3", "scan is a command and needs a table, [scan]"),
        ("quick = 'yes'", "quick must be true or false, not 'yes'"),
        ("jobs = true", "jobs must be a value, not True"),
        ("jobs = [1]", "jobs takes one value, not a list"),
        ("jobs = ", "no TOML: "),
    ],
)
def test_what_means_nothing_is_an_error(explain_configured, text, message):
    code, err = explain_configured(text)
    assert code == 2
    assert ".ckpt-doctor.toml: " in err
    assert message in err


def test_keys_hold_for_every_command_that_has_the_option_and_a_table_for_one(explain_configured, heard):
    general = "select = ['CK', 'BN1']\nseverity = {CK101 = 'note'}\njobs = 3\nquick = true\n"
    explain_configured(f"{general}[scan]\njobs = 5\n[diff]\ntolerance = 0.5", argv=("scan", "x"))
    (options,) = heard
    assert list(options["select"]) == ["CK", "BN1"]
    assert options["severity"] == {"CK101": "note"}
    assert (options["jobs"], options["quick"]) == (5, True)


def test_the_command_line_wins_over_the_environment_over_the_file(explain_configured, heard, monkeypatch):
    monkeypatch.setenv("CKPT_DOCTOR_JOBS", "4")
    explain_configured("jobs = 3", argv=("scan", "x"))
    explain_configured("jobs = 3", argv=("scan", "x", "--jobs", "2"))
    monkeypatch.delenv("CKPT_DOCTOR_JOBS")
    explain_configured("jobs = 3", argv=("scan", "x"))
    assert [options["jobs"] for options in heard] == [4, 2, 3]


def test_the_environment_reaches_every_option(monkeypatch):
    for command in ckpt_doctor_group.commands.values():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_eager:
                assert option.envvar == environment_variable(option)
    names = {option.envvar for option in ckpt_doctor_group.commands["scan"].params}
    assert {"CKPT_DOCTOR_FAIL_ON", "CKPT_DOCTOR_FORMAT", "CKPT_DOCTOR_ALL"} <= names


def test_a_bad_value_in_the_environment_is_bad_usage(heard, monkeypatch, capsys):
    monkeypatch.setenv("CKPT_DOCTOR_FAIL_ON", "loud")
    assert main(["scan", "x"]) == 2
    assert "is not one of" in capsys.readouterr().err


def test_pyproject_counts_where_it_has_the_table(explain_configured, heard, tmp_path):
    explain_configured("[tool.other]\n", name="pyproject.toml", argv=("scan", "x"))
    explain_configured("[tool.ckpt-doctor]\njobs = 7\n", name="pyproject.toml", argv=("scan", "x"))
    explain_configured("jobs = 6\n", argv=("scan", "x"))
    assert heard[1]["jobs"] == 7
    assert heard[2]["jobs"] == 6


def test_the_file_of_a_parent_folder_counts(heard, tmp_path, monkeypatch):
    (tmp_path / ".ckpt-doctor.toml").write_text("jobs = 9")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    main(["scan", "x"])
    assert heard[0]["jobs"] == 9


def test_another_tools_mistake_is_none_of_ours(explain_configured):
    assert explain_configured("[tool.other\n", name="pyproject.toml")[0] == 0
