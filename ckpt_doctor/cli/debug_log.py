"""The log of the package on stderr: warnings, and with `-v` everything.

Only the command line sets up logging, and only the package's own logger: whoever imports the package decides on the
root logger and on handlers, and hears nothing without them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_doctor.cli.streams import to_stderr

LOGGER = "ckpt_doctor"


class _ToStderr(logging.Handler):
    """Writes to what `sys.stderr` is at the time: a progress bar puts a stream of its own in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a line."""
        try:
            to_stderr(self.format(record))
        except Exception:  # noqa: BLE001 - logging's contract: a lost line stops no work
            self.handleError(record)


@contextmanager
def debug_log(shown: bool) -> Iterator[None]:
    """Show warnings while a command runs, and the debug log if it is to be `shown`; then the logger is as it was."""
    logger = logging.getLogger(LOGGER)
    if any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        yield
        return
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if shown else "ckpt-doctor: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if shown else logging.WARNING)
    # Libraries (absl among them) put handlers on the root logger, which would show each line again.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
