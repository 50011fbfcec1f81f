"""What estimating the statistics of a ResNet-50 costs, beside TensorFlow's own pass in training mode.

All run in one process over the same random images, one after the other and several rounds, so that the machine's moods
meet all of them alike; medians are printed. Everything that a first run needs is included every time: TensorFlow traces
its function anew, the engine loads the model, traces it, plans its levels and opens its session. TensorFlow's pass is
`model(x, training=True)` in a `tf.function`, without gradients.

Run: ``python benchmarks/estimation_speed.py [--images 512] [--rounds 3]`` (Python with ckpt-doctor and TensorFlow, on
Linux: the peak of memory is read from /proc).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

from ckpt_doctor import graphs
from ckpt_doctor.batchnorm import take_inventory
from ckpt_doctor.capture.data import read_samples
from ckpt_doctor.capture.engine import Engine
from ckpt_doctor.capture.keras_door import load
from ckpt_doctor.formats import open_checkpoint
from ckpt_doctor.options import DataOptions

EVERYTHING = 1 << 40


def forget_peak() -> None:
    """Give freed memory back, and let the kernel count the peak from now on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> float:
    """Return a field of the process's status, in GB: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"/proc/self/status has no {field}")


def tensorflows_own(path: Path, images: Path, batch_size: int) -> None:
    """Pass over the data in training mode."""
    model = keras.models.load_model(path)
    data = np.load(images, mmap_mode="r")
    step = tf.function(lambda x: model(x, training=True))
    for start in range(0, len(data), batch_size):
        step(tf.constant(np.ascontiguousarray(data[start : start + batch_size])))


def ours(path: Path, images: Path, batch_size: int, *, whole: bool, cache_memory: int) -> None:
    """Estimate all layers."""
    checkpoint = open_checkpoint(path)
    inventory = take_inventory(checkpoint, graphs.describe(checkpoint))
    names = [layer.name for layer in inventory.layers]
    with ExitStack() as kept:
        program = load(checkpoint, inventory.layers, names).program
        samples = read_samples(DataOptions(data=(str(images),), batch_size=batch_size), program.inputs, kept)
        engine = kept.enter_context(Engine(program, {}, cache_memory=cache_memory))
        found, left = engine.measure(samples, names, whole=whole)
    assert len(found) == len(names)
    assert not left


def whole_repair(path: Path, images: Path, cache_memory: str) -> tuple[float, float]:
    """Return seconds and peak of memory in GB of `ckpt-doctor fix` as a process of its own, proof included."""
    output = path.with_name("repaired.keras")
    command = [sys.executable, "-m", "ckpt_doctor", "fix", path, "--data", images, "--layers", "*", "--overwrite"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*map(str, command), "--output", str(output), "--cache-memory", cache_memory], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"fix ended with status {status}")
    return time.monotonic() - started, used.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, images = Path(folder) / "resnet50.keras", Path(folder) / "images.npy"
        keras.utils.set_random_seed(0)
        shape = (options.size, options.size, 3)
        keras.applications.ResNet50(weights=None, input_shape=shape).save(path)
        data = np.lib.format.open_memmap(images, "w+", np.float32, (options.images, *shape))
        random = np.random.default_rng(0)
        for number in range(options.images):
            data[number] = random.random(shape, dtype=np.float32)
        data.flush()
        del data
        # First: until it is replaced by the command, a new process counts as large as this one is.
        repairs = {size: whole_repair(path, images, size) for size in ("0", "500MB", "2GB")}
        # TensorFlow keeps memory that it once had, so the greediest come last, and peaks are those of the first round.
        ways = {
            "TensorFlow, training=True": lambda: tensorflows_own(path, images, options.batch_size),
            "training": lambda: ours(path, images, options.batch_size, whole=False, cache_memory=EVERYTHING),
            "layerwise, cache on disk": lambda: ours(path, images, options.batch_size, whole=True, cache_memory=0),
            "layerwise, 500 MB in memory": lambda: ours(
                path, images, options.batch_size, whole=True, cache_memory=500 * 10**6
            ),
            "layerwise, cache in memory": lambda: ours(
                path, images, options.batch_size, whole=True, cache_memory=EVERYTHING
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, float] = dict.fromkeys(ways, 0.0)
        for round_number in range(options.rounds):
            for name, way in ways.items():
                keras.utils.clear_session()
                forget_peak()
                before = memory("VmRSS")
                started = time.monotonic()
                way()
                seconds[name].append(time.monotonic() - started)
                if round_number == 0:
                    peaks[name] = memory("VmHWM")
                print(
                    f"  round {round_number + 1}: {name}: {seconds[name][-1]:.1f} s, {before:.2f} GB before", flush=True
                )
    reference = statistics.median(seconds["TensorFlow, training=True"])
    print(f"\nResNet-50, {options.images} images of {options.size} pixels, batches of {options.batch_size},")
    print(f"medians of {options.rounds}; TensorFlow {tf.__version__}, Keras {keras.__version__},")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print(f"{'':<30}{'seconds':>9}{'ratio':>8}{'peak of the process':>22}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:<30}{median:>9.1f}{median / reference:>8.2f}{peaks[name]:>19.2f} GB")
    print(f"\n{'ckpt-doctor fix --cache-memory':<32}{'seconds':>9}{'peak':>12}")
    for size, (wall, peak) in repairs.items():
        print(f"{size:<32}{wall:>9.1f}{peak:>9.2f} GB")


if __name__ == "__main__":
    main()
