"""Precision and recall of every rule, over the fixtures and the published checkpoints, as a Markdown table.

    python benchmarks/precision.py [CORPUS]

What is right is what people wrote down: the lists of the zoo, the `expected.json` of the other fixtures, the labels of
the published checkpoints' manifest. A finding counts once for each layer that it names, or once for the checkpoint
where it names none.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ckpt_doctor import scan
from ckpt_doctor.rules import RULES

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
CORPUS = Path(os.environ.get("CKPT_DOCTOR_CORPUS") or ROOT.parent / "shared" / "corpus")

Expected = dict[str, set[str | None]]


def zoo() -> Iterator[tuple[str, Expected]]:
    """Yield the samples of the zoo with the findings that must be made, code to layers."""
    for listing in sorted((FIXTURES / "zoo").glob("*.json")):
        for name, entry in json.loads(listing.read_text("utf-8")).items():
            yield str(listing.with_suffix("") / name), {code: set(of) for code, of in entry["findings"].items()}


def others() -> Iterator[tuple[str, Expected]]:
    """Yield the other fixtures."""
    for listing in sorted(FIXTURES.glob("*/expected.json")):
        for name, entry in json.loads(listing.read_text("utf-8"))["checkpoints"].items():
            expected: Expected = {}
            for finding in entry["findings"]:
                expected.setdefault(finding["rule"], set()).update(finding["layers"] or [None])
            yield str(listing.parent / name), expected


def published(corpus: Path) -> Iterator[tuple[str, Expected | None]]:
    """Yield the published checkpoints; None where the label is about the container only."""
    for row in json.loads((corpus / "MANIFEST.json").read_text("utf-8")):
        path = str(corpus / row["id"])
        if row["verdict"] in ("healthy", "negative_example"):
            yield path, {}
        elif row["id"] in ("A018", "A023"):
            # Their graphs show that they were trained in inference mode.
            names = {layer.name for layer in scan([path]).checkpoints[0].batch_norm_layers}
            yield path, {"BN304": {name for name in names if "batch_normalization" not in name}}
        elif row["id"] in ("A174", "A175"):
            number = row["stats"]["at_initial_values"]
            scope = "ConvBNEluDr" if row["id"] == "A174" else "ConvBNEluDr_5layer"
            layers: set[str | None] = {f"{scope}/batchnormalization_{n}" for n in range(2, 2 + number)}
            yield path, {"BN201": layers}
        elif row["id"] == "A162":
            layers = {layer.name for layer in scan([path]).checkpoints[0].batch_norm_layers}
            assert len(layers) == row["n_bn_layers"]
            yield path, {"BN101": layers, "BN102": layers}
        else:
            yield path, None


def count(cases: Iterator[tuple[str, Expected | None]], totals: Counter[tuple[str, str]]) -> int:
    """Add what is found, missed and made up, by rule, to `totals`; return the number of checkpoints."""
    number = 0
    for path, expected in cases:
        number += 1
        found: Expected = {}
        for checkpoint in scan([path]).checkpoints:
            for finding in checkpoint.findings:
                found.setdefault(finding.rule, set()).update(finding.layers or (None,))
        wanted = expected or {}
        for code in found.keys() | wanted.keys():
            if code.startswith("CK"):
                continue
            mine, theirs = found.get(code, set()), wanted.get(code, set())
            if mine != theirs:
                print(
                    f"{path}: {code}: found {sorted(map(str, mine))}, expected {sorted(map(str, theirs))}",
                    file=sys.stderr,
                )
            totals[code, "true"] += len(mine & theirs)
            totals[code, "false"] += len(mine - theirs)
            totals[code, "missed"] += len(theirs - mine)
    return number


def main() -> None:
    """Print the table."""
    corpus = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    columns: list[tuple[str, Counter[tuple[str, str]], int]] = []
    fixtures: Counter[tuple[str, str]] = Counter()
    number = count(zoo(), fixtures) + count(others(), fixtures)
    columns.append(("fixtures", fixtures, number))
    if corpus.is_dir():
        found: Counter[tuple[str, str]] = Counter()
        columns.append(("published", found, count(published(corpus), found)))
    print("| rule | " + " | ".join(f"{name} ({n}): found, precision, recall" for name, _, n in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for rule in RULES:
        if rule.code.startswith("CK"):
            continue
        cells = []
        for _, totals, _ in columns:
            true, false, missed = (totals[rule.code, key] for key in ("true", "false", "missed"))
            precision = f"{true / (true + false):.0%}" if true + false else "-"
            recall = f"{true / (true + missed):.0%}" if true + missed else "-"
            cells.append(f"{true}, {precision}, {recall}")
        print(f"| {rule.code} {rule.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
