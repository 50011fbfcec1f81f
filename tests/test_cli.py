"""The command line as its users meet it: codes, streams, exact messages."""

import json
import shutil
from pathlib import Path

import click
import jsonschema
import pytest

import ckpt_doctor
from ckpt_doctor.cli import INTERNAL_ERROR, main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.cli.scan_command import exit_code
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.result import AuditResult, CheckpointResult, NotJudged, PathError

FIXTURES = Path(__file__).parent.parent / "fixtures"
HEALTHY = FIXTURES / "tf1_layers" / "full" / "model.ckpt-400"
BROKEN = FIXTURES / "tf1_layers" / "trainable" / "model.ckpt-400"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run one command line in an empty folder; return its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main([str(argument) for argument in argv])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


@pytest.fixture
def copy(tmp_path):
    """Copy a fixture bundle and return its prefix there."""

    def copy(prefix=HEALTHY):
        for file in prefix.parent.glob(f"{prefix.name}.*"):
            shutil.copy(file, tmp_path)
        return tmp_path / prefix.name

    return copy


def flip(path, offset, bit=4):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def rules(out):
    return [finding["rule"] for one in json.loads(out)["checkpoints"] for finding in one["findings"]]


def test_a_healthy_checkpoint(run):
    code, out, err = run("scan", HEALTHY)
    assert (code, err) == (0, "")
    assert out.startswith(f"ok  {HEALTHY}\n")
    assert out.endswith("1 checkpoint, 4 batch-norm layers: nothing found\n")


def test_a_broken_checkpoint_names_layers_cause_and_the_next_step(run):
    code, out, err = run("scan", BROKEN)
    assert (code, err) == (1, "")
    assert "BN101 missing-moving-mean, BN102 missing-moving-variance: 4 layers" in out
    assert "cause: BN301, below" in out
    assert f"ckpt-doctor fix {BROKEN} \\" in out
    code, out, err = run("scan", BROKEN, "--format", "json")
    assert code == 1
    assert rules(out) == ["BN101"] * 4 + ["BN102"] * 4 + ["BN301"]
    assert {finding["cause"] for finding in json.loads(out)["checkpoints"][0]["findings"]} == {"BN301", None}
    assert json.loads(out)["checkpoints"][0]["batch_norm_layers"][0]["status"] == "missing-moving-mean"


def test_a_missing_path(run, tmp_path):
    code, out, err = run("scan", tmp_path / "gone.ckpt")
    assert (code, out) == (2, "")
    assert err.startswith(f"ckpt-doctor: {tmp_path / 'gone.ckpt'}: ")
    assert err.count("\n") == 1


def test_a_prefix_without_index(run, copy):
    prefix = copy()
    prefix.with_name(f"{prefix.name}.index").unlink()
    code, out, err = run("scan", prefix)
    assert (code, out) == (2, "")
    assert f"{prefix}.index" in err
    assert "Traceback" not in err


def test_a_truncated_shard(run, copy):
    shard = copy().with_name(f"{HEALTHY.name}.data-00000-of-00001")
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, err = run("scan", shard, "--format", "json")
    assert (code, err) == (1, "")
    assert rules(out) == ["CK102"]
    code, out, _ = run("scan", shard)
    assert "error  CK102 truncated" in out
    assert "what to do" not in out


def test_a_missing_shard(run, copy):
    prefix = copy()
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").unlink()
    code, out, _ = run("scan", prefix, "--format", "json")
    assert code == 1
    assert "CK101" in rules(out)


def test_a_flipped_byte(run, copy):
    prefix = copy()
    flip(prefix.with_name(f"{prefix.name}.data-00000-of-00001"), 5000)
    code, out, _ = run("scan", prefix, "--format", "json")
    assert (code, rules(out)) == (1, ["CK103"])
    assert run("scan", prefix, "--fail-on", "never")[0] == 0
    assert run("scan", prefix, "--ignore", "CK103")[0] == 0


def test_a_flipped_byte_in_the_index(run, copy):
    prefix = copy()
    flip(prefix.with_name(f"{prefix.name}.index"), 40)
    code, out, _ = run("scan", prefix, "--format", "json")
    assert (code, rules(out)) == (1, ["CK103"])


def test_values_that_are_no_numbers(run, tmp_path, monkeypatch):
    """Statistics and weights have rules of their own; nothing that is not finite goes unreported, nothing twice."""
    h5py = pytest.importorskip("h5py")
    model = shutil.copy(FIXTURES / "keras_h5" / "healthy.h5", tmp_path)
    with h5py.File(model, "r+") as file:
        datasets = []
        file["model_weights"].visititems(lambda _, item: datasets.append(item) if hasattr(item, "shape") else None)
        for ending in ("moving_mean:0", "kernel:0"):
            dataset = next(item for item in datasets if item.name.endswith((ending, ending[:-2])))
            dataset[(0,) * dataset.ndim] = float("nan")
    code, out, _ = run("scan", model, "--format", "json")
    assert (code, rules(out)) == (1, ["BN203", "CK201"])


def test_a_git_lfs_pointer(run, tmp_path):
    pointer = tmp_path / "weights.h5"
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1024\n")
    code, out, err = run("scan", pointer, "--format", "json")
    assert (code, err) == (1, "")
    assert rules(out) == ["CK104"]
    assert "git-LFS" in json.loads(out)["checkpoints"][0]["findings"][0]["message"]


def test_a_folder_without_checkpoints(run, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    code, out, err = run("scan", tmp_path)
    assert (code, out) == (2, "looked at 0 files; passed over: 1 other file\n")
    assert str(tmp_path) in err
    assert "Traceback" not in err


def test_no_verdict_on_one_path_leaves_the_verdict_on_the_others(run):
    code, out, err = run("scan", BROKEN, "gone", HEALTHY, "--format", "json")
    assert code == 2
    document = json.loads(out)
    assert [one["path"] for one in document["checkpoints"]] == [str(BROKEN), str(HEALTHY)]
    assert [error["path"] for error in document["errors"]] == ["gone"]
    assert err.startswith("ckpt-doctor: gone: ")


def test_results_come_in_the_order_of_the_paths_whatever_the_jobs(run):
    _, alone, _ = run("scan", BROKEN, HEALTHY, "--jobs", "1", "--format", "json")
    _, together, _ = run("scan", BROKEN, HEALTHY, "--jobs", "4", "--format", "json")
    assert alone == together


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["scan", "x", "--nonsense"], "No such option"),
        (["scan"], "Missing argument"),
        (["scan", "x", "--fail-on", "loud"], "is not one of"),
        (["scna", "x"], "No such command 'scna'. Did you mean 'scan'?"),
        (["scan", "x", "--jobs", "0"], "0 is not in the range"),
    ],
)
def test_bad_usage(run, argv, message):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--select", "CK1033"], "no such rule: 'CK1033'; did you mean CK103?"),
        (["--ignore", "truncatd"], "no such rule: 'truncatd'; did you mean truncated?"),
        (["--severity", "CK101"], "--severity CK101: must be NAME=VALUE"),
        (["--severity", "CK101=loud"], "severity of CK101: 'loud' is not one of error, warning, note"),
        (["--output", "no/folder.txt"], "--output no/folder.txt: its folder no does not exist"),
        (["--meta", "gone.meta"], "gone.meta: does not exist (from --meta)"),
        (["--output", str(HEALTHY)], f"--output {HEALTHY}: would overwrite a file that is being scanned"),
    ],
)
def test_requests_that_cannot_be_met(run, argv, message):
    assert run("scan", HEALTHY, *argv) == (2, "", f"ckpt-doctor: {message}\n")


def test_severity_and_threshold(run):
    assert run("scan", BROKEN, "--severity", "BN=warning")[0] == 0
    assert run("scan", BROKEN, "--severity", "BN=warning", "--fail-on", "warning")[0] == 1
    code, out, _ = run("scan", BROKEN, "--severity", "BN=note", "--severity", "BN102=warning", "--format", "json")
    assert (code, json.loads(out)["summary"]["warning"], json.loads(out)["summary"]["note"]) == (0, 4, 5)


def test_a_report_goes_to_a_file(run, tmp_path):
    code, out, err = run("scan", BROKEN, "--format", "json", "--output", tmp_path / "report.json")
    assert (code, out, err) == (1, "", "")
    assert rules((tmp_path / "report.json").read_text())


def test_quiet_says_only_what_is_wrong(run):
    _, out, _ = run("-q", "scan", HEALTHY, BROKEN)
    assert str(HEALTHY) not in out
    assert str(BROKEN) in out


@pytest.fixture(params=list(ckpt_doctor_group.commands))
def terminal_of(request, run, monkeypatch):
    """Run one command that does nothing, with words before and behind its name; return its terminal."""
    name = request.param
    command = ckpt_doctor_group.commands[name]
    arguments = [one.name for one in command.params if isinstance(one, click.Argument)]
    found = []

    def callback(*_, **__):
        found.append(click.get_current_context().obj)
        return 0

    monkeypatch.setattr(command, "callback", callback)

    def terminal_of(before=(), behind=()):
        code, _, err = run(*before, name, *arguments, *behind)
        assert (code, err) == (0, "")
        return found.pop()

    return terminal_of


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("-q", "quiet"),
        ("--quiet", "quiet"),
        ("-v", "verbose"),
        ("--verbose", "verbose"),
        ("--no-color", "no_color"),
        ("--no-progress", "no_progress"),
    ],
)
def test_options_of_the_terminal_stand_before_or_behind_every_command(terminal_of, word, name):
    assert terminal_of() == Terminal()
    wanted = Terminal(**{name: True})
    assert terminal_of(before=[word]) == terminal_of(behind=[word]) == terminal_of([word], [word]) == wanted
    other = "-v" if name == "quiet" else "-q"
    assert terminal_of(before=[word], behind=[other]) == terminal_of(before=[other], behind=[word])
    assert getattr(terminal_of(before=[word], behind=[other]), name)


def test_options_of_the_terminal_come_from_the_environment_and_from_files_too(terminal_of, monkeypatch, tmp_path):
    (tmp_path / ".ckpt-doctor.toml").write_text("no-color = true")
    monkeypatch.setenv("CKPT_DOCTOR_VERBOSE", "1")
    assert terminal_of() == Terminal(verbose=True, no_color=True)
    assert terminal_of(behind=["-q"]) == Terminal(quiet=True, verbose=True, no_color=True)


@pytest.mark.parametrize("name", ckpt_doctor_group.commands)
def test_the_help_of_every_command_shows_the_options_of_the_terminal(run, name):
    _, out, _ = run(name, "--help")
    for words in ("-q, --quiet", "-v, --verbose", "--no-color", "--no-progress"):
        assert f"\n  {words} " in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no destination: pass --output PATH, --in-place (keeps a backup) or --dry-run"),
        (["--in-place", "--output", "x"], "--in-place and --output PATH contradict each other; pass only one"),
        (["--no-backup", "--output", "x"], "--no-backup needs --in-place; --output leaves the checkpoint as it is"),
        (["--in-place", "--overwrite"], "--overwrite needs --output PATH"),
        (["--output", "x", "--receipt", "no/r.json"], "--receipt no/r.json: its folder no does not exist"),
    ],
)
def test_a_repair_refuses_contradictions_before_anything_is_read(run, argv, message):
    assert run("fix", "gone.ckpt", *argv) == (2, "", f"ckpt-doctor: {message}\n")


def test_ls(run):
    code, out, _ = run("ls", HEALTHY, "--grep", "bn1/(gamma|moving)")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[1:-1]] == [
        "bn1/gamma",
        "bn1/gamma/Adam",
        "bn1/gamma/Adam_1",
        "bn1/moving_mean",
        "bn1/moving_variance",
    ]
    _, out, _ = run("ls", HEALTHY, "--grep", "moving_variance$", "--stats", "--format", "json")
    variables = json.loads(out)["variables"]
    assert {variable["role"] for variable in variables} == {"moving_variance"}
    assert all(0 < variable["min"] < variable["mean"] < variable["max"] for variable in variables)
    assert run("ls", HEALTHY, "--grep", "(")[0] == 2
    assert run("ls", "gone")[0] == 2


def test_diff(run, copy):
    assert run("diff", HEALTHY, copy())[0] == 0
    code, out, _ = run("diff", HEALTHY, BROKEN, "--format", "json")
    differences = json.loads(out)["differences"]
    assert code == 1
    assert {difference["kind"] for difference in differences} == {"missing"}
    assert {"bn1/moving_mean", "bn4/moving_variance"} <= {difference["name"] for difference in differences}
    assert run("diff", HEALTHY, "gone")[0] == 2
    assert run("diff", HEALTHY, HEALTHY, "--tolerance", "-1")[0] == 2


def test_explain(run):
    code, out, _ = run("explain", "ck103")
    assert code == 0
    assert out.startswith("CK103 checksum-mismatch (error; fix: none)\n\nStored and computed checksums differ.\n")
    code, out, _ = run("explain")
    assert code == 0
    assert "\nCK102  truncated" in out
    assert run("explain", "CK999")[0] == 2


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"ckpt-doctor, version {ckpt_doctor.__version__}\n")
    code, out, _ = run("--help")
    assert code == 0
    for command in ("scan", "fix", "ls", "diff", "explain", "demo"):
        assert f"\n  {command} " in out


def test_the_demo_refuses_a_folder_that_is_not_its_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_doctor.capture.runtime.tensorflow", lambda: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, out, err = run("demo", "mine")
    assert (code, out) == (2, "")
    assert err == "ckpt-doctor: mine: exists and was not written by `ckpt-doctor demo`; pass another folder\n"


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (RuntimeError("boom"), "RuntimeError: boom"),
        (KeyError("a {brace}"), "KeyError: 'a {brace}'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_crash_of_ours_is_no_verdict(run, monkeypatch, error, summary):
    def crash(*_, **__):
        raise error

    monkeypatch.setattr("ckpt_doctor.audit.scan", crash)
    code, out, err = run("scan", HEALTHY)
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith(f"ckpt-doctor: internal error: {summary}; please report it with the lines above\n")
    assert err.endswith(f"{INTERNAL_ERROR.format(error=summary)}\n")


def test_an_interrupt_is_no_verdict_and_no_traceback(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ckpt_doctor.audit.scan", interrupt)
    code, _, err = run("scan", HEALTHY)
    assert code == 130
    assert err.strip() == "interrupted"


def test_a_full_disk_is_no_bug_of_ours(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "report.txt")

    monkeypatch.setattr("ckpt_doctor.audit.scan", full)
    assert run("scan", HEALTHY) == (2, "", "ckpt-doctor: report.txt: No space left on device\n")


@pytest.mark.corpus
def test_published_checkpoints_get_a_verdict_each(run, corpus):
    code, out, err = run("scan", corpus, "--all", "--format", "json")
    document = json.loads(out)
    schema = json.loads((Path(ckpt_doctor.__file__).parent / "schemas" / "scan-1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    assert (code, err, document["errors"]) == (1, "", [])
    by_folder = {}
    for one in document["checkpoints"]:
        folder = Path(one["path"]).relative_to(corpus).parts[0]
        by_folder.setdefault(folder, set()).update(finding["rule"] for finding in one["findings"])
    # A221 holds no checkpoint but pickles of PyTorch, named .ckpt: a walk passes them by.
    assert {*by_folder, "A221"} == {path.name for path in corpus.iterdir() if path.is_dir()}
    for folder, rule in {"A010": "CK104", "A027": "CK102", "A162": "CK101", "A164": "CK101", "A209": "CK104"}.items():
        assert rule in by_folder[folder]
    for folder in ("A004", "A008", "A030", "A065", "A068", "A166", "A169"):
        assert not by_folder[folder]


@pytest.mark.corpus
def test_published_checkpoints_can_be_listed_and_are_equal_to_themselves(run, corpus):
    document = json.loads(run("scan", corpus, "--all", "--quick", "--format", "json")[1])
    # Other checkpoints of a folder are later steps of the same training.
    first = {Path(one["path"]).relative_to(corpus).parts[0]: one for one in reversed(document["checkpoints"])}
    for one in first.values():
        if one["variables"] and not any(finding["rule"].startswith("CK1") for finding in one["findings"]):
            code, out, err = run("ls", one["path"], "--stats", "--format", "json")
            assert (code, err) == (0, "")
            assert len(json.loads(out)["variables"]) == one["variables"]
            code, out, _ = run("diff", one["path"], one["path"], "--format", "json")
            assert (code, json.loads(out)["compared"]) == (0, one["variables"])


def test_strict_fails_where_something_was_not_judged():
    one = CheckpointResult("x", "tensor-bundle", None, 1, 1, ("names",), (), (NotJudged("a", "b"),), ())
    assert exit_code(AuditResult((one,)), fail_on="error", strict=False) == 0
    assert exit_code(AuditResult((one,)), fail_on="error", strict=True) == 1
    assert exit_code(AuditResult((one,), (PathError("y", "z"),)), fail_on="error", strict=True) == 2
    assert exit_code(AuditResult(()), fail_on="never", strict=False) == 2


def test_remains_of_a_save_alone_are_reported_and_are_no_verdict(run, copy, tmp_path):
    prefix = copy()
    prefix.with_name(f"{prefix.name}.index").unlink()
    code, out, err = run("scan", tmp_path, "--format", "json")
    assert (code, rules(out)) == (2, ["CK106"])
    assert err == f"ckpt-doctor: {tmp_path}: no complete checkpoint to scan\n"


def test_a_stale_state_file_is_reported_with_the_checkpoint_beside_it(run, copy, tmp_path):
    prefix = copy()
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-900"\n')
    code, out, err = run("scan", tmp_path, "--format", "json")
    assert (code, err, rules(out)) == (0, "", ["CK105"])
    assert json.loads(out)["checkpoints"][0]["path"] == str(prefix)


def test_older_checkpoints_are_passed_over_and_counted(run, copy, tmp_path):
    prefix = copy()
    for file in list(tmp_path.iterdir()):
        shutil.copy(file, tmp_path / file.name.replace("400", "300"))
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-400"\n'
        'all_model_checkpoint_paths: "model.ckpt-300"\nall_model_checkpoint_paths: "model.ckpt-400"\n'
    )
    code, out, _ = run("scan", tmp_path, "--format", "json")
    document = json.loads(out)
    assert (code, document["passed_over"]) == (0, 1)
    assert [one["path"] for one in document["checkpoints"]] == [str(prefix)]
    assert "1 older checkpoint passed over" in run("scan", tmp_path)[1]
    assert len(json.loads(run("scan", tmp_path, "--all", "--format", "json")[1])["checkpoints"]) == 2
