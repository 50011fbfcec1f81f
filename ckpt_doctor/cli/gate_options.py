"""What makes a scan a gate: what is known, what fails, and further reports of one run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_doctor.cli.terminal import Terminal
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import SEVERITIES
from ckpt_doctor.options import GateOptions, ScanOptions
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports.interface import Style

if TYPE_CHECKING:
    from ckpt_doctor.result import AuditResult


@dataclass(frozen=True)
class Gate:
    """How findings are held back, and where reports go.

    Attributes:
        options: The options of the scan.
        write_baseline: The file to write known findings to.
        reports: `FORMAT=FILE` texts.
    """

    options: GateOptions
    write_baseline: str | None = None
    reports: tuple[str, ...] = ()

    def check(self, report: str, output: str | None, paths: Sequence[str]) -> None:
        """Refuse, before anything is read, what could not be written at the end.

        Raises:
            BadRequest: A file cannot be written, or would overwrite a file that is being scanned.
            MissingExtra: A report needs what is not installed.
        """
        files = [("--output", output), ("--write-baseline", self.write_baseline)]
        wanted = {report}
        for text in self.reports:
            kind, _, name = text.partition("=")
            if kind not in REPORTS or not name:
                raise BadRequest(f"--report {text}: must be FORMAT=FILE with FORMAT one of {', '.join(REPORTS)}")
            wanted.add(kind)
            files.append(("--report", name))
        scanned = {os.path.realpath(path) for path in paths}
        for option, file in files:
            if file is None:
                continue
            from ckpt_doctor.formats.report_file import check_report

            if os.path.realpath(file) in scanned:
                raise BadRequest(f"{option} {file}: would overwrite a file that is being scanned")
            check_report(option, file)
        if "html" in wanted:
            from ckpt_doctor.reports.html import check_installed

            check_installed()
        explicit = (
            click.get_current_context().get_parameter_source("baseline") is click.core.ParameterSource.COMMANDLINE
        )
        if self.write_baseline is not None and self.options.baseline is not None and explicit:
            raise BadRequest("--baseline and --write-baseline contradict each other; pass only one")

    def scan_options(self, report: str) -> dict[str, Any]:
        """Return the options of `ckpt_doctor.scan` that this comes to."""
        kinds = {report, *(text.partition("=")[0] for text in self.reports)}
        options = self.options.only(ScanOptions) | {
            "keep_values": "html" in kinds,
            "strict": self.options.strict,
        }
        return options if self.write_baseline is None else options | {"baseline": None}

    def style(self, style: Style) -> Style:
        """Return how reports of a scan are to look."""
        return replace(style, root=Path.cwd().as_posix(), failing=failing(self.options.fail_on))

    def finish(self, terminal: Terminal, result: AuditResult, report: str) -> AuditResult:
        """Write the baseline and what goes beside the report; return the result with the new baseline applied."""
        if self.write_baseline is not None:
            result = self._baseline(terminal, result, self.write_baseline)
        for kind, file in (text.split("=", 1) for text in self.reports):
            terminal.report(REPORTS[kind](result, self.style(terminal.style(file))), file, "--report")
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if report == "github" and summary:
            page = REPORTS["markdown"](result, self.style(terminal.style(summary)))
            with Path(summary).open("a", encoding="utf-8", errors="backslashreplace") as file_of_step:
                file_of_step.write(page)
        return result

    def _baseline(self, terminal: Terminal, result: AuditResult, file: str) -> AuditResult:
        from ckpt_doctor import baseline
        from ckpt_doctor.suppression import hold_back

        if result.errors or not result.checkpoints:
            # It would forget what was known of the paths that gave no verdict.
            terminal.message(f"--write-baseline {file}: nothing written, because some paths could not be checked")
            return result
        terminal.report(baseline.render(result, file), file, "--write-baseline")
        written = baseline.read(file)
        terminal.message(f"{file}: {len(written.entries)} known findings written; scan with --baseline {file}")
        return hold_back(result, written)


def failing(fail_on: str) -> tuple[str, ...]:
    """Return the severities that fail a run with `--fail-on` of this value."""
    return () if fail_on == "never" else SEVERITIES[: SEVERITIES.index(fail_on) + 1]
