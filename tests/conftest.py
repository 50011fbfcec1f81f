"""Where the published checkpoints are, and the rewriting of assertions in the shared suites."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.reading_once import graphs_read_once, models_loaded_once  # noqa: F401 - fixtures

# What the program loads when it writes, loaded before a test counts or breaks calls of `os`: pytest keeps the bytecode
# of our modules, and renames the file as it does.
for _module in ("_bundle_writer", "_hdf5_edit", "_hdf5_weight_names", "recovery", "staging"):
    importlib.import_module(f"ckpt_doctor.formats.{_module}")

pytest.register_assert_rewrite("tests.formats.contract")


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of published checkpoints; tests that need it skip where it is not."""
    folder = Path(os.environ.get("CKPT_DOCTOR_CORPUS") or Path(__file__).parents[2] / "shared" / "corpus")
    if not folder.is_dir():
        pytest.skip("the published checkpoints are not here (CKPT_DOCTOR_CORPUS)")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs TensorFlow where it is not; nothing imports it before the first such test runs."""
    if item.get_closest_marker("tensorflow") is not None:
        imported_before = "tensorflow" in sys.modules
        pytest.importorskip("tensorflow")
        if not imported_before:
            # A million objects that never go away: each full collection that walks them takes half a second.
            for also in ("keras", "tf_keras"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(also)
            gc.collect()
            gc.freeze()


@pytest.fixture
def tf() -> ModuleType:
    import tensorflow

    return tensorflow
