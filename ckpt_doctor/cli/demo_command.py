"""`ckpt-doctor demo`: a broken checkpoint, its diagnosis, its repair and the proof, on real files.

Without TensorFlow the demo shows the diagnosis, then raises `MissingExtra` (exit code 2, as `fix` does): a setup check
that runs the demo must not pass if the repair cannot run.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click

from ckpt_doctor.cli.completion import Files
from ckpt_doctor.cli.options import Command
from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.errors import BadRequest, MissingExtra

_MARK = ".written-by-ckpt-doctor-demo"
_CHECKPOINT = "model.ckpt-400"


@click.command(cls=Command)
@click.argument("folder", metavar="[FOLDER]", type=Files(), default="ckpt-doctor-demo")
@click.pass_context
def demo(context: click.Context, folder: str) -> int:
    """Write a broken checkpoint and its data to FOLDER, scan it, fix it and scan it again.

    The repair needs TensorFlow. If it is not installed, the demo ends after the first scan with exit code 2.
    """
    from ckpt_doctor.capture.runtime import tensorflow

    terminal: Terminal = context.obj
    target = Path(folder)
    _copy(target)
    broken, fixed = f"{folder}/{_CHECKPOINT}", f"{folder}/fixed/{_CHECKPOINT}"
    data = f"{folder}/calibration.npz"
    codes = [_step(context, "scan", broken)]
    try:
        tensorflow()
    except MissingExtra as error:
        raise MissingExtra(f"the demo stops before the repair: {error}") from error
    codes += [
        _step(context, "fix", broken, "--data", data, "--output", fixed, "--overwrite"),
        _step(context, "scan", fixed),
    ]
    if codes[1] == 2:
        return 2
    test = f"{folder}/test.npz"
    terminal.report("test accuracy in inference mode\n")
    for name, checkpoint in (
        ("broken", broken),
        ("repaired", fixed),
        ("twin whose saver kept everything", f"{folder}/healthy/{_CHECKPOINT}"),
    ):
        from ckpt_doctor.cli.demo_accuracy import accuracy

        terminal.report(f"  {100 * accuracy(checkpoint, test):5.1f} %  {name}\n")
    return 0 if codes == [1, 0, 0] else 1


def _copy(target: Path) -> None:
    """Copy what the demo needs to `target`, and refuse a folder that holds anything else."""
    if target.exists() and not (target / _MARK).exists():
        raise BadRequest(f"{target}: exists and was not written by `ckpt-doctor demo`; pass another folder")
    from importlib import resources  # Loads `tempfile` and `random`, for this command alone.

    with resources.as_file(resources.files("ckpt_doctor") / "demo") as source:
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    (target / _MARK).write_text("`ckpt-doctor demo` may overwrite this folder.\n", encoding="utf-8")
    (target / "fixed").mkdir(exist_ok=True)


def _step(context: click.Context, *arguments: str) -> int:
    """Run one command line as the user would, and show it."""
    terminal: Terminal = context.obj
    terminal.report(f"$ ckpt-doctor {shlex.join(arguments)}\n")
    group = context.find_root().command
    assert isinstance(group, click.Group)
    command = group.commands[arguments[0]]
    with command.make_context(arguments[0], list(arguments[1:]), parent=context.find_root()) as own:
        own.obj = terminal  # `demo -q` is quiet in every step
        code = command.invoke(own)
    terminal.report(f"(exit code {code})\n\n")
    return int(code)
