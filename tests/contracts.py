"""What `scan` and `fix` promise of each other, as properties that any checkpoint must have.

A property takes one checkpoint and yields every breach of it as a sentence. All go through the command line, in this
process, because exit codes and printed commands are part of what is promised. `tests/test_contracts.py` holds the
fixtures to them, `benchmarks/contracts.py` any folder of checkpoints.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_doctor.cli import main
from ckpt_doctor.formats import open_checkpoint

Finding = dict[str, Any]
Breaches = Iterator[str]


@dataclass(frozen=True)
class Answer:
    """What one command line says."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The JSON report, or nothing where the command was refused."""
        return json.loads(self.out) if self.out.startswith("{") else {}

    @property
    def last_words(self) -> str:
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1] if lines else "nothing"


def run(*argv: str | Path) -> Answer:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in argv])
    return Answer(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Verdict:
    """What `scan` says of one checkpoint."""

    code: int
    checkpoint: dict[str, Any]
    problem: str = ""

    @property
    def found(self) -> list[Finding]:
        """What counts against the checkpoint; a note asks for nothing."""
        return [one for one in self.checkpoint.get("findings", ()) if one["severity"] != "note"]

    @property
    def repairable(self) -> list[Finding]:
        """What `fix` would have something to do about."""
        return [one for one in self.found if one["repair"] != "none"]

    @property
    def broken_layers(self) -> set[str]:
        """The layers whose statistics are missing or wrong."""
        return {layer for one in self.found if one["rule"].startswith(("BN1", "BN2")) for layer in one["layers"]}


def scan(path: Path, *options: str) -> Verdict:
    answer = run("scan", path, "--format", "json", *options)
    [*checkpoints] = answer.report.get("checkpoints", ())
    if not checkpoints and not answer.report.get("errors") and not answer.err.startswith("ckpt-doctor: --"):
        return Verdict(answer.code, {}, f"neither a verdict nor an error, {answer.last_words}")
    return Verdict(answer.code, checkpoints[0] if checkpoints else {}, answer.last_words if answer.code == 2 else "")


def in_words(findings: Sequence[Finding]) -> str:
    """Return findings in a few words: each rule once, with how sure it is and how many layers it names."""
    kinds: dict[str, set[str]] = {}
    for one in findings:
        kinds.setdefault(f"{one['rule']} {one['certainty']} {one['repair']}", set()).update(one["layers"])
    return ", ".join(f"{kind} ({len(layers)})" for kind, layers in kinds.items())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files of a checkpoint, its `.meta` included; their names are absolute, or relative to its folder."""
    if path.is_dir():
        return contents(path)
    checkpoint = open_checkpoint(path)
    beside = checkpoint.descriptions.meta_graph_path
    files = [Path(file).absolute() for file in (*checkpoint.files, *([beside] if beside else []))]
    return {str(file): file.read_bytes() for file in files}


def copied(path: Path, folder: Path, *, meta: bool = True) -> Path:
    """Copy a checkpoint, with its `.meta` or without, to a folder that is made; return its path there."""
    folder.mkdir(parents=True)
    if path.is_dir():
        return Path(shutil.copytree(path, folder / path.name))
    for file, content in files_of(path).items():
        if meta or not file.endswith(".meta"):
            (folder / Path(file).name).write_bytes(content)
    return folder / path.name


@dataclass
class Contract:
    """One checkpoint and one set of options, taken through `scan`, `fix`, `scan` and `fix` again; each step once.

    Attributes:
        path: The checkpoint; it is only read.
        folder: An empty folder to work in.
        data: What to give as `--data`, or None.
        model: What to give as `--model`, or None.
        more: Other options of both commands: `--unproven`.
    """

    path: Path
    folder: Path
    data: str | None = None
    model: str | None = None
    more: tuple[str, ...] = ()
    output: Path = field(init=False)
    source: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.source = files_of(self.path)
        # A V1 checkpoint of several files has `?` in its name, and is repaired into one file.
        self.output = self.folder / "repaired" / self.path.name.partition("-?")[0]
        self.output.parent.mkdir(parents=True)

    @property
    def options(self) -> tuple[str, ...]:
        """The options of `fix`, and of `scan` where there are data."""
        data = ("--data", self.data) if self.data else ()
        return (*data, *(("--model", self.model) if self.model else ()), *self.more)

    @property
    def options_of_scan(self) -> tuple[str, ...]:
        if self.model and self.model.endswith(".meta") and not self.data:
            return ("--meta", self.model, *self.more)
        return self.options

    @cached_property
    def before(self) -> Verdict:
        return scan(self.path, *self.options_of_scan)

    @cached_property
    def foretold(self) -> Answer:
        return run("fix", self.path, *self.options, "--dry-run", "--format", "json")

    @cached_property
    def repair(self) -> Answer:
        return run("fix", self.path, *self.options, "--output", self.output, "--format", "json")

    @cached_property
    def written(self) -> dict[str, bytes]:
        """What `repair` wrote, before anything else looks at it."""
        assert self.repair
        return contents(self.output.parent)

    @cached_property
    def after(self) -> Verdict:
        assert self.written
        return scan(self.output, *self.options_of_scan)

    @cached_property
    def after_by_itself(self) -> Verdict:
        assert self.written
        return scan(self.output, *self.more)

    @cached_property
    def second_repair(self) -> Answer:
        assert self.written
        return run("fix", self.output, *self.options, "--in-place", "--format", "json")

    @property
    def repaired_layers(self) -> set[str]:
        return {layer["name"] for layer in self.repair.report["layers"]}

    @property
    def found_nothing(self) -> bool:
        """Whether `fix` says that there is nothing to repair."""
        return self.repair.code == 0 and not self.repair.report["layers"]


def contract(path: Path, folder: Path, data: str | None = None, model: str | None = None, *more: str) -> Contract:
    """Return the contract of one checkpoint with its data and its model."""
    return Contract(path, folder, data, model, more)


# The properties ------------------------------------------------------------------------------------------------------


def nothing_to_repair_is_what_scan_says(one: Contract) -> Breaches:
    """`fix` says "nothing to repair", exit 0, only where `scan` finds nothing to repair; and nothing is written."""
    if one.found_nothing and one.before.repairable:
        yield f"fix: nothing to repair, exit 0; scan: {in_words(one.before.repairable)}"
    if one.found_nothing and one.before.code == 2:
        yield f"fix: nothing to repair, exit 0; scan: exit 2, {one.before.problem}"
    if one.before.problem.startswith("neither"):
        yield f"scan: {one.before.problem}"
    if not one.repair.report.get("output") and one.written:
        yield f"fix: exit {one.repair.code}, and yet wrote {', '.join(one.written)}"
    if one.repair.code == 1 and not one.repair.report.get("left") and not one.written:
        yield "fix: exit 1 with nothing left and nothing written"


def what_is_repaired_scans_clean(one: Contract) -> Breaches:
    """`fix` exits 0: `scan` of what it wrote, with the same options and with none, finds the layers in order."""
    if not one.written:
        return
    with_options = " ".join(one.options_of_scan) or "no options"
    for verdict, how in ((one.after, with_options), (one.after_by_itself, "no options")):
        if verdict.code == 2:
            yield f"scan of what was written, {how}: exit 2, {verdict.problem}"
        elif one.repair.code == 0 and verdict.repairable:
            yield f"fix: exit 0; scan of what was written, {how}: {in_words(verdict.repairable)}"
    left = {layer["name"] for layer in one.repair.report["left"]}
    still = one.after.broken_layers & (one.repaired_layers - left)
    if still and one.repair.code != 0:
        yield f"fix: exit 1, nothing of {', '.join(sorted(still))} is left; scan of what was written finds them broken"


def a_dry_run_foretells_the_repair(one: Contract) -> Breaches:
    """`fix --dry-run` ends as the repair does, with the same layers, methods and reasons."""
    if one.foretold.code != one.repair.code:
        yield (
            f"dry run: exit {one.foretold.code} ({one.foretold.last_words}); "
            f"repair: exit {one.repair.code} ({one.repair.last_words})"
        )
        return
    if one.foretold.code == 2:
        if one.foretold.err != one.repair.err:
            yield f"dry run: {one.foretold.last_words}; repair: {one.repair.last_words}"
        return
    for part in ("method", "samples", "left"):
        if one.foretold.report[part] != one.repair.report[part]:
            yield f"{part}: dry run {one.foretold.report[part]}; repair {one.repair.report[part]}"
    told, done = (
        [(layer["name"], layer["method"], layer["after"]) for layer in answer.report["layers"]]
        for answer in (one.foretold, one.repair)
    )
    if [layer[:2] for layer in told] != [layer[:2] for layer in done]:
        yield f"layers: dry run {told}; repair {done}"
    elif not np.allclose(*(_numbers([layer[2] for layer in layers]) for layers in (told, done)), rtol=1e-9):
        yield "the dry run foretells other statistics than the repair sets"


def _numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return _numbers(list(tree.values()))
    return [number for entry in tree for number in _numbers(entry)] if isinstance(tree, list) else [tree or 0.0]


def a_second_repair_changes_nothing(one: Contract) -> Breaches:
    """`fix` of what `fix` wrote: nothing to repair, exit 0, and not a byte is changed.

    What the first one had to leave the second one leaves or refuses, and what was set is not set again.
    """
    if not one.written:
        return
    again = one.second_repair
    if one.repair.code == 0 and again.code != 0:
        yield f"fix again: exit {again.code}, {again.last_words}"
    twice = one.repaired_layers & {layer["name"] for layer in again.report.get("layers", ())}
    if twice:
        yield f"fix again: sets {', '.join(sorted(twice))} once more"
    elif contents(one.output.parent) != one.written:
        yield "fix again: the files are changed"


def the_source_is_only_read(one: Contract) -> Breaches:
    """A repair into another place leaves the checkpoint as it was."""
    assert one.repair
    if any(Path(one.path, file).read_bytes() != content for file, content in one.source.items()):
        yield "fix --output: the checkpoint itself is changed"


CYCLE = (
    nothing_to_repair_is_what_scan_says,
    what_is_repaired_scans_clean,
    a_dry_run_foretells_the_repair,
    a_second_repair_changes_nothing,
    the_source_is_only_read,
)


def a_description_by_name_is_one_beside(path: Path, folder: Path, option: str, beside: Verdict) -> Breaches:
    """`scan --meta X` and `scan --model X` say what `scan` says with X beside the checkpoint.

    Args:
        path: A checkpoint with a `.meta` beside it.
        folder: An empty folder to work in.
        option: `--meta` or `--model`.
        beside: What `scan` says of it.
    """
    alone = copied(path, folder / "alone", meta=False)
    by_name = scan(alone, option, f"{path}.meta")
    if by_name.code == 2 and beside.checkpoint["not_judged"] and "none of" in by_name.problem:
        return  # Of another model: refused where it is named, not judged where it is found.
    expected, found = _without_paths(beside, path), _without_paths(by_name, alone)
    parts = [part for part in expected if expected[part] != found.get(part)]
    if parts:
        yield (
            f"scan {option}: {', '.join(sorted(parts))} differ; findings {in_words(by_name.found) or '-'}; with it "
            f"beside {in_words(beside.found) or '-'}"
        )


def _without_paths(verdict: Verdict, path: Path) -> dict[str, Any]:
    # A `.meta` beside is a part of the checkpoint: it counts among its bytes, and says what wrote it.
    parts = {key: value for key, value in verdict.checkpoint.items() if key not in ("path", "bytes", "producer")}
    text = json.dumps({"code": verdict.code, "problem": verdict.problem, **parts})
    result: dict[str, Any] = json.loads(text.replace(str(path.parent), "FOLDER"))
    return result


def what_scan_advises_works(
    path: Path, folder: Path, data: str | None = None, model: str | None = None, *options: str
) -> Breaches:
    """The command under "what to do" is run as it is printed: it exits 0, and what it writes scans clean.

    DATA.npz and MODEL, words for what `scan` cannot know, stand for `data` and `model`.
    """
    here = copied(path, folder / "advised")
    advice = advised(here, *options)
    if advice is None:
        if any(one["certainty"] != "unproven" for one in scan(here, *options).repairable):
            yield "scan finds what can be repaired, and says nothing of how"
        return
    command = " ".join(word.replace(str(here.parent), "…") for word in advice)
    for option, word in (("--data", "DATA.npz"), ("--model", "MODEL"), ("--meta", "MODEL")):
        if option in options and word in advice:
            yield f"{command}: {option} was given to scan, and the command says {word}"
    known = {"DATA.npz": data, "MODEL": model}
    if any(word in advice and value is None for word, value in known.items()):
        return
    argv = [known.get(word) or word for word in advice]
    done = run(*argv)
    if done.code != 0 or "written" not in done.out:
        yield f"{command}: exit {done.code}, {done.last_words}"
    if "--output" not in argv:
        yield f"{command}: names no output"
        return
    written = Path(argv[argv.index("--output") + 1])
    if done.code == 0 and not list(written.parent.glob(f"{written.name}*")):
        yield f"{command}: exit 0, and wrote nothing"
    elif done.code == 0:
        after = scan(written, *options)
        if after.repairable:
            yield f"{command}: exit 0; scan of what it wrote: {in_words(after.repairable)}"
        elif "scanned clean" in done.out and after.code == 1:
            yield f'{command}: "written and scanned clean"; scan of what it wrote: exit 1, {in_words(after.found)}'


def advised(path: Path, *options: str) -> list[str] | None:
    """Return the words of the command that `scan` prints, as a shell reads them; None where it prints none."""
    out = run("scan", path, *options).out
    _, heading, rest = out.partition("\n  what to do\n")
    if not heading:
        return None
    lines = rest.splitlines()
    last = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
    script = 'ckpt-doctor() { printf "%s\\0" "$@"; }\n' + "\n".join(lines[: last + 1])
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return shell.stdout.split("\0")[:-1]
