"""What a scan of a network of very many small layers takes, in times what `import numpy` takes.

Writes a bundle of batch-norm layers that only their names describe, each with the kernel of a convolution, then runs
every command several times in turn, so that the machine's moods meet all of them alike. It measures processor time of
whole processes, with the files in the page cache and the bytecode of every module cached.

What does not grow with the layers, starting up, is what the scan of a bundle of two layers takes.

Run: ``python benchmarks/scan_layers.py [--layers N] [--runs N]`` (Python with ckpt-doctor and TensorFlow).
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
from pathlib import Path

CHANNELS = 16
NUMPY = "`import numpy`"


def write_checkpoint(prefix, layers):
    """Write a bundle with TensorFlow; return the number of its variables."""
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    values = {"global_step": np.int64(40)}
    for layer in range(layers):
        scope = f"block{layer}"
        values[f"{scope}/bn/gamma"] = random.uniform(0.5, 1.5, CHANNELS).astype("f4")
        values[f"{scope}/bn/beta"] = random.normal(size=CHANNELS).astype("f4")
        values[f"{scope}/bn/moving_mean"] = random.normal(size=CHANNELS).astype("f4")
        values[f"{scope}/bn/moving_variance"] = random.uniform(0.5, 2, CHANNELS).astype("f4")
        values[f"{scope}/conv/kernel"] = random.normal(size=(1, 1, CHANNELS, CHANNELS)).astype("f4")
    names = sorted(values)
    tensors = [tf.constant(values[name]) for name in names]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return len(names)


def processor_seconds(command, environment, folder):
    """Return the processor seconds that a command takes from start to end; refuse one that fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1600)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        # Installed packages have cached bytecode; a development checkout may be told not to write any.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        write_checkpoint(f"{folder}/two", 2)
        variables = write_checkpoint(f"{folder}/many", options.layers)
        scan = [sys.executable, "-m", "ckpt_doctor", "scan"]
        many = f"`ckpt-doctor scan`, {options.layers:,} layers, {variables:,} variables"
        two = "`ckpt-doctor scan`, 2 layers: starting up"
        commands = {
            NUMPY: [sys.executable, "-c", "import numpy"],
            two: [*scan, f"{folder}/two"],
            many: [*scan, f"{folder}/many"],
        }
        times = {name: [] for name in commands}
        for _ in range(options.runs + 1):
            for name, command in commands.items():
                times[name].append(processor_seconds(command, environment, folder))
    # The first run warms up.
    times = {name: taken[1:] for name, taken in times.items()}
    times["the difference: the layers themselves"] = [a - b for a, b in zip(times[many], times[two], strict=True)]
    print(f"{options.runs} runs, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| processor time | median, s | fastest, s | times `import numpy`, median of the runs |")
    print("|---|---|---|---|")
    for name, taken in times.items():
        ratio = statistics.median(one / other for one, other in zip(taken, times[NUMPY], strict=True))
        print(f"| {name} | {statistics.median(taken):.2f} | {min(taken):.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
