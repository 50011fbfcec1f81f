"""A Keras callback that scans what training has just saved, and warns at the first sick save, not after the deploy.

    from ckpt_doctor.keras_callback import check_saves

    model.fit(x, y, callbacks=[keras.callbacks.ModelCheckpoint("saves/{epoch}.weights.h5"), check_saves("saves")])

It stands after whatever saves. It watches files, not callbacks, so it sees every way of saving: `ModelCheckpoint`,
`tf.train.Checkpoint`, a saver of one's own.
"""

from __future__ import annotations

import glob
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_doctor.capture.keras_base import callback_base
from ckpt_doctor.cli.policy import Policy
from ckpt_doctor.finding import fingerprint
from ckpt_doctor.formats._natural import in_natural_order
from ckpt_doctor.formats.discovery import discover
from ckpt_doctor.options import GateOptions, takes
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


class SickCheckpointWarning(UserWarning):
    """A checkpoint that was just saved is sick."""


@takes(GateOptions)
def check_saves(path: str | Path, *, stop: bool = False, every_seconds: float = 30.0, **options: Any) -> Any:
    """Return a callback that scans every checkpoint at `path` once it is saved.

    It looks at the end of each epoch and of training, and in between, for saves within an epoch, at most every
    `every_seconds`. A finding is warned of once, not after every save. Options that are not given come from
    the environment and from configuration files, as on the command line.

    Args:
        path: A folder, file, prefix or glob, or the path of a `ModelCheckpoint` as it is (`saves/{epoch}.keras`).
        stop: End training when a checkpoint is sick.
        every_seconds: The least time between two looks within an epoch.
        **options: The options of the command line, see `ckpt_doctor.options.GateOptions`.

    Raises:
        BadRequest: There is no such option, or it cannot have this value.
        MissingExtra: Keras is not installed.
    """
    watch = _Watch(str(path), Policy.of(options))
    base: Any = callback_base()

    class CheckSaves(base):  # type: ignore[misc] # which Keras it is shows when it runs
        """Scans what was saved; see `check_saves`."""

        def __init__(self) -> None:
            super().__init__()
            self._last_look = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            del batch, logs
            if time.monotonic() - self._last_look >= every_seconds:
                self._look()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            del epoch, logs
            self._look()

        def on_train_end(self, logs: Any = None) -> None:
            del logs
            self._look()

        def _look(self) -> None:
            for report in watch.news():
                warnings.warn(SickCheckpointWarning(report), stacklevel=2)
                if stop:
                    self.model.stop_training = True
            self._last_look = time.monotonic()

    return CheckSaves()


@dataclass
class _Watch:
    """What was seen so far.

    Attributes:
        path: Where checkpoints appear.
        policy: What counts as sick.
        seen: Checkpoint to the size and time of its files when it was scanned.
        warned: Fingerprints of findings, whatever the checkpoint, that were warned of.
    """

    path: str
    policy: Policy
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        # What lies there before training is not its doing.
        self.seen = {path: _stamp(path) for path in self._checkpoints()}

    def news(self) -> Iterator[str]:
        """Yield a report for every checkpoint that was saved since the last look and has something new wrong."""
        for path in self._checkpoints():
            stamp = _stamp(path)
            if self.seen.get(path) == stamp:
                continue
            self.seen[path] = stamp
            result, code = self.policy.judge([path])
            if code and self._is_new(result):
                errors = "".join(f"no verdict: {error.path}: {error.message}\n" for error in result.errors)
                report = REPORTS["text"](result, Style(detail="less"))
                yield f"the checkpoint that was just saved is broken\n{report}{errors}"

    def _is_new(self, result: AuditResult) -> bool:
        found = {fingerprint("", finding) for one in result.checkpoints for finding in one.findings}
        found |= {error.message for error in result.errors}
        found |= {place.reason for one in result.checkpoints for place in one.not_judged if self.policy.options.strict}
        if self.policy.options.strict:
            found |= {one.kind for one in result.coverage.unopened}
        new = bool(found - self.warned)
        self.warned |= found
        return new

    def _checkpoints(self) -> tuple[str, ...]:
        pattern = _PLACEHOLDER.sub("*", self.path)
        if pattern == self.path and Path(pattern).is_dir():
            return discover([pattern], all_listed=True).checkpoints
        # A prefix is no file; its index is, and is written last.
        files = [file for end in ("", ".index") for file in in_natural_order(glob.glob(f"{pattern}{end}"))]  # noqa: PTH207
        return discover(files, all_listed=True).checkpoints if files else ()


def _stamp(path: str) -> tuple[int, int]:
    """Return the size of all files of a checkpoint and the time of the last change of any."""
    target = Path(path)
    files = (
        list(target.rglob("*")) if target.is_dir() else [target, *target.parent.glob(f"{glob.escape(target.name)}.*")]
    )
    stats = [file.stat() for file in files if file.is_file()]
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)
