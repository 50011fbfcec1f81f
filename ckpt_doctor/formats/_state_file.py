"""The text file `checkpoint` of a folder: which checkpoints a training run has kept.

A `CheckpointState` in protobuf's text form. Paths are relative to the folder or absolute; absolute ones of another
machine are wrong after a copy, and TensorFlow then finds nothing.
"""

# Paths are strings, as in `_storage`.
# ruff: noqa: PTH117
from __future__ import annotations

import os
import re
from typing import NamedTuple

from ckpt_doctor.formats import _foreign
from ckpt_doctor.formats._storage import is_file, is_remote, join, read_all

_LATEST = "model_checkpoint_path"
_ALL = "all_model_checkpoint_paths"
_FIELD = re.compile(rf'^\s*({_LATEST}|{_ALL})\s*:\s*(?:"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\')', re.MULTILINE)
_ESCAPE = re.compile(r"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
# A state file has one line a kept checkpoint; something larger is none.
_MOST_BYTES = 16 << 20


class State(NamedTuple):
    """What a state file says of the checkpoints in its folder.

    Attributes:
        latest: Prefix, within the folder, of the latest that is there; None where it is not.
        older: Prefixes of the others that it lists and that are there.
        problem: Why TensorFlow finds nothing through it; None where it does.
    """

    latest: str | None
    older: tuple[str, ...]
    problem: str | None


def read_state(folder: str, names: list[str]) -> State | None:
    """Read the state file of a folder.

    Args:
        folder: The folder.
        names: Names of the files in it.

    Returns:
        What it says; None for a train state of Flax, T5X or Orbax, which has the same name.
    """
    data = read_all(join(folder, "checkpoint"))[:_MOST_BYTES]
    if _foreign.is_msgpack_map(data[:16]):
        return None
    text = data.decode("utf-8", "replace")
    fields = [(match[1], _unescape(match[2] or match[3] or "")) for match in _FIELD.finditer(text)]
    if not fields:
        what = _foreign.describe(data[:4096])
        says = f"is {what}" if what and what != "a text file" else "does not name a checkpoint"
        return State(None, (), f"{says}; TensorFlow does not find a latest checkpoint through it")
    present = set(names)
    latest = next((value for field, value in fields if field == _LATEST), "")
    here = {value: _within(value, present) for _, value in fields}
    listed = dict.fromkeys(found for value in here if (found := here[value]) is not None)
    found = here.get(latest)
    problem = None
    if not _is_there(folder, latest, present):
        problem = f"names {latest or 'nothing'} as the latest checkpoint, which does not exist"
        if found is not None:
            problem += f"; {found} in this folder is used instead"
        elif listed:
            # Of those that are listed and there, the last was saved last.
            found = next(reversed(listed))
            problem += f"; {found}, the last one that it lists, exists"
    return State(found, tuple(prefix for prefix in listed if prefix != found), problem)


def _is_there(folder: str, path: str, present: set[str]) -> bool:
    if not path:
        return False
    if os.path.isabs(path) or "/" in path:
        place = path if os.path.isabs(path) or is_remote(path) else join(folder, path)
        return is_file(f"{place}.index") or is_file(place)
    return f"{path}.index" in present or path in present


def _within(path: str, present: set[str]) -> str | None:
    """Return the name in the folder that a listed path means, also where it is the path of another machine."""
    name = re.split(r"[/\\]", path)[-1]
    return name if f"{name}.index" in present or (name in present and name != "checkpoint") else None


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "01234567":
            return chr(int(code, 8))
        if code[0] == "x" and len(code) > 1:
            return chr(int(code[1:], 16))
        return {"n": "\n", "t": "\t", "r": "\r"}.get(code, code)

    decoded = _ESCAPE.sub(replace, text)
    try:
        # Octal escapes are bytes of UTF-8.
        return decoded.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return decoded
