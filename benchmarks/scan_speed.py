"""How long `ckpt-doctor scan` of a 100 MB checkpoint takes as a whole process, beside TensorFlow's own ways.

Writes the variables of a ResNet-50 (53 batch-norm layers) as TensorFlow's own saver does, then runs every command
several times in turn, so that the machine's moods meet all of them alike, and prints medians as a table. Files are
in the page cache: it measures programs, not disks.

Run: ``python benchmarks/scan_speed.py [--runs N]`` (Python with ckpt-doctor and TensorFlow).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Channels in the middle, channels out, blocks: He et al., arXiv:1512.03385, table 1.
STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))


def variables():
    """Yield name and value of every variable of a ResNet-50, with statistics as training leaves them."""
    import numpy as np

    random = np.random.default_rng(0)

    def convolution(name, size, inputs, outputs):
        yield f"{name}/kernel", random.normal(0, 0.05, (size, size, inputs, outputs)).astype("f4")
        for role, centre in (("gamma", 1.0), ("beta", 0.0), ("moving_mean", 0.0), ("moving_variance", 1.0)):
            spread = np.abs(random.normal(centre, 0.2, outputs)) if centre else random.normal(0, 0.2, outputs)
            yield f"{name}/bn/{role}", spread.astype("f4")

    yield from convolution("conv1", 7, 3, 64)
    before = 64
    for stage, (middle, after, blocks) in enumerate(STAGES, start=2):
        for block in range(blocks):
            name = f"conv{stage}_{block}"
            if block == 0:
                yield from convolution(f"{name}/shortcut", 1, before, after)
            yield from convolution(f"{name}/a", 1, before, middle)
            yield from convolution(f"{name}/b", 3, middle, middle)
            yield from convolution(f"{name}/c", 1, middle, after)
            before = after
    yield "logits/kernel", random.normal(0, 0.05, (2048, 1000)).astype("f4")
    yield "logits/bias", np.zeros(1000, "f4")


def write_checkpoint(prefix):
    """Write the bundle and its graph with TensorFlow; return its size in bytes."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, value in variables():
            variable = v1.get_variable(name, value.shape)
            fed = v1.placeholder(tf.float32, value.shape)
            session.run(variable.assign(fed), {fed: value})
        v1.train.Saver().save(session, prefix, write_meta_graph=False)
    return sum(path.stat().st_size for path in Path(prefix).parent.glob(f"{Path(prefix).name}.*"))


def seconds(command):
    """Return wall and processor seconds that a command takes from start to end; refuse one that fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    python = sys.executable
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/model.ckpt-0"
        size = write_checkpoint(prefix)
        inspect = "tensorflow.python.tools.inspect_checkpoint"
        commands = {
            "`ckpt-doctor scan` (every checksum, every value)": [python, "-m", "ckpt_doctor", "scan", prefix],
            "`ckpt-doctor scan --quick`": [python, "-m", "ckpt_doctor", "scan", "--quick", prefix],
            "`ckpt-doctor ls`": [python, "-m", "ckpt_doctor", "ls", prefix],
            "`python -c pass`": [python, "-c", "pass"],
            "`import tensorflow`, nothing else": [python, "-c", "import tensorflow"],
            "`inspect_checkpoint` (names and shapes)": [python, "-m", inspect, f"--file_name={prefix}"],
            "`inspect_checkpoint --all_tensors`": [python, "-m", inspect, f"--file_name={prefix}", "--all_tensors"],
        }
        times = {name: [] for name in commands}
        for _ in range(runs + 1):
            for name, command in commands.items():
                times[name].append(seconds(command))
    # The first run warms up.
    wall = {name: [wall for wall, _ in taken[1:]] for name, taken in times.items()}
    processor = {name: statistics.median(used for _, used in taken[1:]) for name, taken in times.items()}
    ours = next(iter(commands))
    print(f"{size / 1e6:.0f} MB, {runs} runs, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| whole process | median, s | fastest, s | processor, s | wall, times `scan` | processor, times `scan` |")
    print("|---|---|---|---|---|---|")
    for name in commands:
        median = statistics.median(wall[name])
        columns = [f"{median:.2f}", f"{min(wall[name]):.2f}", f"{processor[name]:.2f}"]
        columns += [f"{median / statistics.median(wall[ours]):.1f}", f"{processor[name] / processor[ours]:.1f}"]
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
