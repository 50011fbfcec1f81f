"""What is said about installing works: there is no release, so nothing names one, and messages name real packages."""

import re
import sys
from pathlib import Path

import pytest

from ckpt_doctor import __version__
from ckpt_doctor.capture.runtime import INSTALL
from ckpt_doctor.cli import main

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TEXTS = [
    *(path for pattern in ("*.md", "*.yml", "*.yaml", ".*.yaml", ".ci/*") for path in ROOT.glob(pattern)),
    *(path for pattern in ("*.md", "*.yml", "*.py") for path in (ROOT / "docs").glob(pattern)),
    *(ROOT / "benchmarks").glob("*.md"),
    *(ROOT / "fixtures").glob("*.md"),
    *(path for path in (ROOT / "ckpt_doctor").rglob("*") if path.suffix in (".py", ".html", ".json")),
]
# The package by its name; `./tools/ckpt-doctor` and `dist/ckpt_doctor-0.1.0-….whl` are paths.
BY_NAME = re.compile(
    r"""pip3? install\b[^\n`]*[\s"']ckpt[-_]doctor(?![\w.-])|(?<![\w./-])ckpt[-_]doctor(?:\[\w|[=<>~]=)"""
)


@pytest.mark.parametrize(
    "text",
    [
        "pip install ckpt-doctor",
        'pip install --quiet "ckpt-doctor[html]"',
        "pip install -U 'ckpt_doctor'",
        'what="ckpt-doctor[html]==$VERSION"',
        "additional_dependencies: [ckpt-doctor==0.1.0]",
    ],
)
def test_the_name_of_the_package_is_found(text):
    assert BY_NAME.search(text)


def test_nothing_installs_a_release():
    for fine in (
        "pip install .",
        'pip install "./tools/ckpt-doctor[html]"',
        "pip install dist/ckpt_doctor-0.1.0-a.whl",
    ):
        assert not BY_NAME.search(fine)
    assert len(TEXTS) > 200
    named = {
        str(path.relative_to(ROOT)): found[0] for path in TEXTS if (found := BY_NAME.search(path.read_text("utf-8")))
    }
    assert named == {}


def test_messages_name_the_requirements_of_the_extras():
    extras = PROJECT["optional-dependencies"]
    assert re.findall(r'"([^"]+)"', INSTALL) == extras["tensorflow"]
    html = (ROOT / "ckpt_doctor" / "reports" / "html.py").read_text("utf-8")
    assert re.findall(r'pip install "([^"]+)"', html) == extras["html"]


def test_the_wheel_that_is_named_has_the_version_of_this_package():
    for path in TEXTS:
        for version in re.findall(r"ckpt_doctor-([\d.]+)-py3", path.read_text("utf-8")):
            assert version == __version__, path


@pytest.fixture
def without_tensorflow(tmp_path, monkeypatch):
    """Python as if neither TensorFlow nor Keras were installed, in an empty folder."""
    for name in ("tensorflow", "keras", "tf_keras"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)


FIXTURES = ROOT / "fixtures"
BROKEN = str(FIXTURES / "keras_v3" / "broken.keras")
DEMO = ROOT / "ckpt_doctor" / "demo"


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        (1, ["scan", BROKEN]),
        (1, ["scan", BROKEN, "--model", BROKEN]),
        (0, ["ls", BROKEN, "--stats"]),
        (1, ["diff", BROKEN, str(FIXTURES / "keras_v3" / "healthy.keras")]),
        (0, ["explain", "BN201"]),
        (0, ["fix", str(FIXTURES / "zoo" / "tf1" / "drifted"), "--output", "copied"]),
        (0, ["fix", str(FIXTURES / "zoo" / "tf1" / "cold"), "--output", "debiased"]),
        (0, ["fix", str(FIXTURES / "training_modes" / "trainable_stored"), "--output", "initial"]),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else "",
)
def test_without_tensorflow_everything_works_that_runs_no_model(without_tensorflow, code, argv, capsys):
    assert main(argv) == code, capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["fix", str(DEMO / "model.ckpt-400"), "--data", str(DEMO / "calibration.npz"), "--output", "estimated"],
        ["scan", str(DEMO / "healthy" / "model.ckpt-400"), "--data", str(DEMO / "calibration.npz")],
        ["scan", BROKEN, "--model", "model.py:build"],
    ],
    ids=["fix --data", "scan --data", "scan --model"],
)
def test_without_tensorflow_the_rest_says_what_to_install(without_tensorflow, argv, capsys):
    Path("model.py").write_text("def build():\n    raise AssertionError('not to be run')\n")
    assert main(argv) == 2
    assert INSTALL in capsys.readouterr().err
