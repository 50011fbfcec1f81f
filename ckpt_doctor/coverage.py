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
    "no-verdict": Kind("file without a verdict", "its checkpoint could not be judged", "files without a verdict"),
    "unreadable": Kind("unreadable path", "it cannot be read"),
    "safetensors": Kind("safetensors file", _FOREIGN),
    "pytorch": Kind("PyTorch file", _FOREIGN),
    "onnx": Kind("ONNX model", _FOREIGN),
    "tflite": Kind("TensorFlow Lite model", _FOREIGN),
    "frozen-graph": Kind("frozen graph", "its variables are constants of the graph; scan the checkpoint it came from"),
    "pickle": Kind("pickle", "reading it would run its code"),
    "other-model": Kind("model of another framework", _FOREIGN, "models of other frameworks"),
    "archive": Kind("archive", "ckpt-doctor does not open archives; unpack it"),
    "pointer": Kind("pointer", "the content is elsewhere; fetch it (git lfs pull, dvc pull, git annex get)"),
    "link-out": Kind("link to a folder outside", "it leads out of the scanned folder; pass its target as well"),
    "dangling-link": Kind("dangling link", "it leads nowhere"),
    "older": Kind(
        "file of older checkpoints", "`checkpoint` lists a later one; --all scans it", "files of older checkpoints"
    ),
    "left-over": Kind("left-over of ckpt-doctor", "an interrupted run left it", "left-overs of ckpt-doctor"),
    "hidden-file": Kind("hidden file", "its name begins with a dot"),
    "hidden-folder": Kind("hidden folder", "its name begins with a dot; pass its path to scan it"),
    "code-folder": Kind("folder of code", "a folder of this name holds no models", "folders of code"),
    "hub-blobs": Kind("blobs folder", "snapshots/ holds the same files by their names"),
    "seen-folder": Kind(
        "second name of a folder", "the folder is scanned under another name", "second names of folders"
    ),
    "special": Kind("pipe or device", "it is not a file", "pipes or devices"),
    "vanished": Kind("vanished file", "it was removed after its folder was listed"),
    "hdf5-data": Kind("HDF5 file without a model", "Keras did not write it", "HDF5 files without a model"),
    "other": Kind("other file", "neither its name nor its content is that of a model"),
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
