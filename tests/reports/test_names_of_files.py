"""Every report survives every name of a file, and stays of its form."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote_to_bytes

import h5py
import jsonschema
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.coverage import Coverage, PassedOver
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult, NotJudged, PathError, SuppressedFinding, UnusedSuppression
from tests.independent import read_file, write_shadowed_bundle
from tests.reports.results import checkpoint, finding

SARIF = json.loads((Path(__file__).parent.parent / "data" / "sarif-2.1.0-rtm.5.json").read_text())
SCAN = json.loads((Path(ckpt_doctor.__file__).parent / "schemas" / "scan-1.json").read_text())
# What a name of a file may hold: every byte but `/` and NUL on Linux, and on Windows any 16-bit unit.
NAMES = {
    "not UTF-8": "caf\udce9 \udcff\udcfe",
    "an unpaired surrogate": "\ud800x",
    "lines": "a\nb\r\nc\x85d\u2028e",
    "control characters": "\x01\x1b[31m\x7f\x9b\u202e\t\x0b",
    "quotes": "'\"`$(x)\\",
    "percent": "100%25 %zz%",
    "a command": "::error file=x::##[group]y",
    "markup": "]]><!-- --><script>&amp;|`[x](y)",
    "parts of a URI": "a:b?c#d;e=f@g+h",
    "spaces": "  two  spaces ",
    "very long": "long" * 1000,
}


def result(name):
    """Return a result with a name wherever one may be."""
    wrong = finding("BN101", "missing-moving-mean", f"{name}/bn", message=f"{name} is missing", variables=(name,))
    row = checkpoint(
        [wrong],
        path=name,
        format="keras-hdf5",
        not_judged=(NotJudged(name, f"{name} is strange"),),
        suppressed=(SuppressedFinding(wrong, "per-path-ignores", name),),
    )
    passed = PassedOver("onnx", "why", True, 1, 0, (name,))
    return AuditResult(
        (row,),
        (PathError(name, f"cannot read {name}"),),
        unused_suppressions=(UnusedSuppression("baseline", name, name, "BN101", name),),
        coverage=Coverage(files=2, judged=1, passed_over=(passed,)),
    )


def strictly(text):
    """Read JSON as those do who take Unicode only."""
    document = json.loads(text)
    json.dumps(document, ensure_ascii=False).encode("utf-8")
    return document


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("form", sorted(REPORTS))
def test_a_report_keeps_its_form(form, name):
    if form == "html":
        pytest.importorskip("jinja2")
    text = REPORTS[form](result(name), Style(root="/work"))
    text.encode("utf-8")
    if form == "json":
        document = json.loads(text)
        jsonschema.Draft202012Validator(SCAN).validate(document)
        assert document["checkpoints"][0]["path"] == document["errors"][0]["path"] == name
    elif form == "sarif":
        log = strictly(text)
        jsonschema.Draft4Validator(SARIF, format_checker=jsonschema.FormatChecker()).validate(log)
        (run,) = log["runs"]
        (uri,) = {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]}
        raw = name.encode("utf-8", "surrogatepass" if "\ud800" in name else "surrogateescape")
        assert unquote_to_bytes(uri) == raw
        assert uri.isascii()
    elif form == "gitlab":
        assert {one["location"]["path"] for one in strictly(text)} == {
            name.encode("utf-8", "backslashreplace").decode()
        }
    elif form == "junit":
        (suite, *_) = ET.fromstring(text).iter("testsuite")
        assert suite.get("name")
    elif form == "github":
        assert sum(line.startswith("::") for line in text.splitlines()) == 4
        assert "##[" not in text
    else:
        assert not {sign for sign in text if not sign.isprintable()} - {"\n"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_files_whose_names_are_not_utf_8(tmp_path, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    names = [os.fsdecode(name) for name in (b"caf\xe9.h5", b"new\nline\xff.h5")]
    for name in names:
        with h5py.File("x.h5", "w") as file:
            file.attrs["layer_names"] = [b"bn"]
            group = file.create_group("bn")
            roles = [f"bn/{role}:0" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
            for role in roles:
                group[role] = np.full(3, -1, np.float32)
            group.attrs["weight_names"] = [role.encode() for role in roles]
        os.rename("x.h5", name)  # noqa: PTH104
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    forms = [form for form in REPORTS if form != "html"]
    reports = [word for form in forms for word in ("--report", f"{form}=report.{form}")]
    assert main(["scan", ".", "--format", "github", *reports]) == 1
    capsysbinary.readouterr()
    for form in forms:
        Path(f"report.{form}").read_text(encoding="utf-8")
    assert r"caf\udce9.h5" in summary.read_text(encoding="utf-8")
    paths = [one["path"] for one in json.loads(Path("report.json").read_bytes())["checkpoints"]]
    assert all(Path(os.fsencode(path).decode("utf-8", "surrogateescape")).is_file() for path in paths)
    assert main(["scan", ".", "--write-baseline", "known.json"]) == 0
    capsysbinary.readouterr()
    assert main(["scan", ".", "--baseline", "known.json", "--format", "json"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["unused_suppressions"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_a_repair_of_a_file_whose_name_is_not_utf_8(tmp_path, monkeypatch, capsysbinary):
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    write_shadowed_bundle(tmp_path / "model")
    name = os.fsdecode(b"caf\xe9\n::error::x")
    for suffix in (".index", ".data-00000-of-00001"):
        os.rename(f"model{suffix}", f"{name}{suffix}")  # noqa: PTH104
    for form in ("text", "json", "html"):
        receipt = f"{name}.{form}.json"
        assert (
            main(["fix", name, "--output", f"out {name}", "--overwrite", "--format", form, "--receipt", receipt]) == 0
        )
        assert json.loads(Path(receipt).read_bytes())["output"] == f"out {name}"
        out = capsysbinary.readouterr().out
        out.decode("utf-8")
        assert not any(line.startswith(b"::") for line in out.splitlines())
    for suffix in (".index", ".data-00000-of-00001"):
        os.rename(f"out {name}{suffix}", f"out{suffix}")  # noqa: PTH104
    assert "bn0/moving_mean" in read_file(tmp_path / "out").values
