"""Imports go one way, and TensorFlow is loaded by nothing but the code that runs a model."""

import ast
import functools
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_doctor
import ckpt_doctor.reports
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.reports import REPORTS

ROOT = Path(ckpt_doctor.__file__).parent
FRAMEWORKS = {"tensorflow", "keras", "tf_keras"}

# What each module or folder of the package may import of the others. An import for types only counts too.
MAY_IMPORT = {
    "errors": {"checkpoint"},  # the type of its damages
    "checkpoint": set(),
    "finding": set(),
    "coverage": set(),
    "progress": set(),
    "observation": set(),
    "options": {"errors", "finding", "progress"},
    "proto": set(),
    "moments": {"errors"},
    "result": {"checkpoint", "coverage", "finding"},
    "repair_result": {"result"},  # the values of channels
    "baseline": {"errors", "finding", "result"},
    "suppression": {"baseline", "errors", "finding", "result", "selection"},
    "formats": {"checkpoint", "coverage", "errors", "proto"},
    "graphs": {"checkpoint", "errors", "proto"},
    "naming": {"checkpoint", "errors"},
    "batchnorm": {"checkpoint", "errors", "graphs", "naming"},
    "heuristics": {"batchnorm", "checkpoint", "finding", "observation"},
    "training_modes": {"batchnorm", "checkpoint", "heuristics"},
    "missing": {"batchnorm", "checkpoint", "graphs"},
    "analysis": {"batchnorm", "checkpoint", "errors", "formats", "graphs", "missing", "training_modes"},
    "rules": {"observation", "batchnorm", "checkpoint", "finding", "graphs", "heuristics"},
    "verdict": {"analysis", "batchnorm", "finding", "formats", "observation", "result", "rules", "selection"},
    "selection": {"errors", "finding", "rules"},
    "audit": {
        "baseline",
        "suppression",
        "analysis",
        "capture",
        "observation",
        "batchnorm",
        "checkpoint",
        "errors",
        "finding",
        "formats",
        "options",
        "progress",
        "result",
        "rules",
        "selection",
        "verdict",
        "workers",
    },
    "workers": {"errors"},
    "listing": {"analysis", "batchnorm", "checkpoint", "errors", "formats"},
    "comparison": {"analysis", "checkpoint", "errors", "formats"},
    # Of rules, their documentation.
    "reports": {
        "checkpoint",
        "comparison",
        "coverage",
        "errors",
        "finding",
        "listing",
        "repair_result",
        "result",
        "rules",
        "ckpt_doctor",
    },
    "capture": {
        "analysis",
        "observation",
        "batchnorm",
        "checkpoint",
        "errors",
        "formats",
        "graphs",
        "moments",
        "options",
        "progress",
        "proto",
    },
    "repair": {
        "observation",
        "analysis",
        "batchnorm",
        "capture",
        "checkpoint",
        "errors",
        "finding",
        "formats",
        "graphs",
        "heuristics",
        "options",
        "progress",
        "repair_result",
        "result",
        "rules",
        "verdict",
    },
    "cli": {
        "analysis",
        "baseline",
        "suppression",
        "formats",
        "audit",
        "capture",
        "ckpt_doctor",
        "comparison",
        "errors",
        "finding",
        "listing",
        "options",
        "progress",
        "repair",
        "repair_result",
        "reports",
        "result",
        "rules",
        "selection",
    },
    "__main__": {"cli"},
    "pytest_plugin": {"cli", "errors", "options", "reports", "result"},
    "keras_callback": {"capture", "cli", "finding", "formats", "options", "reports", "result"},
}


def parts() -> set[str]:
    return {info.name for info in pkgutil.iter_modules([str(ROOT)])}


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports_of(source: str) -> set[str]:
    """Return the parts of the package that a module imports; the package itself is `ckpt_doctor`."""
    found = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "ckpt_doctor":
                part = rest.partition(".")[0]
                found.add(part if part in MAY_IMPORT else "ckpt_doctor")
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_follow_the_arrows(part):
    modules = [path for path in (ROOT / f"{part}.py", *(ROOT / part).rglob("*.py")) if path.exists()]
    assert modules
    for module in modules:
        backwards = imports_of(module.read_text(encoding="utf-8")) - {part} - MAY_IMPORT[part]
        assert not backwards, f"{module.relative_to(ROOT)} must not import {', '.join(sorted(backwards))}"


def test_every_part_of_the_package_has_its_place():
    resources = {"demo", "schemas"}
    assert parts() - resources == MAY_IMPORT.keys() - resources


def test_the_test_of_imports_can_fail():
    assert imports_of("def f():\n    from ckpt_doctor import repair, __version__\n") == {"repair", "ckpt_doctor"}
    assert imports_of("import ckpt_doctor.formats._table as t") == {"formats"}
    assert imports_of("import numpy\nfrom os import path") == set()


def frameworks_in(source: str) -> bool:
    for node in ast.walk(parsed(source)):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if any(name.partition(".")[0] in FRAMEWORKS for name in names):
            return True
    return False


def test_only_capture_names_a_framework():
    naming = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py") if frameworks_in(path.read_text("utf-8"))}
    assert naming <= {"capture"}
    assert frameworks_in("def f():\n    import tensorflow.compat.v1 as tf")


def loaded(code: str) -> set[str]:
    """Return which frameworks a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint('LOADED', *({FRAMEWORKS!r} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


def run(*commands: list[str]) -> str:
    """Return a program that runs command lines one after another: what one of them loads is there at the end."""
    return "\n".join(["from ckpt_doctor.cli import main", *(f"assert main({argv!r}) in (0, 1)" for argv in commands)])


@pytest.fixture(scope="module")
def checkpoints() -> list[str]:
    fixtures = ROOT.parent / "fixtures"
    found = [
        fixtures / "tf1_layers" / "trainable" / "model.ckpt-400",
        *sorted(fixtures.glob("**/*.h5"))[:1],
        *sorted(fixtures.glob("**/*.keras"))[:1],
    ]
    return [str(path) for path in found]


def test_importing_the_package_loads_no_framework_and_not_even_numpy():
    assert loaded("import ckpt_doctor") == set()
    assert loaded("import ckpt_doctor, sys; assert 'numpy' not in sys.modules") == set()
    assert loaded("import ckpt_doctor\nfor name in ckpt_doctor.__all__: getattr(ckpt_doctor, name)") == set()


def test_no_command_that_only_reads_loads_a_framework(checkpoints):
    of_each = [[["scan", one], ["ls", "--stats", one], ["diff", one, one]] for one in checkpoints]
    assert loaded(run(*(argv for commands in of_each for argv in commands), ["explain", "CK101"])) == set()


def test_the_test_of_frameworks_can_fail(tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert loaded("import tensorflow") == {"tensorflow"}


def test_help_and_version_load_neither_numpy_nor_rich():
    check = "import sys; assert not {'numpy', 'rich', 'h5py', 'google.protobuf'} & set(sys.modules)"
    loaded(f"{run(['--help'], ['--version'], ['scan', '--help'], ['fix', '--help'])}\n{check}")


# What only a command that writes needs.
WRITING = {"_atomic", "_bundle_writer", "_hdf5_edit", "_hdf5_weight_names", "_journal", "_lock", "_moves", "recovery"}
WRITING |= {"replacing", "staging"}


def test_a_scan_loads_nothing_slow_that_it_does_not_need(checkpoints):
    """Each of them takes from a twentieth to a fifth of the time that NumPy takes to load."""
    needless = {"numpy.ma", "_hashlib", "random", "tempfile", "concurrent.futures"}
    needless |= {f"ckpt_doctor.formats.{module}" for module in WRITING}
    scans = run(*(["scan", checkpoint] for checkpoint in checkpoints))
    loaded(f"{scans}\nimport sys\nassert not {needless!r} & set(sys.modules)")


def test_every_report_is_registered():
    modules = {info.name for info in pkgutil.iter_modules(ckpt_doctor.reports.__path__)}
    of_other_results = {"listing", "diff", "repair"}
    assert {name for name in modules if not name.startswith("_")} - {"interface"} - of_other_results == set(REPORTS)


def test_every_command_is_registered():
    modules = {path.stem.removesuffix("_command") for path in (ROOT / "cli").glob("*_command.py")}
    assert modules == set(ckpt_doctor_group.commands)


def test_public_names_are_what_they_say():
    from ckpt_doctor import scan

    for name in parts() - {"demo", "schemas", "__main__"}:
        importlib.import_module(f"ckpt_doctor.{name}")
    assert ckpt_doctor.scan is scan
    assert callable(ckpt_doctor.scan)
    assert callable(ckpt_doctor.diff)
    assert callable(ckpt_doctor.fix)
    assert callable(ckpt_doctor.open_checkpoint)


def test_nothing_but_the_command_line_prints_or_exits():
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in ("cli", "proto"):
            continue
        tree = parsed(path.read_text("utf-8"))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"print", "sys.exit", "exit", "quit", "os._exit"}, path


def endless(source: str, *, may_start: bool = False) -> list[int]:
    """Return the lines that start a process which nothing ends: no `timeout`, or `Popen` past `tests/processes.py`."""
    lines = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "subprocess":
            lines.append(node.lineno)  # What it is called from here on is not seen.
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        bounded = any(keyword.arg == "timeout" for keyword in node.keywords)
        if called == "subprocess.Popen":
            lines += [] if may_start else [node.lineno]
        elif called.startswith("subprocess.") or called.endswith((".communicate", ".runpytest_subprocess")):
            lines += [] if bounded else [node.lineno]
        elif called in ("os.system", "os.popen"):
            lines.append(node.lineno)
    return lines


def test_no_process_that_a_test_starts_can_go_on_for_ever():
    tests = Path(__file__).parent
    for path in tests.rglob("*.py"):
        found = endless(path.read_text("utf-8"), may_start=path == tests / "processes.py")
        assert not found, f"{path.relative_to(tests)}: lines {found} start a process without a time limit"
    assert endless("import subprocess\nsubprocess.run(['a'], check=True)\nsubprocess.Popen('a').communicate()") == [
        2,
        3,
        3,
    ]
    assert endless("from subprocess import run\nrun('a')\nprocess.wait(timeout=1)") == [1]
    assert endless("subprocess.run(['a'], timeout=1)\nprocess.communicate(timeout=1)") == []
