"""Completion, asked for as the scripts of the shells ask (click, shell_completion.py)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.rules import RULES

CODES = [rule.code for rule in RULES]
FILES = "file"


def answers(monkeypatch, capsys, shell, line):
    """Return what is completed at the end of a line: values, or `file` where the shell completes files itself."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    if shell == "bash":
        # Bash takes `=` for a word of its own (COMP_WORDBREAKS).
        words = [part for word in words for part in (word.replace("=", "\n=\n").split("\n") if word else [""])]
        words = [word for number, word in enumerate(words) if word or (number == len(words) - 1 and words[-2] != "=")]
    monkeypatch.setenv("_CKPT_DOCTOR_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words) - 1))
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.removesuffix("\n").split("\n") if out.strip() else []
    if shell == "zsh":
        kinds, values = lines[::3], lines[1::3]
    else:
        kinds, values = zip(*(one.split("\t")[0].split(",", 1) for one in lines), strict=True) if lines else ((), ())
    if FILES in kinds:
        assert len(lines) == (3 if shell == "zsh" else 1)
        return FILES
    return [value.replace("\\:", ":") for value in values]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ckpt-doctor scan mod", FILES),
        ("ckpt-doctor scan ", FILES),
        ("ckpt-doctor scan a.h5 mod", FILES),
        ("ckpt-doctor fix mod", FILES),
        ("ckpt-doctor ls mod", FILES),
        ("ckpt-doctor diff a.h5 mod", FILES),
        ("ckpt-doctor demo mod", FILES),
        ("ckpt-doctor scan --output mod", FILES),
        ("ckpt-doctor scan --meta mod", FILES),
        ("ckpt-doctor scan --baseline mod", FILES),
        ("ckpt-doctor fix a.h5 --data mod", FILES),
        ("ckpt-doctor fix a.h5 --model mod", FILES),
        ("ckpt-doctor fix a.h5 --output mod", FILES),
        ("ckpt-doctor fix a.h5 --receipt mod", FILES),
        ("ckpt-doctor scan --report json=mod", FILES),
        ("ckpt-doctor scan --report ju", ["junit="]),
        ("ckpt-doctor scan --select ", CODES),
        ("ckpt-doctor scan --ignore CK10", [code for code in CODES if code.startswith("CK10")]),
        ("ckpt-doctor scan --ignore bn10", [code for code in CODES if code.startswith("BN10")]),
        ("ckpt-doctor explain BN4", ["BN401", "BN402"]),
        ("ckpt-doctor explain neg", ["negative-variance"]),
        ("ckpt-doctor scan --severity BN4", ["BN401=", "BN402="]),
        ("ckpt-doctor scan --fail-on ", ["error", "warning", "note", "never"]),
        ("ckpt-doctor ex", ["explain"]),
        ("ckpt-doctor fix --dry", ["--dry-run"]),
        ("ckpt-doctor scan --batch-size 1", []),
    ],
)
def test_what_is_completed(monkeypatch, capsys, shell, line, expected):
    found = answers(monkeypatch, capsys, shell, line)
    assert found == expected if expected == FILES else sorted(found) == sorted(expected)


@pytest.mark.parametrize(("shell", "before"), [("bash", ""), ("zsh", "BN401="), ("fish", "BN401=")])
def test_a_severity_behind_its_code(monkeypatch, capsys, shell, before):
    """Bash replaces only what is behind the `=`."""
    found = answers(monkeypatch, capsys, shell, "ckpt-doctor scan --severity BN401=")
    assert found == [f"{before}{level}" for level in ("error", "warning", "note")]
    assert answers(monkeypatch, capsys, shell, "ckpt-doctor scan --severity BN401=w") == [f"{before}warning"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_further_codes_behind_a_comma(monkeypatch, capsys, shell):
    """The script for fish splits an answer at commas; there the option is given again."""
    found = answers(monkeypatch, capsys, shell, "ckpt-doctor scan --select BN401,CK201,BN4")
    assert found == ["BN401,CK201,BN402"]


def test_a_mistake_in_a_configuration_does_not_end_the_start_of_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ckpt-doctor.toml").write_text("nonsense = 1\n")
    assert answers(monkeypatch, capsys, "zsh", "ckpt-doctor ex") == ["explain"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself(tmp_path):
    """Run the script that click writes, in a bash that is asked as readline asks it."""
    program = tmp_path / "ckpt-doctor"
    program.write_text(f"#!{sys.executable}\nfrom ckpt_doctor.cli import entry_point\nentry_point()\n")
    program.chmod(0o755)
    script = """
eval "$(_CKPT_DOCTOR_COMPLETE=bash_source ckpt-doctor)"
compopt() { printf "compopt %s %s" "$@"; }
ask() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _ckpt_doctor_completion ckpt-doctor; echo "${COMPREPLY[*]}"
}
ask ckpt-doctor scan mod
ask ckpt-doctor scan --select BN4
ask ckpt-doctor scan --severity BN401 = w
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.stdout.split("\n")[:4] == ["compopt -o default", "BN401 BN402", "warning", ""], done.stderr
