"""The verdict of `scan`, with the policy of the project, for what runs it without a command line: pytest, Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ckpt_doctor.cli import configuration
from ckpt_doctor.cli.fields import with_jobs
from ckpt_doctor.cli.gate_options import Gate
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.cli.scan_command import exit_code_by, scan
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import GateOptions, options_of

if TYPE_CHECKING:
    from ckpt_doctor.result import AuditResult


@dataclass(frozen=True)
class Policy:
    """Options of `scan`: those given, else those of the environment, else those of configuration files.

    Attributes:
        options: What came of them.
    """

    options: GateOptions

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Policy:
        """Return the policy for options by their names, in Python or on the command line with `_` for `-`.

        What is given counts, false and empty values too: `strict=False` under `strict = true` is not strict.

        Raises:
            BadRequest: An option, or a key of a configuration file, means nothing, has a wrong value or names no rule.
        """
        from ckpt_doctor.selection import Selection
        from ckpt_doctor.suppression import path_ignores

        named = GateOptions.named(given)
        options = GateOptions.of(_of_the_project() | named)
        # Now and not at the first scan, which may be hours of training later.
        Selection.of(options.select, options.ignore, options.severity)
        path_ignores(options.per_path_ignores)
        return cls(options)

    def judge(self, paths: Sequence[str]) -> tuple[AuditResult, int]:
        """Return the result of a scan, and the exit code that the command line would have.

        Raises:
            BadRequest: An option names a file that is not there.
        """
        from ckpt_doctor.audit import scan as scan_paths

        result = scan_paths(paths, **Gate(self.options).scan_options("text"))
        return result, exit_code_by(result, self.options)


def _of_the_project() -> dict[str, Any]:
    """Return the options that environment and configuration files give, and all others at their defaults.

    They reach the command line through click, so they are read through it here too, behind a command without options.
    """
    try:
        # The command wants a path; the ones to scan come later.
        context = scan.make_context("scan", ["."], default_map=configuration.load(ckpt_doctor_group).get("scan"))
    except click.ClickException as error:
        raise BadRequest(error.format_message()) from error
    given = with_jobs(context.params)
    return {option.name: given[option.parameter] for option in options_of(GateOptions)}
