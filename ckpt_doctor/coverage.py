"""What a scan looked at, and what it passed over and why.

The books balance: every file that the search of a folder lists is one by which a checkpoint was judged, another part of
a checkpoint, or passed over under exactly one kind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A reason to pass something over.

    Attributes:
        noun: What one such file or folder is called.
        reason: Why it is not scanned, and what to do where something can be done.
        plural: Its plural where an `s` at the end does not make it.
    """

    noun: str
    reason: str
    plural: str = ""

    def counted(self, number: int) -> str:
        """Return `1 archive`, `2 archives`, `1,234 archives`."""
        return f"{number:,} {self.noun if number == 1 else self.plural or f'{self.noun}s'}"


_FOREIGN = "ckpt-doctor does not read this format"
# By the names that the JSON has, in the order in which reports list them.
KINDS: dict[str, Kind] = {
    "no-verdict": Kind("file without a verdict", "no verdict on the checkpoint", "files without a verdict"),
    "unreadable": Kind("unreadable path", "no permission, or the storage fails"),
    "safetensors": Kind("safetensors file", _FOREIGN),
    "pytorch": Kind("PyTorch file", _FOREIGN),
    "onnx": Kind("ONNX model", _FOREIGN),
    "tflite": Kind("TensorFlow Lite model", _FOREIGN),
    "frozen-graph": Kind("frozen graph", "the variables are constants of the graph; scan the checkpoint"),
    "pickle": Kind("pickle", "loading a pickle runs code"),
    "other-model": Kind("model of another framework", _FOREIGN, "models of other frameworks"),
    "archive": Kind("archive", "ckpt-doctor does not open archives; unpack and scan"),
    "pointer": Kind("pointer", "the content is elsewhere; fetch it (git lfs pull, dvc pull, git annex get)"),
    "link-out": Kind("link to a folder outside", "outside of the scanned folder; pass the target as well"),
    "dangling-link": Kind("dangling link", "no such target"),
    "older": Kind(
        "file of older checkpoints",
        "the state file lists a later checkpoint; --all scans all",
        "files of older checkpoints",
    ),
    "left-over": Kind(
        "left-over of ckpt-doctor", "an interrupted run left it, or a run is in progress", "left-overs of ckpt-doctor"
    ),
    "hidden-file": Kind("hidden file", "name begins with a dot"),
    "hidden-folder": Kind("hidden folder", "name begins with a dot; pass the path to scan it"),
    "code-folder": Kind("folder of code", "folders of this name hold no models", "folders of code"),
    "hub-blobs": Kind("blobs folder", "snapshots/ holds the same files by their names"),
    "seen-folder": Kind("second name of a folder", "scanned under another name", "second names of folders"),
    "special": Kind("pipe or device", "not a file", "pipes or devices"),
    "vanished": Kind("vanished file", "removed after the folder was listed"),
    "hdf5-data": Kind("HDF5 file without a model", "not written by Keras", "HDF5 files without a model"),
    "other": Kind("other file", "not a model by name or content"),
}


@dataclass(frozen=True)
class PassedOver:
    """What was not scanned, for one reason.

    Attributes:
        kind: A key of `KINDS`.
        reason: Why it was not scanned.
        unopened: Whether a model may be in it, so that `--strict` fails.
        files: Number of files.
        folders: Number of folders; what is inside them is not counted.
        paths: All of them in the order of the search; none for the kind `other`, of which there may be very many.
    """

    kind: str
    reason: str
    unopened: bool
    files: int
    folders: int
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """The books of a scan: `files` is the sum of `judged`, `parts` and the files passed over.

    Attributes:
        files: Files seen, in searched folders or because they were named.
        judged: One file for each checkpoint that got a verdict.
        parts: The other files of checkpoints: shards, graphs, assets, `checkpoint` files, what is left of a save.
        folders: Folders searched.
        links_out: Of the files of checkpoints, those that are links out of the given folder.
        passed_over: Everything else, by kind.
    """

    files: int = 0
    judged: int = 0
    parts: int = 0
    folders: int = 0
    links_out: int = 0
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def unopened(self) -> tuple[PassedOver, ...]:
        """What may hold a model and was not opened."""
        return tuple(one for one in self.passed_over if one.unopened)
