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
