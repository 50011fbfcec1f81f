"""The one exception of everything here that reads bytes of unknown origin.

A parser raises it after a check of its own has failed; a boundary (`hdf5_errors`, `zip_errors`) turns what a library
raises into it. Who knows the file's name catches it and makes a `Damage` of it. It is not a `ValueError`: what Python
itself raises in our own code is a bug, and must never be caught along with damage.
"""

from __future__ import annotations

from ckpt_doctor.checkpoint import Damage, DefectKind


class Damaged(Exception):
    """Bytes are not what their format allows.

    Attributes:
        kind: The kind of `Damage`.
        reason: What was found and what was expected.
    """

    def __init__(self, kind: DefectKind, reason: str) -> None:
        self.kind = kind
        self.reason = reason
        super().__init__(reason)

    def at(self, where: str, variables: tuple[str, ...] = ()) -> Damage:
        """Return the same as a damage of the file, or the place in it, that is called `where`."""
        return Damage(self.kind, where, self.reason, variables)
