"""A bug of ours is never a finding: what our own code raises on a sound file comes through as it is.

Each case plants an exception in one of our parsers. Were it caught along with what a library raises on damaged bytes,
a sound file would be reported as damaged, or as sound without having been read.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_doctor import scan
from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import format_of, open_checkpoint
from ckpt_doctor.formats._boundary import library_errors, remember
from ckpt_doctor.formats._damaged import Damaged

FORMATS = Path(__file__).parents[2] / "fixtures" / "formats"
KERAS = FORMATS / "keras"
WHOLE, WEIGHTS, OLD = KERAS / "keras3_whole.h5", KERAS / "keras22_weights.h5", KERAS / "keras12_whole.h5"
BARE, ARCHIVE, DEFLATED = KERAS / "keras3.weights.h5", KERAS / "keras3.keras", KERAS / "deflated.keras"
SHARDED, BUNDLE, OBJECTS = KERAS / "keras3_sharded.weights.json", FORMATS / "tf1_bundle", FORMATS / "bundle_objects"
# Not all of its values are small.
LARGE_VALUES = FORMATS.parent / "tf1_training_only" / "full" / "model.ckpt-600"
SLICED, V1, SAVED = FORMATS / "bundle_shards", FORMATS / "v1", FORMATS / "saved_model_tf2"

# Module, attribute of it (dotted: of a class in it), sample.
PLACES = [
    ("keras_hdf5", "_order", WHOLE),
    ("keras_hdf5", "_weight_names", WEIGHTS),
    ("keras_hdf5", "_era", WEIGHTS),
    ("keras_hdf5", "_checkpoint", WHOLE),
    ("keras_hdf5", "walk", WHOLE),
    ("_hdf5", "describe", WHOLE),
    ("_hdf5", "_tensorflow_type", BARE),
    ("_hdf5", "natural_key", BARE),
    ("_hdf5", "_note", ARCHIVE),
    ("_hdf5_objects", "find", WHOLE),
    ("_hdf5_objects", "OpenFile.keep", BARE),
    ("_hdf5_objects", "OpenFile.take", BARE),
    ("_hdf5_objects", "follow", BARE),
    ("_hdf5_objects", "address_behind", BARE),
    ("_hdf5_objects", "open_object", WHOLE),
    ("_hdf5", "read_value", ARCHIVE),
    ("_hdf5", "read_numbers", WHOLE),
    ("_hdf5", "read_numbers", ARCHIVE),
    ("_hdf5_objects", "names_attribute", WHOLE),
    ("_hdf5_objects", "_names_in", WHOLE),
    ("_hdf5_texts", "Texts._messages", OLD),
    ("_hdf5_texts", "Texts._heap", OLD),
    ("_hdf5_texts", "_attribute_data", OLD),
    ("_hdf5_superblock", "_parse", WHOLE),
    ("_hdf5_guard", "GuardedStream._read", WHOLE),
    ("_hdf5_guard", "GuardedStream._read", BARE),
    ("_hdf5_guard", "GuardedStream._read", ARCHIVE),
    ("_hdf5_guard", "GuardedStream._read", SHARDED),
    ("_hdf5_guard", "check_heap", OLD),
    ("_hdf5_open", "layout_of", WHOLE),
    ("_hdf5_open", "_has_vars", BARE),
    ("_hdf5_file", "_whole", BARE),
    ("_hdf5_file", "Hdf5File.value", ARCHIVE),
    ("_streams", "LocalHandle.readinto", WHOLE),
    ("_streams", "LocalHandle.readinto", ARCHIVE),
    ("_streams", "LocalHandle.readinto", SHARDED),
    ("_streams", "Window.readinto", ARCHIVE),
    ("_streams", "MemoryHandle.readinto", DEFLATED),
    ("_local_file", "LocalFile.read", BUNDLE),
    ("_local_file", "LocalFile.chunks", LARGE_VALUES),
    ("_bundle_small", "Window.read", BUNDLE),
    ("_bundle_values", "decode", BUNDLE),
    ("_kept", "_held", WHOLE),
    ("_keras_store", "_name_of", BARE),
    ("_keras_store", "Store", ARCHIVE),
    ("_keras_shards", "_merge", SHARDED),
    ("_keras_shards", "_is_shards", SHARDED),
    ("_keras_shards", "_read_index", SHARDED),
    ("keras_v3", "_checkpoint", ARCHIVE),
    ("keras_v3", "_text_member", ARCHIVE),
    ("keras_v3", "_object", ARCHIVE),
    ("_zip", "check_member", ARCHIVE),
    ("_zip", "_data_offset", ARCHIVE),
    ("_zip", "Member._unpack", DEFLATED),
    ("_table", "_entries", BUNDLE),
    ("_table", "_entries", V1),
    ("_table", "decode_varint", BUNDLE),
    ("_table", "_handle", V1),
    ("_bundle_index", "_parse", BUNDLE),
    ("_bundle_index", "Record", BUNDLE),
    ("_bundle", "Bundle.variables", OBJECTS),
    ("_bundle", "Bundle._slices_of", SLICED),
    ("_bundle", "name_of", BUNDLE),
    ("_bundle_values", "_compare", BUNDLE),
    ("_bundle_values", "check_size", BUNDLE),
    ("_bundle_values", "_decode_strings", OBJECTS),
    ("_slices", "bounds", SLICED),
    ("_slices", "key_of", SLICED),
    ("_slices", "bounds", V1),
    ("_slice_values", "decode", V1),
    ("_slice_values", "first_field", V1),
    ("tensor_slices_v1", "_read_metadata", V1),
    ("tensor_slices_v1", "_check_slices", V1),
    ("_object_graph", "labels", OBJECTS),
    ("_meta_graph", "_after_field", BUNDLE),
    ("_meta_graph", "_after_field", SAVED),
    ("_dtypes", "find_numpy_dtype", BUNDLE),
]


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return put(tmp_path, request.param)


def put(folder: Path, sample: Path) -> str:
    """Copy a sample into a folder and return its path there."""
    if sample.is_dir():
        shutil.copytree(sample, folder, dirs_exist_ok=True)
        return str(folder / "sample")
    if sample == DEFLATED:
        with zipfile.ZipFile(ARCHIVE) as old, zipfile.ZipFile(folder / sample.name, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        return str(folder / sample.name)
    for file in sample.parent.glob(f"{sample.name.split('.')[0]}*"):
        shutil.copyfile(file, folder / file.name)
    return str(folder / sample.name)


def read_everything(path: str) -> None:
    """Open a checkpoint, verify it and read every value."""
    checkpoint = open_checkpoint(path)
    assert not checkpoint.damages
    assert not list(format_of(checkpoint).verify(checkpoint))
    for variable in checkpoint.variables:
        variable.read()


def plant(monkeypatch: pytest.MonkeyPatch, module: str, name: str, error: Exception) -> list[str]:
    """Let one of our functions raise `error`; what is returned is filled when it does."""
    raised: list[str] = []

    def planted(*_: Any, **__: Any) -> Any:
        raised.append(name)
        raise error

    full = f"ckpt_doctor.formats.{module}"
    monkeypatch.setattr(f"{full}.{name}", planted)
    # The modules that took the function by its name.
    for loaded in [each for each in sys.modules if each.startswith("ckpt_doctor.formats")]:
        if loaded != full and "." not in name and name in vars(sys.modules[loaded]) and name != "_checkpoint":
            owner = getattr(vars(sys.modules[loaded])[name], "__module__", full)
            if owner == full:
                monkeypatch.setattr(f"{loaded}.{name}", planted)
    return raised


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, ValueError, IndexError])
@pytest.mark.parametrize(
    ("module", "name", "place"),
    PLACES,
    indirect=["place"],
    ids=[f"{module}.{name}-{sample.name}" for module, name, sample in PLACES],
)
def test_a_bug_comes_through(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, place: str, kind: type[Exception]
) -> None:
    error = kind("planted")
    raised = plant(monkeypatch, module, name, error)
    with pytest.raises(kind) as caught:
        read_everything(place)
    assert raised
    assert caught.value is error
    assert_no_verdict(place, kind)


def assert_no_verdict(path: str, kind: type[Exception]) -> None:
    """Assert that a scan gives no verdict: it raises the bug, or says that it could not be done."""
    with contextlib.suppress(kind):
        result = scan([path])
        assert result.errors
        assert not result.checkpoints


def test_the_samples_are_sound(tmp_path: Path) -> None:
    for number, sample in enumerate(dict.fromkeys(sample for _, _, sample in PLACES)):
        (tmp_path / str(number)).mkdir()
        read_everything(put(tmp_path / str(number), sample))


@pytest.mark.parametrize("sample", [WHOLE, BARE, ARCHIVE, SHARDED], ids=lambda sample: sample.name)
def test_an_interrupt_in_the_stream_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Path
) -> None:
    path = put(tmp_path, sample)
    plant(monkeypatch, "_hdf5_guard", "GuardedStream._read", KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        read_everything(path)


@pytest.mark.parametrize("after", [0, 1, 5, 20, 60])
def test_a_bug_in_the_stream_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    from ckpt_doctor.formats._hdf5_guard import GuardedStream

    path = put(tmp_path, WHOLE)
    count = 0
    real: Callable[..., None] = GuardedStream._read

    def read(self: GuardedStream, view: memoryview) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise TypeError("planted")
        real(self, view)

    monkeypatch.setattr(GuardedStream, "_read", read)
    with pytest.raises(TypeError, match="planted"):
        read_everything(path)


def test_the_boundary_turns_what_a_library_raises_into_damage() -> None:
    def damaged(error: Exception) -> Damaged:
        return Damaged("truncated", f"library: {error}")

    def call(error: Exception | None, in_a_stream: Exception | None = None) -> None:
        with library_errors((KeyError,), damaged):
            if in_a_stream is not None:
                remember(in_a_stream)
            if error is not None:
                raise error

    with pytest.raises(Damaged, match="library: 'x'"):
        call(KeyError("x"))
    with pytest.raises(TypeError):
        call(TypeError())
    # Whatever a library makes of an exception in one of our streams: another one, or none.
    for made in (KeyError(), None):
        with pytest.raises(ZeroDivisionError):
            call(made, in_a_stream=ZeroDivisionError())
    # What was remembered where no boundary was is not told of the next call.
    remember(ZeroDivisionError())
    call(None)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"/a/vars": [1]}}, "has no weight_map"),
        ({"weight_map": [["/a/vars", "x"]]}, "has no weight_map"),
        ([], "expected the index of sharded weights"),
    ],
)
def test_an_index_of_shards_is_checked_and_not_tried(tmp_path: Path, index: Any, message: str) -> None:
    path = tmp_path / "m.weights.json"
    path.write_text(json.dumps(index, indent=30))
    with pytest.raises(CkptDoctorError, match=message):
        open_checkpoint(path)


def test_a_receipt_that_is_nested_too_deeply_is_passed_over(tmp_path: Path) -> None:
    path = put(tmp_path, WHOLE)
    (tmp_path / "receipt.json").write_text('{"schema": "ckpt-doctor/fix/1", "a": ' + "[" * 100_000)
    assert not scan([path]).errors
