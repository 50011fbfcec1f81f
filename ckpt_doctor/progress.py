"""How far a long piece of work is: what the work says and the command line draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of how far it is.

    Attributes:
        stage: What is being done, in a few words: `reading the model`, `measuring`.
        done: Steps done in this stage.
        total: Steps in all; None where that is not known.
    """

    stage: str
    done: int
    total: int | None


# Called from the thread that works, between two steps; what it raises (Ctrl-C) ends the work.
Listener = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """Listen to nothing."""
