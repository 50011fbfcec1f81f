"""The demo, as a new user runs it first."""

import re
import sys
from pathlib import Path

import pytest

from ckpt_doctor.cli import main


@pytest.fixture
def demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def demo(*argv):
        code = main(["demo", *argv])
        return code, capsys.readouterr().out

    return demo


@pytest.mark.tensorflow
def test_the_demo_scans_fixes_and_proves(demo, tmp_path):
    code, out = demo()
    assert code == 0
    assert re.findall(r"^\$ ckpt-doctor (\w+)|^\((exit code \d)\)", out, re.MULTILINE) == [
        ("scan", ""),
        ("", "exit code 1"),
        ("fix", ""),
        ("", "exit code 0"),
        ("scan", ""),
        ("", "exit code 0"),
    ]
    assert "BN301 saver-omits-statistics: 4 layers" in out
    broken, repaired, healthy = (float(share) for share in re.findall(r"([\d.]+) %", out))
    assert broken < 50 < 95 < healthy
    assert repaired >= healthy - 1
    assert (tmp_path / "ckpt-doctor-demo" / "fixed" / "model.ckpt-400.index").exists()
    quickstart = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text("utf-8")
    shown = re.sub(r"[\d.]+ %", "N %", out[out.index("test accuracy") :])
    assert shown in re.sub(r"[\d.]+ %", "N %", quickstart)


@pytest.mark.tensorflow
def test_a_second_run_replaces_the_first(demo, tmp_path):
    demo("here")
    (tmp_path / "here" / "model.ckpt-400.index").write_bytes(b"spoiled")
    (tmp_path / "here" / "notes.txt").write_text("mine")
    code, _ = demo("here")
    assert code == 0
    assert (tmp_path / "here" / "notes.txt").read_text() == "mine"


def test_without_tensorflow_the_demo_scans_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert re.findall(r"^\$ ckpt-doctor (\w+)|^\((exit code \d)\)", out, re.MULTILINE) == [
        ("scan", ""),
        ("", "exit code 1"),
    ]
    assert "BN301 saver-omits-statistics: 4 layers" in out
    assert err.startswith("ckpt-doctor: the demo stops before the repair: running the model needs TensorFlow")
    assert 'pip install "tensorflow>=2.16" "tf_keras>=2.16"' in err
