"""What gradients tell of the nets of `harm.py`: the table in `docs/evidence.md`.

`python benchmarks/harm_gradients.py [--folder FOLDER]` reads every file that was trained so far and asks of every layer
that was trained in one mode only, healthy ones among them, how it ran. Returns 1 if any answer is wrong. `--models`
asks of checkpoints of objects alone, with the `model.json` beside each as `--model`, and takes TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ckpt_doctor import training_modes
from ckpt_doctor.analysis import analyse
from ckpt_doctor.errors import CkptDoctorError
from ckpt_doctor.formats import open_checkpoint

if __package__:
    from benchmarks.harm_fix import numbers_of
else:
    from harm_fix import numbers_of

OF_OBJECTS = ("checkpoint", "tf_weights")
BY = ("slots", "weights", "scale")


def main() -> int:
    """Ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "ckpt-doctor-harm")
    parser.add_argument("--models", action="store_true")
    arguments = parser.parse_args()
    # `scan` asks only of layers whose statistics are missing or untouched.
    training_modes._is_asked = lambda layer: True
    counts: Counter[tuple[str, str]] = Counter()
    files, nets, wrong = 0, 0, []
    for path in sorted((arguments.folder / "nets").glob("*/labels.json")):
        nets += 1
        for label in json.loads(path.read_text("utf-8")):
            if label["file"] is None or (arguments.models and label["format"] not in OF_OBJECTS):
                continue
            file = arguments.folder / label["file"]
            try:
                checkpoint = open_checkpoint(file)
                if arguments.models:
                    from ckpt_doctor.capture.estimation import with_model

                    checkpoint = with_model(checkpoint, str(arguments.folder / label["model"]))
                inventory = analyse(checkpoint, values=False, verify=False).inventory
            except CkptDoctorError as error:
                print(f"{file}: {error}", file=sys.stderr)
                continue
            files += 1
            numbers = numbers_of(file, inventory.layers, label)
            for layer in inventory.layers:
                number = numbers[layer.name]
                if number is None or number >= len(label["layers"]):
                    continue
                truth = label["layers"][number]["trained_on"]
                if truth not in ("batch", "stored"):
                    continue
                told = layer.trained
                right = told is not None and told.ran_on == truth
                counts[truth, "not told" if told is None else told.by if right else "wrong"] += 1
                if told is not None and not right:
                    wrong.append(f"{file}, {layer.name}, trained on {truth}: {told.shown}")
    print(f"{nets} nets, {files} files\n")
    columns = "layers", "told rightly by slots", "by values of the bias", "by the scale", "not told", "told wrongly"
    print(f"| trained on | {' | '.join(columns)} |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for truth, words in (("batch", "batches"), ("stored", "stored 0/1")):
        numbers = [counts[truth, kind] for kind in (*BY, "not told", "wrong")]
        print(f"| {words} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    print("\n".join(["", *wrong]))
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
