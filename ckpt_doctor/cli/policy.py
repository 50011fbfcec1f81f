"""The verdict of `scan`, with the policy of the project, for what runs it without a command line: pytest, Keras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from ckpt_doctor.cli import configuration
from ckpt_doctor.cli.gate_options import Gate
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.cli.scan_command import audit_options, exit_code, scan
from ckpt_doctor.errors import BadRequest

if TYPE_CHECKING:
    from ckpt_doctor.result import AuditResult


@dataclass(frozen=True)
class Policy:
    """Options of `scan`: those given, else those of the environment, else those of configuration files.

    Attributes:
        gate: How findings are held back.
        options: How to scan, for `ckpt_doctor.scan`.
        strict: Whether what was not judged fails.
    """

    gate: Gate
    options: Mapping[str, Any]
    strict: bool

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Policy:
        """Return the policy for options by their names on the command line, with `_` for `-`.

        Raises:
            BadRequest: An option, or a key of a configuration file, means nothing.
        """
        argv = [word for name, value in given.items() for word in _words(name, value)]
        try:
            # The command wants a path; the ones to scan come later.
            context = scan.make_context(
                "scan", [*argv, "--", "."], default_map=configuration.load(ckpt_doctor_group).get("scan")
            )
        except click.ClickException as error:
            raise BadRequest(error.format_message()) from error
        values = dict(context.params)
        gate = Gate(**{field.name: values.pop(field.name) for field in fields(Gate)})
        strict = values.pop("strict")
        for of_the_command_line in ("paths", "report", "output"):
            del values[of_the_command_line]
        return cls(gate, audit_options(values), strict)

    def judge(self, paths: Sequence[str]) -> tuple[AuditResult, int]:
        """Return the result of a scan, and the exit code that the command line would have.

        Raises:
            BadRequest: An option names no rule, or a file that is not there.
        """
        from ckpt_doctor.audit import scan as scan_paths

        result = scan_paths(paths, **self.options, **self.gate.scan_options("text"))
        return result, exit_code(result, fail_on=self.gate.fail_on, strict=self.strict)


def _words(name: str, value: Any) -> Iterator[str]:
    """Yield an option as words of a command line."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        if value:
            yield option
    elif isinstance(value, Mapping):
        for key, one in value.items():
            joined = one if isinstance(one, str) else ",".join(one)
            yield from (option, f"{key}={joined}")
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from (option, str(one))
    elif value is not None:
        yield from (option, str(value))
