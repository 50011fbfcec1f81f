"""The boundary round h5py."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ckpt_doctor.formats._boundary import library_errors
from ckpt_doctor.formats._damaged import Damaged

# What h5py raises where HDF5 gives up (h5py/_errors.pyx maps HDF5's own codes to these), or cannot turn a type or a
# name into one of Python's. UnicodeDecodeError is a ValueError, NotImplementedError a RuntimeError. No MemoryError:
# sizes are checked before anything is read.
_RAISED = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, SystemError)


def hdf5_errors() -> AbstractContextManager[None]:
    """Return the boundary that is set round each call into h5py, and round nothing else.

    Raises:
        Damaged: HDF5 gives up on the bytes.
    """
    return library_errors(_RAISED, _damaged)


def structure(reason: str) -> Damaged:
    """Return the error for bytes that are not what the HDF5 specification says."""
    return Damaged("not-a-checkpoint", f"damaged HDF5 structure: {reason}")


def beyond_the_end(reason: str) -> Damaged:
    """Return the error for a place that the file does not reach."""
    return Damaged("truncated", f"data lie beyond the end of the file: {reason}")


def _damaged(error: Exception) -> Damaged:
    """Return what an exception of h5py says about the file; HDF5 tells kinds of damage apart by its words alone."""
    said = " ".join(str(error).split()) or type(error).__name__
    lower = said.lower()
    if "checksum" in lower or "fletcher" in lower or "filter returned failure" in lower:
        return Damaged("checksum-mismatch", f"stored bytes fail their check: {said}")
    if "truncated" in lower or "addr overflow" in lower or "eof" in lower.replace("eofs", "").split():
        return beyond_the_end(said)
    return structure(said)
