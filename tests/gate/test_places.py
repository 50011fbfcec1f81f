"""The places the gate runs in: the GitHub action, the pre-commit hook, the GitLab template."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gate.conftest import FIXTURES, build_zoo, copy_bundle

yaml = pytest.importorskip("yaml")

ROOT = FIXTURES.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
SICK = ["zoo/model04/model.h5", "zoo/model17/model.ckpt-400", "zoo/model25/model.ckpt-400"]


def schema(name, file):
    """Hold a file against the schema that check-jsonschema ships."""
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_action_and_the_template_are_what_their_schemas_say():
    for name, file in (
        ("vendor.github-actions", ROOT / "action.yml"),
        ("vendor.gitlab-ci", ROOT / "docs" / "gitlab-ci.yml"),
        ("vendor.github-workflows", ROOT / "docs" / "github-workflow.yml"),
    ):
        done = schema(name, file)
        assert done.returncode == 0, done.stdout + done.stderr


def place(folder: Path) -> Path:
    """Make what the step before has installed: a Python and the program."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program = f"#!{sys.executable}\nfrom ckpt_doctor.cli import entry_point\nentry_point()\n"
    (folder / "bin" / "ckpt-doctor").write_text(program)
    for name in ("python", "ckpt-doctor"):
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def step(tmp_path):
    """Run the scan step of the action as GitHub runs it; return its code, log, outputs and summary."""
    steps = {step.get("id", step.get("name")): step for step in ACTION["runs"]["steps"]}
    home = place(tmp_path / "runner" / "ckpt-doctor")

    def run(**inputs):
        given = {name.replace("-", "_"): one.get("default", "") for name, one in ACTION["inputs"].items()} | inputs
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "GITHUB_OUTPUT": str(tmp_path / "runner" / "output"),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "runner" / "summary"),
        }
        for name, text in steps["scan"]["env"].items():
            found = re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", text)
            environment[name] = given[found[1].replace("-", "_")] if found else str(home)
        (tmp_path / "runner" / "output").write_text("")
        (tmp_path / "runner" / "summary").write_text("")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", steps["scan"]["run"]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        outputs = dict(line.split("=", 1) for line in (tmp_path / "runner" / "output").read_text().splitlines())
        return done, outputs, (tmp_path / "runner" / "summary").read_text()

    return run


def failing(outputs):
    return [one["path"] for one in json.loads(Path(outputs["json"]).read_text())["checkpoints"] if one["findings"]]


def test_the_action_fails_for_the_sick_passes_with_a_baseline_and_fails_for_a_fourth(step, zoo, tmp_path):
    done, outputs, summary = step(paths="zoo")
    assert (done.returncode, outputs["exit-code"]) == (1, "1"), done.stderr
    assert sorted(failing(outputs)) == SICK
    assert set(re.findall(r"^::error [^\n]*file=([^:,]+)", done.stdout, re.MULTILINE)) == {
        "zoo/model04/model.h5",
        "zoo/model17/model.ckpt-400.index",
        "zoo/model25/model.ckpt-400.index",
    }
    assert summary.startswith("## ckpt-doctor\n")
    sarif = json.loads(Path(outputs["sarif"]).read_text())
    assert {
        one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in sarif["runs"][0]["results"]
    } == {
        "zoo/model04/model.h5",
        "zoo/model17/model.ckpt-400.index",
        "zoo/model25/model.ckpt-400.index",
    }
    assert step(paths="zoo", args="--write-baseline known.json")[0].returncode == 0
    done, outputs, _ = step(paths="zoo", args="--baseline known.json")
    assert (done.returncode, failing(outputs)) == (0, [])
    copy_bundle(True, zoo / "model30")
    done, outputs, _ = step(paths="zoo", args="--baseline known.json")
    assert (done.returncode, failing(outputs)) == (1, ["zoo/model30/model.ckpt-400"])


def test_the_inputs_of_the_action_are_no_commands(step, tmp_path):
    build_zoo(tmp_path / "a zoo", (0,))
    done, _, _ = step(paths="'a zoo'\n\"a zoo/model00\"", html="report $(touch pwned).html", strict="true")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report $(touch pwned).html").exists()
    done, outputs, _ = step(paths="$(touch pwned) ; touch pwned", args="--ignore BN205 `touch pwned`")
    assert (done.returncode, outputs["exit-code"]) == (2, "2")
    assert not (tmp_path / "pwned").exists()
    assert step(paths="--output=x")[0].returncode == 2


@pytest.mark.parametrize("name", ["args", "paths"])
def test_a_mistake_in_the_quotes_of_an_input_is_no_verdict(step, tmp_path, name):
    build_zoo(tmp_path / "zoo", (4,))
    assert step(paths="zoo", args="--ignore 'BN205'")[0].returncode == 1
    done, outputs, _ = step(**({"paths": "zoo"} | {name: "zoo --ignore 'BN205"}))
    assert (done.returncode, outputs) == (2, {"exit-code": "2"})
    assert f"::error title=ckpt-doctor::input {name}: No closing quotation; nothing was scanned" in done.stdout


def test_a_second_use_in_a_job_does_not_name_the_report_of_the_first(step, tmp_path):
    build_zoo(tmp_path / "zoo", (0, 4))
    _, first, _ = step(paths="zoo/model00")
    _, second, _ = step(paths="zoo/model04")
    assert (failing(first), failing(second)) == ([], ["zoo/model04/model.h5"])
    _, third, _ = step(paths="zoo", args="--no-such-option")
    assert third == {"exit-code": "2"}


def test_the_scan_imports_nothing_of_the_checkout(step, tmp_path):
    build_zoo(tmp_path / "zoo", (0,))
    (tmp_path / "shlex.py").write_text("raise SystemExit(0)")
    done, outputs, _ = step(paths="zoo")
    assert (done.returncode, failing(outputs)) == (0, [])


def test_the_action_finds_its_programs_where_windows_has_them(step, tmp_path):
    build_zoo(tmp_path / "zoo", (4,))
    (tmp_path / "runner" / "ckpt-doctor" / "bin").rename(tmp_path / "runner" / "ckpt-doctor" / "Scripts")
    done, outputs, _ = step(paths="zoo")
    assert (done.returncode, failing(outputs)) == (1, ["zoo/model04/model.h5"])


def test_a_program_that_is_not_there_or_is_killed_is_no_verdict(step, tmp_path):
    build_zoo(tmp_path / "zoo", (0,))
    program = tmp_path / "runner" / "ckpt-doctor" / "bin" / "ckpt-doctor"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    done, outputs, _ = step(paths="zoo")
    assert (done.returncode, outputs) == (2, {"exit-code": "2"})
    program.unlink()
    done, outputs, _ = step(paths="zoo")
    assert (done.returncode, outputs) == (2, {"exit-code": "2"})


def test_every_action_that_is_used_is_pinned():
    for file in (ROOT / "action.yml", ROOT / "docs" / "github-workflow.yml"):
        for line in re.findall(r"uses: (.+)", file.read_text()):
            if line != "./tools/ckpt-doctor":
                assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_the_action_passes_every_input_on():
    text = (ROOT / "action.yml").read_text()
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in text
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


HOOK = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("a/model.ckpt-1.index", True),
        ("a/model.ckpt-1.data-00000-of-00002", True),
        ("a/model.ckpt-1.meta", True),
        ("model.h5", True),
        ("model.weights.h5", True),
        ("model.weights.json", True),
        ("model.keras", True),
        ("export/saved_model.pb", True),
        ("notes.txt", False),
        ("package.json", False),
        ("my_saved_model.pb", False),
        ("keras.py", False),
    ],
)
def test_the_hook_takes_the_files_of_checkpoints(name, matches):
    assert bool(re.search(HOOK["files"], name)) is matches


def test_the_hook_judges_the_files_of_one_checkpoint_once(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    prefix = copy_bundle(True, tmp_path / "m")
    command, *options = HOOK["entry"].split()
    assert command == "ckpt-doctor"
    code, out, _ = run(*options, *sorted(path.relative_to(tmp_path) for path in prefix.parent.iterdir()))
    assert code == 1
    assert out.endswith("1 checkpoint, 4 batch-norm layers: 9 errors\n")


def test_the_gitlab_template_runs_what_there_is(tmp_path, monkeypatch, run):
    job = yaml.safe_load((ROOT / "docs" / "gitlab-ci.yml").read_text())["ckpt-doctor"]
    (line,) = [line for line in job["script"] if line.startswith("ckpt-doctor")]
    monkeypatch.chdir(tmp_path)
    build_zoo(tmp_path / "models", (0, 4))
    code, _, err = run(*line.replace("$CHECKPOINTS", "models").split()[1:])
    assert (code, err) == (1, "")
    reports = job["artifacts"]["reports"]
    assert json.loads((tmp_path / reports["codequality"]).read_text())
    assert (tmp_path / reports["junit"]).exists()
    assert all((tmp_path / path).exists() for path in job["artifacts"]["paths"])
