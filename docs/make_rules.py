"""Write `docs/rules.md` from the documentation of the rules themselves: `python docs/make_rules.py`."""

from __future__ import annotations

from pathlib import Path

from ckpt_doctor.reports._explanation import Explanation, explanations, markdown
from ckpt_doctor.rules import RULES

PAGE = Path(__file__).parent / "rules.md"

_FAMILIES = {
    "BN1": "Statistics that are missing, doubled or elsewhere",
    "BN2": "Statistics with wrong values",
    "BN3": "Wiring: why it went wrong",
    "BN4": "Statistics against data",
    "CK1": "Damaged containers",
    "CK2": "Weights",
}

_HEAD = """\
<!-- Written by docs/make_rules.py from the rules themselves; change those. -->
# The rules

`ckpt-doctor explain CODE` prints the same. `--select`, `--ignore`, `--severity` and `per-path-ignores` take the code of
a rule (`BN201`), its name (`never-updated`), or the beginning of codes (`BN2`: the whole range).

*Severity* is the usual one; a finding can have another, depending on its certainty. *Repair* is the usual one of
`ckpt-doctor fix`: **estimate** the statistics from data, **copy** them from another place in the file, or **none**.
`fix` can also **debias** cold averages (BN202), and put back **initial** values (BN101, BN102).

Every finding has a *certainty*. **proven**: the bytes of the file or the graph of the model show it. **likely**: it
rests on names, on a config, or on what values usually look like. **unproven**: it is one explanation of several.
*False positives* lists what a rule can mistake for its defect, and *Repair is unsafe when* the cases in which the
repair would do harm.
"""

_FIXED = {
    "always": "whatever their certainty",
    "likely": "if they are proven or likely",
    "proven": "if they are proven",
    "asked": "only with `--unproven`, or if `--layers` names the layer",
}


def page() -> str:
    """Return the text of the page."""
    rules = explanations()
    parts = [
        _HEAD,
        _unasked(),
        "| code | name | severity | repair | what |\n|---|---|---|---|---|\n" + "\n".join(map(_row, rules)),
    ]
    for prefix, title in _FAMILIES.items():
        family = [rule for rule in rules if rule.code.startswith(prefix)]
        if family:
            parts.append(f"## {title}")
            parts += map(_section, family)
    missing = {rule.code for rule in rules if rule.code[:3] not in _FAMILIES}
    if missing:
        raise ValueError(f"no family for {sorted(missing)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _unasked() -> str:
    """Return which findings `fix` repairs without a flag."""
    rows = [
        f"| {', '.join(rule.code for rule in RULES if rule.repair != 'none' and rule.fixed == fixed)} | {when} |"
        for fixed, when in _FIXED.items()
    ]
    return "| findings | `fix` repairs them |\n|---|---|\n" + "\n".join(rows)


def _row(rule: Explanation) -> str:
    summary = rule.summary.replace("|", "\\|")
    return f"| [{rule.code}](#{rule.code.lower()}) | {rule.name} | {rule.severity} | {rule.repair} | {summary} |"


def _section(rule: Explanation) -> str:
    heading = f'<a id="{rule.code.lower()}"></a>\n### {rule.code} {rule.name}'
    return f"{heading}\n\n{rule.severity}; repair: {rule.repair}\n\n**{rule.summary}**\n\n{markdown(rule)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
