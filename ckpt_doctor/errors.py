"""What can go wrong, one tree.

A sick file is a `Finding`, never one of these. These say that the work could not be done: the file is damaged where it
must be read, the request cannot be met, a repair was refused. A leaf exists because a caller would act differently.
Messages say where, what was found, what was expected, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_doctor.checkpoint import Damage, FormatName


class CkptDoctorError(Exception):
    """Everything that a caller of ckpt-doctor may catch."""


class BadRequest(CkptDoctorError):
    """The request itself cannot be met: an absent path, a wrong option, data that do not fit the model."""


class UnsupportedFormat(CkptDoctorError):
    """A path is recognised as a checkpoint neither by its bytes nor by its name."""


class UnreadableCheckpoint(CkptDoctorError):
    """A checkpoint is damaged so far that nothing of it can be judged.

    Attributes:
        path: The checkpoint as the user would name it.
        format: Its format, as in the JSON report.
        damages: What is wrong, one entry for each defect.
    """

    def __init__(self, path: str, format: FormatName, damages: tuple[Damage, ...]) -> None:  # noqa: A002 - the field's name in the JSON
        self.path = path
        self.format = format
        self.damages = damages
        super().__init__("; ".join(f"{damage.where}: {damage.message}" for damage in damages))


class MissingExtra(CkptDoctorError):
    """An optional dependency is needed and not installed; the message holds the pip command."""


class RepairRefused(CkptDoctorError):
    """A repair was asked for that would be wrong, or cannot be made; nothing was written."""


class VerificationFailed(CkptDoctorError):
    """What was written is not what was planned; it was never put in place, and nothing was changed."""


def tell_written(error: BaseException, path: str) -> None:
    """Add to an exception that a checkpoint was already written when it came.

    Exit code 2 says that nothing was written; whoever ends the program by this exception must not say so.
    """
    error.__dict__.setdefault(_WRITTEN, path)


def written_before(error: BaseException | None) -> str | None:
    """Return the checkpoint that was written before an exception came, or one that it came from; None: none was."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _WRITTEN in error.__dict__:
            return str(error.__dict__[_WRITTEN])
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


_WRITTEN = "_ckpt_doctor_written"
