"""Every report of results that hold everything a result can hold: schemas, golden text, and what must never happen."""

import dataclasses
import json
import subprocess
from importlib import resources

import jsonschema
import pytest

from ckpt_doctor.comparison import Difference, DiffResult
from ckpt_doctor.listing import ListedVariable, Listing, ValueStatistics
from ckpt_doctor.repair_result import (
    FileHash,
    LeftLayer,
    Metric,
    RepairedLayer,
    RepairResult,
    Spread,
    Statistics,
)
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports import diff as diff_text
from ckpt_doctor.reports import json as documents
from ckpt_doctor.reports import listing as listing_text
from ckpt_doctor.reports import repair as repair_text
from ckpt_doctor.reports._page import names, size
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.reports.text import total
from ckpt_doctor.result import AuditResult, PathError
from tests.reports.results import BROKEN, EVERYTHING, LAYERS, checkpoint, finding

PLAIN = Style()


def validate(document: str, kind: str) -> dict:
    schema = json.loads((resources.files("ckpt_doctor") / "schemas" / f"{kind}-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    value = json.loads(document)
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


def test_the_document_of_a_scan_is_what_its_schema_says():
    document = validate(REPORTS["json"](EVERYTHING, PLAIN), "scan")
    assert document["summary"] == {
        "checkpoints": 3,
        "batch_norm_layers": 3,
        "error": 107,
        "warning": 1,
        "note": 1,
        "suppressed": 0,
        "not_judged": 1,
    }
    assert document["errors"] == [{"path": "gone", "message": "is not there"}]
    assert document["checkpoints"][0]["findings"][0] == dataclasses.asdict(BROKEN.findings[0]) | {
        "layers": [LAYERS[0]],
        "variables": [f"{LAYERS[0]}/moving_mean"],
    }


def test_the_schema_refuses_what_was_never_promised():
    document = json.loads(REPORTS["json"](EVERYTHING, PLAIN))
    document["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        validate(json.dumps(document), "scan")


def test_53_broken_layers_are_one_paragraph():
    report = REPORTS["text"](AuditResult((BROKEN,)), PLAIN)
    assert (
        report
        == """\
models/model.ckpt-7
    tensor-bundle, TensorFlow 1.15.5, 51 variables, 1.0 MB, 1 batch-norm layer

  error  BN101 missing-moving-mean, BN102 missing-moving-variance: 53 layers
    `…/moving_mean` is not in the file
    `…/moving_variance` is not in the file
    layers: in net/: block0/bn, block1/bn, block2/bn, block3/bn and 49 more
    cause: BN301, below

  error  BN301 saver-omits-statistics: 53 layers
    the saver's list leaves out all 106 statistics
    layers: same as above

  what to do
    ckpt-doctor fix models/model.ckpt-7 \\
        --data DATA.npz \\
        --output models/model.ckpt-7-repaired
    DATA.npz: training-like inputs, saved with numpy.savez; no labels needed

1 checkpoint, 1 batch-norm layer: 107 errors
"""
    )


def test_a_cause_that_is_not_reported_is_not_said_to_stand_below():
    alone = checkpoint([one for one in BROKEN.findings if one.rule != "BN301"])
    for name in ("text", "markdown"):
        report = REPORTS[name](AuditResult((alone,)), PLAIN)
        assert "cause: BN301, which is not reported here" in report
        assert "below" not in report


def test_in_detail_every_layer_is_named():
    report = REPORTS["text"](AuditResult((BROKEN,)), Style(detail="more"))
    assert "more" not in report
    assert all(f"block{number}/bn" in report for number in range(53))


def test_what_was_not_judged_or_passed_over_or_gave_no_verdict_is_said():
    report = REPORTS["text"](EVERYTHING, PLAIN)
    assert "x: could be two things" in report
    assert "4 older checkpoints passed over; --all scans them too" in report
    assert "1 place not judged; 1 path could not be checked" in " ".join(report.split())
    assert "warning (unproven)  BN201" in report
    assert "ok  healthy" in report


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ([checkpoint()], "1 path could not be checked; no findings elsewhere"),
        ([], "1 path could not be checked"),
        ([BROKEN], "107 errors; 1 path could not be checked"),
    ],
)
def test_a_path_that_could_not_be_checked_is_counted(checkpoints, words):
    result = AuditResult(tuple(checkpoints), (PathError("gone", "is not there"),))
    assert total(result).partition(": ")[2] == words


def test_the_next_step_can_be_pasted_into_a_shell():
    report = REPORTS["text"](EVERYTHING, PLAIN)
    assert "ckpt-doctor fix 'odd name.h5' \\\n        --data DATA.npz \\\n        --unproven \\\n" in report
    assert "--output 'odd name-repaired.h5'" in report


def test_without_a_model_the_next_step_asks_for_one():
    report = REPORTS["text"](AuditResult((checkpoint(BROKEN.findings, evidence=("names",)),)), PLAIN)
    assert "--model MODEL \\\n" in report


def test_a_damaged_container_is_not_sent_to_a_repair_that_would_refuse_it():
    damage = finding("CK102", "truncated", repair="none")
    report = REPORTS["text"](AuditResult((checkpoint([*BROKEN.findings, damage]),)), PLAIN)
    assert "what to do" not in report


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_but_a_command_is_wider_than_the_terminal(width):
    for line in REPORTS["text"](EVERYTHING, Style(width=width)).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


def test_colour_adds_nothing_but_colour():
    from rich.text import Text

    colored = REPORTS["text"](EVERYTHING, Style(color=True))
    assert "\x1b[" in colored
    assert Text.from_ansi(colored).plain.rstrip() == REPORTS["text"](EVERYTHING, PLAIN).rstrip()


def test_a_name_cannot_speak_to_the_terminal():
    evil = checkpoint([finding("BN101", "missing-moving-mean", "a\x1b[2Jb\n", message="a\x1b[2Jb [red]x[/]\n")])
    report = REPORTS["text"](AuditResult((evil,)), Style(color=True))
    assert "\x1b[2J" not in report
    assert "a\\x1b[2Jb\\n" in report
    assert "[red]x[/]" in report


def test_the_next_step_for_a_path_of_any_bytes_is_one_for_a_shell(tmp_path):
    path = "a'b\x1b\n\\c $d"
    report = REPORTS["text"](AuditResult((checkpoint(BROKEN.findings, path=path),)), PLAIN)
    command = next(line for line in report.splitlines() if "ckpt-doctor fix" in line).strip().removesuffix(" \\")
    said = subprocess.run(
        ["bash", "-c", command.replace("ckpt-doctor fix", "printf %s")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert said.stdout == path
    assert "\x1b" not in report


def test_quiet_says_nothing_of_the_healthy():
    report = REPORTS["text"](EVERYTHING, Style(detail="less"))
    assert "healthy" not in report
    assert "odd name.h5" in report


def test_nothing_scanned_is_an_empty_report_for_people_and_a_document_for_programs():
    nothing = AuditResult((), (PathError("gone", "is not there"),))
    assert REPORTS["text"](nothing, PLAIN) == ""
    assert validate(REPORTS["json"](nothing, PLAIN), "scan")["checkpoints"] == []


LISTING = Listing(
    "model.ckpt",
    "tensor-bundle",
    (
        ListedVariable("w", (3, 4), "float32", 48, "weight", ValueStatistics(-1.0, 2.0, 0.5, 0.25, 1, 2)),
        ListedVariable("step", (), "int64", 8, "counter", ValueStatistics(7.0, 7.0, 7.0, 0.0, 0, 0)),
        ListedVariable("names", (2,), "string", 9, "other"),
        ListedVariable("lost", (2,), "float32", 8, "weight", None, "ends at byte 3"),
        ListedVariable("nan", (1,), "float32", 4, "weight", ValueStatistics(None, None, None, float("nan"), 1, 0)),
    ),
    stats=True,
    bytes=1024,
    stored=5,
)


def test_the_document_of_a_listing_is_what_its_schema_says():
    document = validate(documents.render_listing(LISTING), "ls")
    assert document["variables"][0] == {
        "name": "w",
        "shape": [3, 4],
        "dtype": "float32",
        "bytes": 48,
        "role": "weight",
        "min": -1.0,
        "max": 2.0,
        "mean": 0.5,
        "std": 0.25,
        "nonfinite": 1,
        "zeros": 2,
        "unreadable": None,
    }
    assert document["variables"][4]["std"] is None
    plain = validate(documents.render_listing(dataclasses.replace(LISTING, stats=False)), "ls")
    assert set(plain["variables"][0]) == {"name", "shape", "dtype", "bytes", "role"}


def test_a_listing_is_a_line_for_each_variable_with_the_name_last():
    lines = listing_text.render(LISTING, PLAIN).splitlines()
    assert lines[0].split()[-1] == "name"
    assert lines[1].split() == ["float32", "3x4", "48", "weight", "-1", "2", "0.5", "0.25", "1", "2", "w"]
    assert lines[4].endswith("lost  (unreadable: ends at byte 3)")
    assert lines[-1] == "model.ckpt: tensor-bundle, 5 variables, 1.0 kB"
    some = listing_text.render(dataclasses.replace(LISTING, stored=6), PLAIN).splitlines()
    assert some[-1] == "model.ckpt: tensor-bundle, 5 of 6 variables (77 B), 1.0 kB"


DIFFERENT = DiffResult(
    "a",
    "b",
    0.0,
    7,
    (
        Difference("gone", None, "missing", before="float32 [3]"),
        Difference("w", "w2", "values", largest=0.5, differing=3, size=12),
        Difference("s", None, "shape", before="[3]", after="[4]"),
        Difference("nan", None, "values", largest=None, differing=1, size=2),
        Difference("new", None, "added", after="int32 []"),
    ),
)


def test_a_comparison_is_what_its_schema_says_and_can_be_read():
    assert validate(documents.render_diff(DIFFERENT), "diff")["equal"] is False
    text = diff_text.render(DIFFERENT, PLAIN)
    assert "w (there w2): 3 of 12 values, largest difference 0.5" in text
    assert "nan: 1 of 2 values, largest difference not finite" in text
    assert text.endswith("different: 7 variables compared, 5 differ\n")
    assert "equal" in diff_text.render(DiffResult("a", "b", 0.0, 7, ()), PLAIN)


def statistics(number):
    return Statistics(Spread(-number, 0.0, number), Spread(0.5, number, 2 * number))


REPAIRED = RepairResult(
    checkpoint="model.ckpt-7",
    output="fixed/model.ckpt-7",
    method="training",
    samples=512,
    batches=16,
    layers=(
        RepairedLayer("bn1", "training", None, statistics(1.5), 0.01, 2e-8),
        RepairedLayer("bn2", "training", statistics(1.0), statistics(2.5), None, None),
    ),
    left=(LeftLayer("bn3", "lies in a loop"),),
    unchanged_variables=49,
    metric=Metric(0.1, 0.9),
    sha256=(FileHash("fixed/model.ckpt-7.index", None, "00ff"),),
    seconds=3.25,
    dry_run=False,
    complete=False,
)


def test_a_repair_is_what_its_schema_says():
    document = validate(documents.render_repair(REPAIRED), "fix")
    assert document["layers"][0]["before"] is None
    assert document["layers"][0]["after"]["variance"] == {"min": 0.5, "median": 1.5, "max": 3.0}
    nothing = dataclasses.replace(
        REPAIRED, output=None, method=None, layers=(), left=(), metric=None, sha256=(), complete=True
    )
    validate(documents.render_repair(nothing), "fix")


def test_a_repair_says_what_was_set_and_what_was_left():
    text = repair_text.render(REPAIRED, PLAIN)
    assert "set the statistics of 2 layers" in text
    assert "none -> 1.5" in text
    assert "skipped: bn3: lies in a loop" in text
    assert "written, but not everything is repaired: fixed/model.ckpt-7" in text


def test_a_dry_run_uses_the_same_words():
    text = repair_text.render(dataclasses.replace(REPAIRED, dry_run=True, output=None), PLAIN)
    assert "would set the statistics of 2 layers" in text
    assert "nothing was written" in text


def test_nothing_to_repair_is_said():
    nothing = dataclasses.replace(REPAIRED, output=None, method=None, layers=(), left=(), complete=True)
    assert "nothing to repair; nothing was written" in repair_text.render(nothing, PLAIN)


@pytest.mark.parametrize(
    ("all_names", "text"),
    [
        (["a"], "a"),
        (["a/b", "a/c"], "in a/: b, c"),
        (["ab", "ac"], "ab, ac"),
        (["a/b/x", "a/b/x/y"], "in a/b/: x, x/y"),
        ([f"n/{i}" for i in range(6)], "in n/: 0, 1, 2, 3 and 2 more"),
    ],
)
def test_names_are_compact(all_names, text):
    assert names(all_names, PLAIN) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (3 * 10**15, "3000.0 TB")]
)
def test_sizes(number, text):
    assert size(number) == text
