"""The README is true: its commands give what it shows, its table is that of the rules, its options exist.

`python -m tests.test_readme` writes what the commands say today into the README; read the difference before committing.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.rules import RULES
from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = Path(ckpt_doctor.__file__).parent / "demo"
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
# What depends on the machine: how long it took, and rounding in the last bits.
VARYING = [(re.compile(r"\d+\.\d s\b"), "? s"), (re.compile(r"\d\.\de-(0[6-9]|1\d)"), "?.?e-??")]


def sessions(text: str) -> list[tuple[str, str]]:
    """Return every command of the console blocks with the output shown below it."""
    found = []
    for block in CONSOLE.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def said(command: str) -> str:
    """Return what a command writes to stdout and stderr in the current folder."""
    name, *argv = shlex.split(command)
    assert name == "ckpt-doctor"
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        main(argv)
    return heard.getvalue()


def steady(output: str) -> str:
    for pattern, mark in VARYING:
        output = pattern.sub(mark, output)
    return output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What `ckpt-doctor demo` leaves in the current folder, where nothing configures the program."""
    shutil.copytree(DEMO, tmp_path / "ckpt-doctor-demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.tensorflow
def test_commands_say_what_is_shown_and_python_runs(folder, capsys):
    text = README.read_text("utf-8")
    assert len(sessions(text)) >= 4
    for command, shown in sessions(text):
        assert steady(said(command)).rstrip() == steady(shown).rstrip(), command
    programs = PYTHON.findall(text)
    assert programs
    for program in programs:
        exec(compile(program, "README.md", "exec"), {})
    assert "BN301" in capsys.readouterr().out


def test_the_comparison_can_fail():
    assert steady("4 layers; 1.5 s, 4.3e-08\n") == steady("4 layers; 12.0 s, 1.1e-07\n") != steady("5 layers\n")
    assert steady("3.0e-03") != steady("3.1e-03")


def test_the_table_is_that_of_the_rules():
    rows = re.findall(r"^\| ((?:BN|CK)\d+) \| ([\w-]+) \| (\w+)[^|]* \| (\w+)[^|]* \|", README.read_text("utf-8"), re.M)
    assert rows == [(rule.code, rule.name, rule.severity, rule.repair) for rule in RULES]


def test_the_reports_are_those_there_are():
    [line] = [one for one in README.read_text("utf-8").split("\n\n") if one.startswith("`scan --format`:")]
    assert re.findall(r"`(\w+)`", line.partition(". ")[0]) == list(REPORTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_that_are_mentioned_exist(document):
    known = {"--version", "--help", "--editable", "--check"}
    for command in [ckpt_doctor_group, *ckpt_doctor_group.commands.values()]:
        known |= {name for parameter in command.params for name in parameter.opts}
    # docs/reliability.md says how to run them.
    for script in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").glob("*/__main__.py")):
        known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text("utf-8")))
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", document.read_text("utf-8")))
    assert mentioned <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_point_at_is_there(document):
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), target
    for name in re.findall(r"`((?:ckpt_doctor|tests|fixtures|benchmarks|docs)/[\w./-]*|[\w.-]+\.ya?ml)`", text):
        assert (ROOT / name).exists(), name


def test_the_keys_of_the_json_are_in_its_schema():
    schema = (Path(ckpt_doctor.__file__).parent / "schemas" / "scan-1.json").read_text("utf-8")
    [shape] = re.findall(r'`({"schema".*?})`', README.read_text("utf-8"))
    for key in re.findall(r'"\w+"', shape):
        assert f"{key}: {{" in schema, key


def test_every_room_is_in_the_architecture():
    rooms = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.M)
    named = {name for row in rooms for name in re.findall(r"\w+", row)}
    assert named - {"room"} == MAY_IMPORT.keys() - {"__main__"}


def test_exit_codes_are_those_of_the_commands():
    text = README.read_text("utf-8")
    for word in ("refused or failed", "nothing at or above", "no verdict"):
        assert word in text


def update() -> None:
    """Write what the commands say today into the README."""

    def block(found: re.Match[str]) -> str:
        told = [f"$ {command}\n{said(command).rstrip()}\n" for command, _ in sessions(found[0])]
        return "```console\n" + "\n".join(told) + "```"

    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(DEMO, Path(place) / "ckpt-doctor-demo")
        os.chdir(place)
        README.write_text(CONSOLE.sub(block, README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    update()
