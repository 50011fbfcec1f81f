"""Where words go: reports to stdout or a file, messages and progress to stderr, colour only on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from ckpt_doctor.cli import streams
from ckpt_doctor.progress import Listener, Progress, unheard
from ckpt_doctor.reports.interface import Style

_PAPER_WIDTH = 80
_WIDEST = 120


@dataclass(frozen=True)
class Terminal:
    """What the user wants to see.

    Attributes:
        quiet: Only what is wrong.
        verbose: Nothing shortened, and the debug log.
        no_color: No colours, even on a terminal, and whatever the environment says.
        no_progress: No progress bar, even on a terminal.
    """

    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    no_progress: bool = False

    def style(self, output: str | None = None) -> Style:
        """Return how a report is to look that goes to `output`, or to stdout."""
        screen = output is None and streams.is_terminal(sys.stdout)
        width = min(shutil.get_terminal_size((_PAPER_WIDTH, 24)).columns, _WIDEST) if screen else _PAPER_WIDTH
        color = output is None and self._has_color(sys.stdout)
        return Style(width=width, color=color, detail="more" if self.verbose else "less" if self.quiet else "usual")

    def report(self, text: str, output: str | None = None, option: str = "--output") -> None:
        """Write a report to the file `output`, which an option names, or to stdout.

        A reader who has seen enough (`| head`) does not change the verdict.
        """
        if output is not None:
            from ckpt_doctor.formats.report_file import write_report

            write_report(option, output, text)
            return
        streams.write_report(text)

    def message(self, text: str) -> None:
        """Tell the user something that belongs to no report."""
        streams.to_stderr(f"ckpt-doctor: {text}")

    @contextmanager
    def progress(self) -> Iterator[Listener]:
        """Give a listener that draws a bar with the time left while work goes on, if there is a terminal to draw on."""
        if self.quiet or self.no_progress or not streams.is_terminal(sys.stderr):
            yield unheard
            return
        from rich import progress as bars
        from rich.console import Console

        with bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True, no_color=not self._has_color(sys.stderr)),
            transient=True,
        ) as bar:
            tasks: dict[str, bars.TaskID] = {}

            def show(progress: Progress) -> None:
                if progress.stage not in tasks:
                    for task in tasks.values():
                        bar.update(task, visible=False)
                    tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total)
                bar.update(tasks[progress.stage], completed=progress.done, total=progress.total)

            yield show

    def _has_color(self, stream: TextIO | None) -> bool:
        """Return whether what goes to a stream is coloured: the first of these that is set decides.

        Sources: no-color.org, force-color.org, bixense.com/clicolors; where they contradict each other, what CPython
        (Lib/_colorize.py: `can_colorize`) and pytest do: NO_COLOR counts before FORCE_COLOR.
        """
        given = os.environ.get
        if self.no_color or given("NO_COLOR") or not streams.is_open(stream):
            return False
        if given("FORCE_COLOR") or given("CLICOLOR_FORCE", "0") not in ("", "0"):
            return True
        return given("CLICOLOR") != "0" and given("TERM") != "dumb" and streams.is_terminal(stream)
