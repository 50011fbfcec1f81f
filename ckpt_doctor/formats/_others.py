"""What a file is that this package does not read: a model of another framework, an archive, a pointer, or other.

Names decide what is worth a look, the first bytes decide where names lie: every framework's file is met under `.bin`,
`.ckpt` or no extension at all. Files whose name says picture, sound, table, text or source code are never opened.

Source of the signatures: safetensors README ("Format"); torch/serialization.py (`MAGIC_NUMBER`, and `data.pkl` as the
first member of an archive); TensorFlow Lite schema.fbs (`file_identifier "TFL3"`); docs/gguf.md of ggml; git-lfs
docs/spec.md; git-annex "pointer file"; dvc.org "`.dvc` files".
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ckpt_doctor.formats._foreign import GIT_LFS, is_msgpack_map, is_tensorflow_lite
from ckpt_doctor.formats._storage import is_file, is_folder, is_remote, join

HEAD_BYTES = 4096


class Other(NamedTuple):
    """What a file that is passed over is.

    Attributes:
        kind: A key of `ckpt_doctor.coverage.KINDS`.
        unopened: Whether a model may be in it.
    """

    kind: str
    unopened: bool = False


_OTHER = Other("other")
_PLAIN = frozenset(
    # Pictures, sound and video.
    "apng avif bmp eps gif heic ico jpeg jpg jxl png ppm psd svg tga tif tiff webp "
    "aac aif aiff flac m4a mid midi mp3 ogg opus wav wma avi flv m4v mkv mov mp4 mpeg mpg webm "
    # Text, tables, source code and what is made of it.
    "adoc bib cfg conf css csv diff doc docx env htm html ini ipynb json jsonl license lock log markdown md ods odt "
    "org patch pbtxt pdf ppt pptx properties proto rst rtf tex toml tsv txt vocab xls xlsx xml yaml yml "
    "asm bat c cc cmake cpp cs cu cuh cxx go h hh hpp hxx ipy java jl js jsx kt lua m makefile mk pl php ps1 r rb rs "
    "scala sh sql swift ts tsx vue zsh class dll dylib egg exe jar lib o obj py pyc pyd pyi pyo pyx so whl "
    # Data of tables and records.
    "arrow avro db feather lmdb mdb npy npz orc parquet rec sqlite sqlite3 tfrecord tfrecords "
    # Fonts.
    "eot otf ttf woff woff2".split()
)
_BY_EXTENSION = {
    "safetensors": "safetensors",
    "pt": "pytorch",
    "pth": "pytorch",
    "pt2": "pytorch",
    "ptl": "pytorch",
    "onnx": "onnx",
    "tflite": "tflite",
    "pkl": "pickle",
    "pickle": "pickle",
    "joblib": "pickle",
    "dill": "pickle",
    # MXNet and Paddle, Core ML, Caffe, llama.cpp, Flax, Torch 7, TensorRT, Darknet.
    **dict.fromkeys(
        "params pdparams mlmodel caffemodel gguf ggml msgpack flax t7 engine trt weights mar ocdbt".split(),
        "other-model",
    ),
}
_ARCHIVE = re.compile(r".+\.(zip|tar|tgz|tbz2?|txz|tzst|7z|rar|tar\.(gz|bz2|xz|zst|lz4|z))", re.IGNORECASE)
_COMPRESSED = re.compile(r"(?P<inside>.+)\.(gz|bz2|xz|zst|lz4|z)", re.IGNORECASE)
# Weights of TensorFlow.js, beside a `model.json`.
_BROWSER_SHARD = re.compile(r".*shard-?\d+of\d+(\.bin)?")
_EVENTS = "events.out.tfevents."
_TORCH_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_ANNEX = "/annex/objects/"
_DVC_PATH = re.compile(rb"^\s+path: *['\"]?([^\r\n'\"]+)", re.MULTILINE)


def is_plain(name: str) -> bool:
    """Return whether a file of this name holds no model, so that it need not be opened."""
    return _extension(name) in _PLAIN or name.startswith(_EVENTS)


def may_be_model(name: str) -> bool:
    """Return whether the name of a file is one that models have, archives of them included."""
    inside = _COMPRESSED.fullmatch(name)
    return not is_plain(inside["inside"] if inside else name)


def is_annexed(target: str) -> bool:
    """Return whether a symbolic link to `target` is one of git-annex; without a target its content is elsewhere."""
    return _ANNEX in f"/{target}"


def kind_of(folder: str, name: str, head: bytes) -> Other:
    """Return what a file is that no format of ours reads.

    Args:
        folder: Its folder.
        name: Its name.
        head: Its first bytes, `HEAD_BYTES` where it has so many; empty where it was not opened (remote files).
    """
    if is_plain(name):
        return _OTHER
    if name.endswith(".dvc"):
        return _dvc(folder, head)
    if head.startswith(GIT_LFS) or head.startswith(_ANNEX.encode()):
        return Other("pointer", may_be_model(name))
    by_bytes = _by_bytes(head)
    if by_bytes is not None:
        return Other(by_bytes, True)
    extension = _extension(name)
    if extension == "pb":
        # A `GraphDef` begins with its first node, field 1.
        return Other("frozen-graph", True) if head[:1] == b"\n" or not head else _OTHER
    if name == "checkpoint" and is_msgpack_map(head):
        return Other("other-model", True)
    by_name = _BY_EXTENSION.get(extension) or ("other-model" if _BROWSER_SHARD.fullmatch(name) else None)
    if by_name is not None:
        return Other(by_name, True)
    if _ARCHIVE.fullmatch(name):
        return Other("archive", True)
    inside = _COMPRESSED.fullmatch(name)
    if inside is not None:
        return Other("archive", True) if may_be_model(name) else _OTHER
    if extension in ("h5", "hdf5", "he5", "hdf") or head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Other("hdf5-data")
    return _OTHER


def _by_bytes(head: bytes) -> str | None:
    """Return the kind that the first bytes prove, whatever the name."""
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        # The name of the first member stands at byte 30.
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return (
            "pytorch" if first.endswith((b"/data.pkl", b"/version", b"/.format_version", b"/byteorder")) else "archive"
        )
    if head.startswith(_TORCH_PICKLE):
        return "pytorch"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if is_tensorflow_lite(head):
        return "tflite"
    if head.startswith((b"GGUF", b"ggjt", b"ggml")):
        return "other-model"
    if head.startswith((b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")) or head[257:262] == b"ustar":
        return "archive"
    return None


def _dvc(folder: str, head: bytes) -> Other:
    """Return what a `.dvc` file is: a pointer, unless what it points at is there and seen by itself."""
    targets = [match.decode("utf-8", "replace").strip() for match in _DVC_PATH.findall(head)]
    if is_remote(folder):
        return Other("pointer", True)
    absent = [name for name in targets if not (is_file(join(folder, name)) or is_folder(join(folder, name)))]
    if targets and not absent:
        return _OTHER
    return Other("pointer", any(map(may_be_model, absent)) or not targets)


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""
