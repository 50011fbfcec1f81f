"""The tables of `harm.py`, in Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

# Half a point: a repair that costs more made the file worse.
WORSE = 0.005
# BN202 speaks of averages of which at least so much is still the start.
COLD = 0.02
OUTCOMES = ("repaired", "part", "nothing", "refused", "left", "crash")
# Rules that say that the statistics of a layer are wrong, or should be.
_STATISTICS = ("BN201", "BN202", "BN302", "BN305")


# Optimizers whose slots hold a first moment, from which the scale of a layer without a bias tells.
_FIRST_MOMENTS = ("adam", "adamw", "nadam", "lamb", "legacy_adam", "momentum")


def can_be_judged(row: dict) -> bool:
    """Return whether one of the two tests of gradients applies to a file whose statistics were never updated."""
    by_scale = row["has_slots"] and row.get("scale", True) and row["optimizer"] in _FIRST_MOMENTS
    return row["group"] == "never" and row["trained_on"] == "batch" and (row["has_bias"] or by_scale)


def made_worse(row: dict, attempt: str) -> float | None:
    """Return by how much an attempt lowered the accuracy, or None where nothing was written."""
    done = row["attempts"].get(attempt, {})
    if "unreadable" in done:
        return 1.0
    return row["before"] - done["after"] if "after" in done else None


def is_right(row: dict, finding: dict, number: int | None) -> bool | None:
    """Return whether a finding is right about a layer, by the labels; None where they do not say."""
    if row["truth"] == "unknown":
        return None
    rule = finding["rule"]
    if number is None:
        layers = row["of_layers"]
    elif number < len(row["of_layers"]):
        layers = [row["of_layers"][number]]
    else:
        return None
    trained_on = {layer["trained_on"] for layer in layers}
    sick = any(layer["truth"] == "sick" for layer in layers)
    if rule in ("BN101", "BN102", "BN301"):
        return row["statistics"] == "missing"
    if rule == "BN202":
        return row["initial_share"] >= COLD
    if rule in ("BN201", "BN302"):
        return sick and row["initial_share"] == 0
    if rule == "BN304":
        return trained_on == {"stored"} or (row["group"] == "healthy" and "stored" in trained_on)
    return sick if finding["severity"] != "note" else None


def judgements(rows: Iterable[dict]) -> Iterable[tuple[dict, dict, bool]]:
    """Yield every finding of `scan` with its file and whether it is right; once for each layer that it names."""
    for row in rows:
        for finding in row["scan"]["findings"]:
            for number in finding["layers"] or [None]:
                right = is_right(row, finding, number)
                if right is not None:
                    yield row, finding, right


def _table(header: list[str], lines: Iterable[list[object]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines),
        "",
    ]


def _outcomes(rows: list[dict], heading: str, key: Callable[[dict], str]) -> list[str]:
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    lines: list[list[object]] = []
    for name, of in [*groups.items(), ("all", rows)]:
        cells: list[object] = [name, len(of)]
        for attempt in ("plain", "data"):
            counts = Counter(row["attempts"][attempt]["outcome"] for row in of)
            worse = sum((made_worse(row, attempt) or 0) > WORSE for row in of)
            cells += [
                counts["repaired"] + counts["part"], counts["refused"] + counts["left"], counts["nothing"], worse
            ]  # fmt: skip
        cells.append(sum(row["attempts"].get("unproven", {}).get("outcome") == "repaired" for row in of))
        lines.append(cells)
    header = [heading, "files"]
    for attempt in ("without data", "with data"):
        header += [f"{attempt}: repaired", "refused", "nothing to repair", "worse"]
    return _table([*header, "only with `--unproven`"], lines)


def report(rows: list[dict], counts: dict[str, int]) -> str:
    """Return all tables.

    Args:
        rows: What `harm_fix.py` wrote, all nets.
        counts: Numbers to open with, by what they count.
    """
    known = [row for row in rows if row["truth"] != "unknown"]
    sick = [row for row in known if row["truth"] == "sick"]
    healthy = [row for row in known if row["truth"] == "healthy"]
    tried = [(row, attempt) for row in rows for attempt in ("plain", "data")]
    worse = [(row, attempt) for row, attempt in tried if (made_worse(row, attempt) or 0) > WORSE]
    repaired = [row for row in sick if row["attempts"]["data"]["outcome"] == "repaired"]
    judgeable = [row for row in sick if can_be_judged(row)]
    judged = [row for row in judgeable if row["attempts"]["data"]["outcome"] == "repaired"]
    errors = [
        row for row in healthy
        if row["statistics"] == "stored" and any(one["severity"] == "error" for one in row["scan"]["findings"])
    ]  # fmt: skip
    moved = [(row["before"], row["attempts"]["data"]["after"]) for row in repaired if "before" in row]
    before, after = (sum(column) / max(1, len(moved)) for column in zip(*moved, strict=True)) if moved else (0, 0)
    needing = [row for row in sick if row["attempts"].get("unproven", {}).get("outcome") == "repaired"]
    found = list(judgements(rows))
    false_proven = [(row, one) for row, one, right in found if one["certainty"] == "proven" and not right]
    crashes = [(row, name) for row in rows for name, done in row["attempts"].items() if done["outcome"] == "crash"]
    summary = [[name, number] for name, number in counts.items()] + [
        ["files that `fix` was tried on", len(rows)],
        ["made worse by more than half a point, by `fix` without `--unproven`", len(worse)],
        ["broken files, and repaired with data", f"{len(sick)}, {len(repaired)}"],
        [
            "never updated, where a test of gradients applies; and repaired with data",
            f"{len(judgeable)}, {len(judged)}",
        ],
        ["mean accuracy of the repaired, before and after", f"{before:.3f}, {after:.3f}"],
        ["broken files that are repaired only with `--unproven`", len(needing)],
        ["healthy files, and those with an error in `scan`", f"{len(healthy)}, {len(errors)}"],
        ["findings called proven that are wrong", len(false_proven)],
        ["crashes", len(crashes)],
    ]
    lines = _table(["", ""], summary)
    lines += _outcomes(rows, "trained", lambda row: f"{row['group']}: {row['way']}")
    lines += _outcomes(rows, "format", lambda row: f"{row['framework']} {row['format']}")
    precision: dict[tuple[str, str], Counter[bool]] = defaultdict(Counter)
    for _, finding, right in found:
        precision[finding["rule"], finding["certainty"]][right] += 1
    lines += _table(
        ["rule", "certainty", "right", "wrong", "precision"],
        [
            [rule, certainty, count[True], count[False], f"{count[True] / count.total():.1%}"]
            for (rule, certainty), count in sorted(precision.items())
        ],
    )
    return "\n".join(lines)


def wrong_cases(rows: list[dict]) -> str:
    """Return a list of everything that went wrong, a line each, with the path."""
    lines = []
    for row in rows:
        where = f"{row['file']} ({row['trained_on']}, bias {row['has_bias']}, {row['optimizer']})"
        for attempt in row["attempts"]:
            drop = made_worse(row, attempt)
            done = row["attempts"][attempt]
            if drop is not None and drop > WORSE and attempt != "unproven":
                after = done.get("after", done.get("unreadable"))
                lines.append(f"worse, {attempt}: {where}: {row['before']:.3f} -> {after}; {done.get('layers')}")
            elif drop is not None and drop > WORSE:
                lines.append(f"worse, --unproven: {where}: {row['before']:.3f} -> {done.get('after')}")
            if done["outcome"] == "crash":
                lines.append(f"crash, {attempt}: {where}: {done['words']}")
        if row["truth"] == "healthy" and row["statistics"] == "stored":
            lines += [
                f"error on a healthy file: {where}: {one['rule']} {one['certainty']}: {one['message'][:120]}"
                for one in row["scan"]["findings"]
                if one["severity"] == "error"
            ]
        if row["truth"] == "sick" and row["attempts"]["data"]["outcome"] != "repaired":
            done = row["attempts"]["data"]
            told = "can be judged" if can_be_judged(row) else "neither test applies"
            lines.append(f"not repaired ({told}): {where}: {done['outcome']}: {done['words'][:160]}")
    for row, finding, right in judgements(rows):
        if not right and finding["certainty"] != "unproven":
            lines.append(
                f"wrong finding: {row['file']} ({row['trained_on']}, bias {row['has_bias']}): {finding['rule']} "
                f"{finding['certainty']}: {finding['message'][:120]}"
            )
    return "\n".join(dict.fromkeys(lines))
