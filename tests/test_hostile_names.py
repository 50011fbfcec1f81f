"""Names that would move the cursor, colour the terminal, or give orders to a runner of CI: written out, everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.reports import REPORTS

# An escape, a line that GitHub Actions obeys, an old Mac's end of a line, C1's own escape, text that runs backwards.
EVIL = "::error::e\x1b[31m\n::error::pwned\r<script>alert(1)</script>|`[x](javascript:y)\u202e\x9b"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
_COMMAND = re.compile(r"^\s*(::|##\[)", re.MULTILINE)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, mean in (("a.h5", np.nan), ("b.h5", 1.0)):
        with h5py.File(name, "w") as file:
            file.attrs["keras_version"] = "2.15.0"
            weights = file.create_group("model_weights")
            weights.attrs["layer_names"] = [EVIL.encode()]
            group = weights.create_group(EVIL)
            roles = {"gamma": 1.0, "beta": 0.0, "moving_mean": mean, "moving_variance": -1.0}
            for role, value in roles.items():
                group.create_dataset(f"{EVIL}/{role}:0", data=np.full(3, value, np.float32))
            group.attrs["weight_names"] = [f"{EVIL}/{role}:0".encode() for role in roles]
            group[f"{EVIL}/link"] = h5py.ExternalLink(f"{EVIL}.h5", "/x")
            if name == "b.h5":
                group.create_dataset(f"{EVIL}/more:0", data=np.zeros(2, np.float32))
    (tmp_path / "e\x1b[31m\n::error::x.h5").write_bytes(b"\x89HDF\r\n\x1a\nxx")
    return tmp_path


def check(text: str, *, commands: bool = False) -> None:
    assert not _CONTROL.search(text)
    assert "\n::error::pwned" not in text
    assert commands or not _COMMAND.search(text)


COMMANDS = (
    "scan a.h5",
    "scan . -v",
    "ls a.h5",
    "ls EVIL",
    "ls e\x1b[31m\n::error::x.h5",
    "diff a.h5 b.h5",
    "diff a.h5 EVIL",
    "fix a.h5 --dry-run",
    "fix EVIL --dry-run",
    "scan EVIL",
    "scan a.h5 --baseline EVIL",
    "scan a.h5 --select EVIL",
    "explain EVIL",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_on_both_streams(hostile: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    main([EVIL.replace("/", "_") if word == "EVIL" else word for word in command.split(" ")])
    captured = capsys.readouterr()
    assert captured.out or captured.err
    check(captured.out)
    check(captured.err)


@pytest.mark.parametrize("form", sorted(REPORTS))
def test_in_every_report(hostile: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    if form == "html":
        pytest.importorskip("jinja2")
    assert main(["scan", "a.h5", "--format", form]) == 1
    text = capsys.readouterr().out
    check(text, commands=form == "github")
    if form in ("html", "markdown"):
        assert "<script>alert" not in text
    if form == "markdown":
        assert not re.search(r"(?<!\\)\]\(javascript", text)
