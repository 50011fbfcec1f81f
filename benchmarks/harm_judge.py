"""One framework's judge for `harm.py`: scans and repairs the files whose labels stand on stdin, a line for each."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harm_models import keras, restore

import ckpt_doctor
from ckpt_doctor.errors import CkptDoctorError

# What says that the statistics of a layer are wrong, and what says that they are right.
SICK = ("BN101", "BN102", "BN103", "BN201", "BN202")
RIGHT = ("BN304",)


def is_right(finding: Any, truth: dict[str, dict]) -> bool | None:
    """Return whether a finding on layers is right by how they were trained; None where nothing says so."""
    known = [
        label for name in finding.layers for own, label in truth.items() if name == own or name.endswith(f"/{own}")
    ]
    if not known:
        return None
    if finding.rule in ("BN101", "BN102"):
        return True
    if finding.rule in SICK:
        return (
            all(label["truth"] == "sick" for label in known)
            if all(one["truth"] != "unknown" for one in known)
            else None
        )
    if finding.rule in RIGHT:
        return all(label["trained_on"] == "stored" for label in known)
    return None


def repaired(label: dict, root: Path, folder: Path, test: Any, **options: Any) -> dict:
    """Repair a file, and return what became of it and its accuracy, as its framework serves it."""
    source = root / label["file"]
    output = folder / source.name
    model = {"model": str(root / label["model"])} if label["model"] else {}
    try:
        result = ckpt_doctor.fix(source, output=output, **model, **options)
    except CkptDoctorError as refusal:
        return {"outcome": "refused", "reason": str(refusal)[:300]}
    if not result.layers:
        return {"outcome": "nothing"}
    found = {
        "outcome": "repaired",
        "methods": sorted({one.method for one in result.layers}),
        "complete": result.complete,
    }

    def build() -> Any:
        return keras.models.model_from_json((root / label["model"]).read_text("utf-8"))

    answer = restore(label["format"], output, build)
    right = sum(
        int((answer(test["x"][start : start + 500]).argmax(-1) == test["y"][start : start + 500]).sum())
        for start in range(0, len(test["x"]), 500)
    )
    return found | {"accuracy": right / len(test["x"])}


def judged(label: dict, root: Path) -> dict:
    """Return what the package says of one file and makes of it."""
    truth = {layer["name"]: layer for layer in label["layers"]}
    [checkpoint] = ckpt_doctor.scan(root / label["file"]).checkpoints
    entry = {key: label[key] for key in ("file", "net", "way", "group", "framework", "format", "truth", "accuracy")}
    entry["findings"] = [
        {
            "rule": one.rule,
            "certainty": one.certainty,
            "severity": one.severity,
            "layers": list(one.layers),
            "right": is_right(one, truth),
        }
        for one in checkpoint.findings
    ]
    test = np.load(root / label["test"])
    data = str(root / label["data"])
    entry["fix"] = {}
    for mode, options in (("plain", {}), ("data", {"data": data}), ("unproven", {"data": data, "unproven": True})):
        if mode == "unproven" and (label["truth"] != "sick" or entry["fix"]["data"]["outcome"] == "repaired"):
            continue
        folder = Path(tempfile.mkdtemp(prefix="harm-"))
        try:
            entry["fix"][mode] = repaired(label, root, folder, test, **options)
        finally:
            shutil.rmtree(folder)
    return entry


def main() -> None:
    """Judge the files whose labels stand on stdin; print a result for each."""
    root = Path(sys.argv[1])
    for line in sys.stdin:
        label = json.loads(line)
        try:
            print(json.dumps(judged(label, root)), flush=True)
        # A file that the framework itself cannot load again must not keep the others from being judged.
        except Exception as error:
            print(f"{label['file']}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
