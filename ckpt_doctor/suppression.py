"""What is found and not to be reported: a baseline, and rules to be ignored for some paths.

A suppressed finding stays in the result, apart from the others, and is counted. A suppression that nothing needs any
more is reported, because it would hide the next finding of its kind; only where the scan has really looked: of a
checkpoint that was not scanned, or a rule that did not run, nothing is said.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_doctor.baseline import Baseline, relative
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import SEVERITIES, Finding, Severity
from ckpt_doctor.result import AuditResult, CheckpointResult, SuppressedFinding, UnusedSuppression
from ckpt_doctor.selection import codes_of


@dataclass(frozen=True)
class PathIgnore:
    """One entry of `per-path-ignores`.

    Attributes:
        pattern: A path, a folder (and all below it) or a glob, from the working folder; `*` matches slashes too.
        codes: The codes of the rules not to report there.
    """

    pattern: str
    codes: frozenset[str]

    def concerns(self, path: str) -> bool:
        """Return whether the checkpoint at `path` is one of those meant."""
        if "://" not in path:
            path = _absolute(path)
        pattern = self.pattern if "://" in self.pattern else _absolute(self.pattern)
        return path == pattern or path.startswith(f"{pattern}/") or fnmatch.fnmatchcase(path, pattern)


def path_ignores(patterns: Mapping[str, Sequence[str]]) -> tuple[PathIgnore, ...]:
    """Return `per-path-ignores` from patterns and the codes, names or beginnings of codes to ignore there.

    Raises:
        BadRequest: One of them means no rule.
    """
    found = []
    for pattern, texts in patterns.items():
        try:
            found.append(PathIgnore(pattern.rstrip("/"), frozenset(codes_of(texts))))
        except BadRequest as error:  # noqa: PERF203 - the message names the entry
            raise BadRequest(f"per-path-ignores of {pattern}: {error}") from error
    return tuple(found)


def suppress(
    result: AuditResult, ignores: Sequence[PathIgnore], baseline: Baseline | None, looked_for: Collection[str]
) -> AuditResult:
    """Return `result` with its findings parted into those to report and those not to.

    Args:
        result: Of a scan.
        ignores: Rules to be ignored for some paths; they come before the baseline.
        baseline: Findings that are known, or None.
        looked_for: Codes of the rules that would have found what there is; of others nothing is called unused.
    """
    checkpoints = tuple(_part(checkpoint, ignores, baseline) for checkpoint in result.checkpoints)
    result = dataclasses.replace(result, checkpoints=checkpoints)
    unused = [*_unused_ignores(result, ignores, looked_for)]
    if baseline is not None:
        unused += _unused_entries(result, baseline, looked_for)
    return dataclasses.replace(result, unused_suppressions=tuple(unused))


def hold_back(result: AuditResult, baseline: Baseline) -> AuditResult:
    """Return `result` with those of its reported findings suppressed that `baseline` holds."""
    parted = (_part(checkpoint, (), baseline) for checkpoint in result.checkpoints)
    return dataclasses.replace(
        result,
        checkpoints=tuple(
            dataclasses.replace(new, suppressed=(*old.suppressed, *new.suppressed))
            for old, new in zip(result.checkpoints, parted, strict=True)
        ),
    )


def at_least(result: AuditResult, severity: Severity) -> AuditResult:
    """Return `result` without the findings, suppressed ones too, that are less severe than `severity`."""
    reported = SEVERITIES[: SEVERITIES.index(severity) + 1]
    return dataclasses.replace(
        result,
        checkpoints=tuple(
            dataclasses.replace(
                checkpoint,
                findings=tuple(finding for finding in checkpoint.findings if finding.severity in reported),
                suppressed=tuple(one for one in checkpoint.suppressed if one.finding.severity in reported),
            )
            for checkpoint in result.checkpoints
        ),
    )


def _part(checkpoint: CheckpointResult, ignores: Sequence[PathIgnore], baseline: Baseline | None) -> CheckpointResult:
    concerned = [ignore for ignore in ignores if ignore.concerns(checkpoint.path)]
    known = {entry.fingerprint for entry in baseline.entries} if baseline is not None else set()
    reported: list[Finding] = []
    suppressed: list[SuppressedFinding] = []
    for finding in checkpoint.findings:
        ignore = next((one for one in concerned if finding.rule in one.codes), None)
        if ignore is not None:
            suppressed.append(SuppressedFinding(finding, "per-path-ignores", ignore.pattern))
        elif baseline is not None and baseline.fingerprint(checkpoint.path, finding) in known:
            suppressed.append(SuppressedFinding(finding, "baseline", baseline.file))
        else:
            reported.append(finding)
    return dataclasses.replace(checkpoint, findings=tuple(reported), suppressed=tuple(suppressed))


def _unused_ignores(
    result: AuditResult, ignores: Sequence[PathIgnore], looked_for: Collection[str]
) -> Iterator[UnusedSuppression]:
    for ignore in ignores:
        concerned = [checkpoint for checkpoint in result.checkpoints if ignore.concerns(checkpoint.path)]
        used = {
            one.finding.rule
            for checkpoint in concerned
            for one in checkpoint.suppressed
            if one.by == "per-path-ignores" and one.where == ignore.pattern
        }
        # A range (`BN2`) is needed while one of its rules is.
        if concerned and not used and all(_judged(one, code, looked_for) for one in concerned for code in ignore.codes):
            yield UnusedSuppression(
                "per-path-ignores", ignore.pattern, ignore.pattern, ", ".join(sorted(ignore.codes)), None
            )


def _unused_entries(
    result: AuditResult, baseline: Baseline, looked_for: Collection[str]
) -> Iterator[UnusedSuppression]:
    scanned = {relative(checkpoint.path, baseline.file): checkpoint for checkpoint in result.checkpoints}
    found = {
        baseline.fingerprint(checkpoint.path, finding)
        for checkpoint in result.checkpoints
        for finding in (*checkpoint.findings, *(one.finding for one in checkpoint.suppressed))
    }
    for entry in baseline.entries:
        if entry.fingerprint in found:
            continue
        checkpoint = scanned.get(entry.path)
        gone = checkpoint is None and _is_gone(baseline.path_of(entry))
        if gone or (checkpoint is not None and _judged(checkpoint, entry.rule, looked_for)):
            yield UnusedSuppression("baseline", baseline.file, entry.path, entry.rule, entry.layer)


def _judged(checkpoint: CheckpointResult, code: str, looked_for: Collection[str]) -> bool:
    """Return whether a rule that found nothing in this checkpoint means that there is nothing.

    Of a checkpoint that could not be opened only the damage is known.
    """
    return code in looked_for and (bool(checkpoint.evidence) or code.startswith("CK"))


def _is_gone(path: str) -> bool:
    """Return whether a local path, or any file of a prefix, is not there."""
    if "://" in path:
        return False
    target = Path(path)
    try:
        return not target.exists() and not any(target.parent.glob(f"{glob.escape(target.name)}[.-]*"))
    except (OSError, ValueError):  # No file can have such a name: it is too long, or holds a null byte.
        return True


def _absolute(path: str) -> str:
    # Links stay as they are: a pattern means the names that the user sees.
    return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100 - pathlib's absolute() keeps `..`
