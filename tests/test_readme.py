"""README and the quickstart are true: their commands run, the picture is real output, both languages agree.

The picture is made by `python docs/make_picture.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.rules import RULES
from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CHINESE = {README: ROOT / "README.zh-CN.md", DOCS / "quickstart.md": DOCS / "quickstart.zh-CN.md"}
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
DEMO = Path(ckpt_doctor.__file__).parent / "demo"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INSTALL_AND_DEMO = 'python3 -m venv .venv && .venv/bin/pip install ".[tensorflow]" && .venv/bin/ckpt-doctor demo'
INSTALL_AND_TEST = 'python3 -m venv .venv && .venv/bin/pip install -e ".[tensorflow,dev]" && .venv/bin/pytest'
# What depends on the machine: how long it took, and rounding in the last bits.
VARYING = [(re.compile(r"\d+\.\d s\b"), "? s"), (re.compile(r"\d\.\de-(0[6-9]|1\d)"), "?.?e-??")]


def steady(output: str) -> str:
    for pattern, mark in VARYING:
        output = pattern.sub(mark, output)
    return output


def commands(document: Path) -> list[list[str]]:
    """Return the command lines of ckpt-doctor in the shell blocks of a document."""
    shell = "".join(text for language, text in BLOCK.findall(document.read_text("utf-8")) if language == "sh")
    return [words for line in shell.splitlines() if (words := shlex.split(line, comments=True))[:1] == ["ckpt-doctor"]]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The folder of a user of README and quickstart, with the checkpoint and the inputs that they name."""
    prefix = tmp_path / "path" / "to" / "model.ckpt-1000"
    prefix.parent.mkdir(parents=True)
    for file in DEMO.glob("model.ckpt-400.*"):
        shutil.copy(file, f"{prefix}{file.name.removeprefix('model.ckpt-400')}")
    with np.load(DEMO / "calibration.npz") as data:
        np.save(tmp_path / "inputs.npy", data["images"][:64])
        np.savez(tmp_path / "DATA.npz", images=data["images"][:64])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.tensorflow
@pytest.mark.parametrize("document", CHINESE, ids=lambda path: path.name)
def test_the_commands_find_and_repair_the_users_checkpoint(document, user, capsys):
    seen = [(words[1], main(words[1:])) for words in commands(document) if words[1] != "demo"]
    assert seen == [("scan", 1), ("fix", 0), ("fix", 0)], capsys.readouterr().err
    assert main(["scan", "path/to/model.ckpt-1000-repaired"]) == 0


def test_the_first_screens_of_readme_scan_and_fix():
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) < 150
    assert "(README.zh-CN.md)" in "".join(lines[:5])
    assert INSTALL_AND_DEMO in lines[:20]
    assert INSTALL_AND_TEST in lines
    first = "\n".join(lines[:60])
    for words in commands(README):
        assert shlex.join(words) in first


@pytest.mark.parametrize("document", CHINESE, ids=lambda path: path.name)
def test_the_chinese_page_has_the_same_commands_and_names(document):
    english, chinese = document.read_text("utf-8"), CHINESE[document].read_text("utf-8")
    assert BLOCK.findall(chinese) == BLOCK.findall(english)

    def names(text: str) -> set[str]:
        prose = BLOCK.sub("", text)
        return set(
            re.findall(r"--[a-z-]+|\b(?:BN|CK)\d{3}\b|`[\w.:/-]+`|docs/[\w.-]+", prose.replace(".zh-CN.md", ".md"))
        )

    assert names(english) == names(chinese)
    for shape in (r"^## ", r"^\|", r"^- ", r"^<img"):
        assert len(re.findall(shape, english, re.M)) == len(re.findall(shape, chinese, re.M)), shape


@pytest.mark.tensorflow
def test_the_picture_shows_what_the_program_prints(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import make_picture

    kept = make_picture.text_of(make_picture.PICTURE.read_text("utf-8"))
    assert "BN301 saver-omits-statistics: 4 layers" in kept
    now = make_picture.text_of(make_picture.picture(make_picture.session()))
    assert steady(kept) == steady(now), "run `python docs/make_picture.py`"


def test_the_comparison_can_fail():
    assert steady("4 layers; 1.5 s, 4.3e-08\n") == steady("4 layers; 12.0 s, 1.1e-07\n") != steady("5 layers\n")
    assert steady("3.0e-03") != steady("3.1e-03")


def test_the_table_is_that_of_the_rules():
    table = re.findall(
        r"^\| \[(\w+)\]\(#\w+\) \| ([\w-]+) \| (\w+) \| (\w+) \|", (DOCS / "rules.md").read_text("utf-8"), re.M
    )
    assert table == [(rule.code, rule.name, rule.severity, rule.repair) for rule in RULES]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_rules_that_are_mentioned_exist(document):
    known = {rule.code for rule in RULES}
    assert set(re.findall(r"\b(?:BN|CK)\d{3}\b", document.read_text("utf-8"))) <= known


def test_the_reports_are_those_there_are():
    for page in (README, CHINESE[README]):
        [line] = [one for one in page.read_text("utf-8").split("\n\n") if one.startswith("`scan --format`")]
        assert re.findall(r"`(\w+)`", line) == list(REPORTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_that_are_mentioned_exist(document):
    known = {"--version", "--help", "--editable", "--check", "--no-deps"}
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


def test_every_room_is_in_the_architecture():
    rooms = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.M)
    named = {name for row in rooms for name in re.findall(r"\w+", row)}
    assert named - {"room"} == MAY_IMPORT.keys() - {"__main__"}


def test_exit_codes_are_those_of_the_commands():
    text = README.read_text("utf-8")
    for word in ("refused or failed", "nothing at or above", "no verdict"):
        assert word in text
