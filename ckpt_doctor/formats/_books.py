"""The books of a search: which checkpoint a file belongs to, or why it was passed over."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from ckpt_doctor.coverage import KINDS, Coverage, PassedOver
from ckpt_doctor.formats._storage import is_remote, join, split


class _Entry(NamedTuple):
    """Something passed over; `path` is empty where only the number counts."""

    kind: str
    unopened: bool = False
    folder: bool = False
    path: str = ""


_OTHER = _Entry("other")


class Books:
    """An entry for every file, whatever it is called by and however often the search comes by."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[str, str]] = {}  # Owner, path as found.
        self._passed: dict[str, _Entry] = {}
        self._outside: set[str] = set()
        self._folders: set[str] = set()
        self._real: dict[str, str] = {}

    def searched(self, folder: str, real: str) -> None:
        """Enter a folder of which the names were listed; `real` is its path without symbolic links."""
        self._folders.add(real)
        self._real[folder] = real

    def claim(self, path: str, owner: str) -> None:
        """Enter a file as one of the checkpoint `owner`; a checkpoint counts before any reason to pass over."""
        key = self._key(path)
        self._claims.setdefault(key, (owner, path))
        self._passed.pop(key, None)

    def pass_over(self, path: str, kind: str, *, unopened: bool = False, folder: bool = False) -> None:
        """Enter a file or a folder as passed over for the reason `kind`, a key of `KINDS`."""
        key = self._key(path)
        if key not in self._claims:
            self._passed.setdefault(key, _OTHER if kind == "other" else _Entry(kind, unopened, folder, path))

    def leads_out(self, path: str) -> None:
        """Enter that a file is a link out of the given folder."""
        self._outside.add(self._key(path))

    def owner_of(self, path: str) -> str | None:
        """Return the checkpoint that a file was entered for."""
        claim = self._claims.get(self._key(path))
        return claim and claim[0]

    def coverage(self, checkpoints: Collection[str], without_verdict: Collection[str]) -> Coverage:
        """Return what the entries come to.

        Args:
            checkpoints: The checkpoints that were found, those without a verdict among them.
            without_verdict: Those that could not be judged: their files count as passed over.
        """
        failed = set(without_verdict)
        claimed = {key: owner for key, (owner, _) in self._claims.items() if owner not in failed}
        judged = len(set(claimed.values()) & set(checkpoints))
        lost = [_Entry("no-verdict", path=path) for owner, path in self._claims.values() if owner in failed]
        groups: dict[tuple[str, bool], list[_Entry]] = {}
        for entry in (*lost, *self._passed.values()):
            groups.setdefault((entry.kind, entry.unopened), []).append(entry)
        order = list(KINDS)
        passed_over = tuple(
            PassedOver(
                kind=kind,
                reason=KINDS[kind].reason,
                unopened=unopened,
                files=sum(not entry.folder for entry in entries),
                folders=sum(entry.folder for entry in entries),
                paths=tuple(entry.path for entry in entries if entry.path),
            )
            for (kind, unopened), entries in sorted(
                groups.items(), key=lambda item: (order.index(item[0][0]), not item[0][1])
            )
        )
        return Coverage(
            files=len(self._claims) + sum(not entry.folder for entry in self._passed.values()),
            judged=judged,
            parts=len(claimed) - judged,
            folders=len(self._folders),
            links_out=sum(key in self._outside for key in claimed),
            passed_over=passed_over,
        )

    def _key(self, path: str) -> str:
        """Return what is the same for two ways to one entry of a folder; a link and its target are two entries."""
        if is_remote(path):
            return path
        folder, name = split(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder or os.curdir)
        return join(self._real[folder], name) if name not in ("", ".", "..") else os.path.realpath(path)
