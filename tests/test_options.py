"""The options of `scan` and `fix`: one declaration for shell, Python, files and documents; what is wrong is refused."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.cli import main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.keras_callback import check_saves
from ckpt_doctor.options import DataOptions, GateOptions, RepairOptions, ScanOptions, options_of
from ckpt_doctor.pytest_plugin import Checker

FIXTURES = Path(__file__).parent.parent / "fixtures"
HEALTHY = str(FIXTURES / "keras_v3" / "healthy.keras")
FUNCTIONS = [
    (ckpt_doctor.scan, ScanOptions),
    (ckpt_doctor.fix, RepairOptions),
    (check_saves, GateOptions),
    (Checker.__call__, GateOptions),
]


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS, ids=["scan", "fix", "check_saves", "fixture"])
def test_signature_and_docstring_name_every_option_with_its_default(function, kind):
    parameters = inspect.signature(function).parameters
    entries = re.findall(r"^ +(\w+): ", inspect.getdoc(function), re.MULTILINE)
    for option in options_of(kind):
        assert parameters[option.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[option.name].default == option.default
        assert parameters[option.name].default in (getattr(kind(), option.name), None)
        assert entries.count(option.name) == 1, option.name
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    assert max(map(len, function.__doc__.splitlines())) <= 120


@pytest.mark.parametrize(("name", "kind"), [("scan", GateOptions), ("fix", RepairOptions)])
def test_the_command_line_has_every_option_and_only_its_own_beside_them(name, kind):
    command = ckpt_doctor_group.commands[name]
    by_flag = {max(one.opts, key=len): one for one in command.params if isinstance(one, click.Option)}
    for option in options_of(kind):
        made = by_flag.pop(option.flag)
        assert made.help == option.help
        assert made.multiple == option.kind.repeatable
    others = {"scan": {"--write-baseline", "--report", "--output"}, "fix": {"--receipt"}}[name]
    terminal = {"--quiet", "--verbose", "--no-color", "--no-progress"}
    assert by_flag.keys() == others | terminal | {"--format"}


@pytest.mark.parametrize("kind", [DataOptions, ScanOptions, GateOptions, RepairOptions])
def test_defaults_are_what_the_command_line_makes_of_nothing(kind):
    defaults = kind()
    name = "fix" if kind is RepairOptions else "scan"
    params = ckpt_doctor_group.commands[name].make_context(name, ["x"]).params
    given = {option.parameter: params[option.parameter] for option in options_of(kind) if option.name != "jobs"}
    assert kind.of(given) == defaults
    assert kind(**vars(defaults)) == defaults
    assert dataclasses.replace(defaults) == defaults


def test_either_name_of_an_option_is_taken():
    assert ScanOptions.of({"all": True}) == ScanOptions.of({"all_listed": True}) == ScanOptions(all_listed=True)
    assert DataOptions.of({"input": {"x": "a"}, "feed": ["b=1"]}) == DataOptions(inputs={"x": "a"}, feeds={"b": "1"})
    assert RepairOptions.of({"no_backup": True}) == RepairOptions.of({"backup": False}) == RepairOptions(backup=False)
    assert RepairOptions.of({"no-backup": False, "batch-size": 3}) == RepairOptions(batch_size=3)


TAKEN = [
    ("data", "a.npz", ("a.npz",)),
    ("data", Path("a.npz"), ("a.npz",)),
    ("data", iter(["a", Path("b")]), ("a", "b")),
    ("data", None, ()),
    ("model", Path("m.meta"), "m.meta"),
    ("inputs", None, {}),
    ("inputs", ["x=a:0", "y=b=c"], {"x": "a:0", "y": "b=c"}),
    ("feeds", {"training": False, "rate": 0.5}, {"training": "False", "rate": "0.5"}),
    ("batch_size", np.int64(8), 8),
    ("samples", None, None),
    ("seed", None, None),
    ("image_size", "224x112", (224, 112)),
    ("image_size", [224, 112], (224, 112)),
    ("image_scale", "0.5,-1", (0.5, -1.0)),
    ("image_scale", (np.float32(0.5), -1), (0.5, -1.0)),
    ("cache_memory", "2GB", 2 * 10**9),
    ("cache_memory", "1.5 MiB", 3 * 2**19),
    ("cache_memory", "7", 7),
    ("cache_memory", 7, 7),
    ("tolerance", 2, 2.0),
    ("tolerance", np.float32(0.5), 0.5),
    ("select", "BN1,CK", ("BN1,CK",)),
    ("per_path_ignores", {"a": "BN1", "b": ["BN2", "CK"]}, {"a": ("BN1",), "b": ("BN2", "CK")}),
    ("severity", {"BN1": "note"}, {"BN1": "note"}),
]


@pytest.mark.parametrize(("name", "given", "kept"), TAKEN)
def test_what_is_taken(name, given, kept):
    value = getattr(ScanOptions.of({name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    assert getattr(ScanOptions.of({name: value}), name) == kept


WRONG = [
    ("samples", "many", "--samples many: must be a whole number of 1 or more"),
    ("samples", 0, "--samples 0: must be a whole number of 1 or more"),
    ("batch_size", 0, "--batch-size 0: must be a whole number of 1 or more"),
    ("batch_size", 2.5, "--batch-size 2.5: must be a whole number of 1 or more"),
    ("batch_size", True, "--batch-size True: must be a whole number of 1 or more"),
    ("batch_size", None, "--batch-size None: must be a whole number of 1 or more"),
    ("seed", -1, "--seed -1: must be a whole number of 0 or more"),
    ("jobs", 0, "--jobs 0: must be a whole number of 1 or more"),
    ("tolerance", 0, "--tolerance 0: must be a finite number above 0"),
    ("tolerance", -1.5, "--tolerance -1.5: must be a finite number above 0"),
    ("tolerance", float("nan"), "--tolerance nan: must be a finite number above 0"),
    ("tolerance", float("inf"), "--tolerance inf: must be a finite number above 0"),
    ("tolerance", "2", "--tolerance 2: must be a finite number above 0"),
    ("min_severity", "warn", "--min-severity warn: must be one of error, warning, note; did you mean warning?"),
    (
        "severity",
        {"BN101": "eror"},
        "severity of BN101: 'eror' is not one of error, warning, note; did you mean error?",
    ),
    ("severity", "BN101", "--severity BN101: must be NAME=VALUE"),
    ("severity", 3, "--severity 3: must be NAME=VALUE"),
    ("severity", {"BN101": ["note"]}, "severity of BN101: ['note'] is not one of error, warning, note"),
    ("select", 5, "--select 5: must be texts or paths"),
    ("select", [5], "--select 5: must be texts or paths"),
    ("select", "BN1011", "no such rule: 'BN1011'; did you mean BN101?"),
    ("ignore", {"BN1": True}, "--ignore {'BN1': True}: must be texts or paths"),
    ("per_path_ignores", {"a": 5}, "--per-path-ignores a 5: must be texts or paths"),
    ("per_path_ignores", {"a": "BN9"}, "per-path-ignores of a: no such rule: 'BN9'; did you mean BN209?"),
    ("quick", 1, "--quick 1: must be true or false"),
    ("quick", "yes", "--quick yes: must be true or false"),
    ("all", "yes", "--all yes: must be true or false"),
    ("model", 7, "--model 7: must be a text or a path"),
    ("meta", ["a"], "--meta ['a']: must be a text or a path"),
    ("inputs", {"x": 3j}, "--input x 3j: must be a text or a path"),
    ("parse", "mine", "--parse mine: must be MODULE:FUNCTION or path.py:FUNCTION"),
    ("image_size", "224", "--image-size 224: must be HEIGHTxWIDTH, as in 224x224"),
    ("image_size", "0x4", "--image-size 0x4: must be HEIGHTxWIDTH, as in 224x224"),
    ("image_size", (1, 2, 3), "--image-size (1, 2, 3): must be HEIGHTxWIDTH, as in 224x224"),
    ("image_scale", "a,b", "--image-scale a,b: must be A,B, as in 0.00784,-1 (pixel p becomes A*p+B)"),
    ("image_scale", (float("nan"), 0), "--image-scale (nan, 0): must be A,B, as in 0.00784,-1 (pixel p becomes A*p+B)"),
    ("cache_memory", "2 potatoes", "--cache-memory 2 potatoes: must be a size, as in 2GB or 512MiB"),
    ("cache_memory", -1, "--cache-memory -1: must be a size, as in 2GB or 512MiB"),
    ("cache_memory", 2.5, "--cache-memory 2.5: must be a size, as in 2GB or 512MiB"),
    ("data", 3, "--data 3: must be texts or paths"),
    ("data", b"x.npz", "--data b'x.npz': must be texts or paths"),
    ("fail_onn", "note", "no such option: 'fail_onn'"),
    ("batchsize", 3, "no such option: 'batchsize'; did you mean batch_size?"),
    ("al", True, "no such option: 'al'; did you mean all?"),
    (
        "fail_on",
        "note",
        "fail_on decides an exit code, which this function does not have; the command line, check_saves and the "
        "pytest fixture do",
    ),
    ("data_options", 3, "data_options 3: must be a mapping of options to their values"),
    ("data_options", {"batch_size": 0}, "--batch-size 0: must be a whole number of 1 or more"),
    ("data_options", {3: 3}, "no such option: '3'"),
    ("data_options", {"batchsize": 3}, "no such option: 'batchsize'; did you mean batch_size?"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{one[0]}-{one[1]}" for one in WRONG])
def test_scan_refuses_what_is_wrong_before_it_reads(name, value, message):
    with pytest.raises(BadRequest) as refused:
        ckpt_doctor.scan("not looked at", **{name: value})
    assert str(refused.value) == message


REPAIRS = [
    (
        "method",
        "layer-wise",
        "--method layer-wise: must be one of auto, layerwise, training, debias, copy, initial; did you mean ",
    ),
    ("method", None, "--method None: must be one of auto, layerwise, training, debias, copy"),
    ("layers", 3, "--layers 3: must be texts or paths"),
    ("metric", "accuracy", "--metric accuracy: must be MODULE:FUNCTION or path.py:FUNCTION"),
    ("metric", len, "--metric <built-in function len>: must be MODULE:FUNCTION or path.py:FUNCTION"),
    ("metric_data", 3, "--metric-data 3: must be texts or paths"),
    ("backup", "no", "--no-backup no: must be true or false"),
    ("no_backup", "no", "--no-backup no: must be true or false"),
    ("output_path", "x", "no such option: 'output_path'; did you mean output?"),
    ("samples", "many", "--samples many: must be a whole number of 1 or more"),
]


@pytest.mark.parametrize(("name", "value", "message"), REPAIRS, ids=[f"{one[0]}-{one[1]}" for one in REPAIRS])
def test_fix_refuses_what_is_wrong_before_it_reads(name, value, message):
    with pytest.raises(BadRequest) as refused:
        ckpt_doctor.fix("not looked at", dry_run=True, **{name: value})
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no destination: pass --output PATH, --in-place (keeps a backup) or --dry-run"),
        ({"in_place": True, "output": "x"}, "--in-place and --output PATH contradict each other; pass only one"),
        ({"output": "x", "backup": False}, "--no-backup needs --in-place; --output leaves the checkpoint as it is"),
        ({"in_place": True, "overwrite": True}, "--overwrite needs --output PATH"),
    ],
)
def test_fix_refuses_contradictions_as_the_command_does(options, message):
    with pytest.raises(BadRequest, match=re.escape(message)):
        ckpt_doctor.fix("not looked at", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"all": True, "all_listed": False},
        {"batch_size": 3, "data_options": {"batch_size": 3}},
        {"input": {}, "data_options": {"inputs": {}}},
    ],
)
def test_an_option_is_given_once(options):
    with pytest.raises(BadRequest, match="was given twice"):
        ckpt_doctor.scan("not looked at", **options)


# From the shell every value is a text, and what click checks it refuses in its own words.
SHELL = [
    (["--tolerance", "0"], "0.0 is not in the range x>0"),
    (["--tolerance", "nan"], "--tolerance nan: must be a finite number above 0"),
    (["--tolerance", "inf"], "--tolerance inf: must be a finite number above 0"),
    (["--batch-size", "2.5"], "'2.5' is not a valid integer"),
    (["--seed", "-1"], "-1 is not in the range x>=0"),
    (["--image-size", "0x4"], "--image-size 0x4: must be HEIGHTxWIDTH, as in 224x224"),
    (["--image-scale", "1"], "--image-scale 1: must be A,B, as in 0.00784,-1"),
    (["--cache-memory", "much"], "--cache-memory much: must be a size, as in 2GB or 512MiB"),
    (["--parse", "mine"], "--parse mine: must be MODULE:FUNCTION or path.py:FUNCTION"),
    (["--severity", "BN101=eror"], "severity of BN101: 'eror' is not one of error, warning, note; did you mean error?"),
    (["--input", "x"], "--input x: must be NAME=VALUE"),
]


@pytest.mark.parametrize(("argv", "message"), SHELL, ids=[" ".join(one[0]) for one in SHELL])
def test_the_shell_and_files_refuse_what_python_refuses(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["scan", HEALTHY, *argv]) == 2
    assert message in capsys.readouterr().err
    (tmp_path / ".ckpt-doctor.toml").write_text(f"[scan]\n{argv[0].lstrip('-')} = {argv[1]!r}")
    assert main(["scan", HEALTHY]) == 2
    assert message in capsys.readouterr().err


def test_options_of_data_are_keywords_of_scan_or_lie_in_data_options(monkeypatch):
    asked = []

    def observe(checkpoint, inventory, request):
        asked.append(request)
        return {}, {}

    monkeypatch.setattr("ckpt_doctor.capture.estimation.observe", observe)
    options = {
        "batch_size": 3,
        "samples": 9,
        "seed": 5,
        "image_size": "8x8",
        "cache_memory": "1MB",
        "inputs": {"x": "y"},
    }
    ckpt_doctor.scan(HEALTHY, data="x.npz", **options)
    ckpt_doctor.scan(HEALTHY, data="x.npz", data_options=options)
    assert asked[0] == asked[1]
    assert asked[0].only(DataOptions) == vars(DataOptions.of(options | {"data": "x.npz"}))


def test_words_of_a_command_line_give_the_same_options_again():
    options = DataOptions(
        data=["a b.npz", "y=c.npz[k]"],
        model="m.py:f",
        inputs={"x": "a=b:0"},
        feeds={"rate": 0.5, "training": False},
        batch_size=8,
        samples=100,
        seed=3,
        parse="mine:parse",
        image_size=(4, 5),
        image_scale=(1 / 255, -1),
        cache_memory="3MiB",
        unproven=True,
        allow_code=True,
    )
    words = options.words(DataOptions)
    params = ckpt_doctor_group.commands["fix"].make_context("fix", ["x", *words]).params
    assert DataOptions.of({option.name: params[option.name] for option in options_of(DataOptions)}) == options
    assert DataOptions().words(DataOptions) == ()
    assert RepairOptions(backup=False).words(RepairOptions) == ("--no-backup",)
    ignores = ScanOptions(per_path_ignores={"a": ["BN1", "CK"]})
    assert ignores.words(ScanOptions) == ("--per-path-ignores", "a=BN1,CK")


def test_options_are_light_to_import():
    heavy = {"numpy", "click", "tensorflow", "h5py", "rich"}
    program = f"import sys, ckpt_doctor.options; assert not {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_python_without_docstrings_works():
    program = (
        "import inspect; from ckpt_doctor import scan; print(scan.__doc__, len(inspect.signature(scan).parameters))"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == f"None {len(inspect.signature(ckpt_doctor.scan).parameters)}\n"
