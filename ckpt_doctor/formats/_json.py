"""JSON out of files of unknown origin."""

from __future__ import annotations

import json
from typing import Any

from ckpt_doctor.formats._damaged import Damaged


def parsed(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        Damaged: It is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    # UnicodeDecodeError, and the one for a number of more than 4,300 digits, are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise Damaged("not-a-checkpoint", f"is not JSON: {error}") from error


def parsed_or_none(text: str | bytes | None) -> Any:
    """Return what a JSON text holds; None where it is absent or not JSON."""
    if text is None:
        return None
    try:
        return parsed(text)
    except Damaged:
        return None
