"""Write `docs/rules.md` from the documentation of the rules themselves: `python docs/make_rules.py`."""

from __future__ import annotations

from pathlib import Path

from ckpt_doctor.reports._explanation import Explanation, explanations, markdown

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

`ckpt-doctor explain CODE` prints the same. A rule is meant by its code (`BN201`), its name (`never-updated`) or the
beginning of its code (`BN2`: the whole range), in `--select`, `--ignore`, `--severity` and `per-path-ignores`.

*Severity* is the worst that a rule reports; an unproven finding is a warning at most. *Repair* is what
`ckpt-doctor fix` can do: **estimate** the statistics from data, **copy** them from another place in the file,
**debias** an average that had no time to settle, or **none**.

Every finding has a *certainty*. **proven**: the bytes of the file or the graph of the model show it. **likely**: it
rests on names, on a config, or on what values usually look like. **unproven**: it is one explanation of several. If no
flag is given, `fix` repairs what is missing and what is proven; the rest needs `--unproven`, or its layer's name in
`--layers`. *False positives* lists what a rule can mistake for its defect, and *Repair is unsafe when* the cases in
which the repair would do harm.
"""


def page() -> str:
    """Return the text of the page."""
    rules = explanations()
    parts = [_HEAD, "| code | name | severity | repair | what |\n|---|---|---|---|---|\n" + "\n".join(map(_row, rules))]
    for prefix, title in _FAMILIES.items():
        family = [rule for rule in rules if rule.code.startswith(prefix)]
        if family:
            parts.append(f"## {title}")
            parts += map(_section, family)
    missing = {rule.code for rule in rules if rule.code[:3] not in _FAMILIES}
    if missing:
        raise ValueError(f"no family for {sorted(missing)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(rule: Explanation) -> str:
    summary = rule.summary.replace("|", "\\|")
    return f"| [{rule.code}](#{rule.code.lower()}) | {rule.name} | {rule.severity} | {rule.repair} | {summary} |"


def _section(rule: Explanation) -> str:
    heading = f'<a id="{rule.code.lower()}"></a>\n### {rule.code} {rule.name}'
    return f"{heading}\n\n{rule.severity}; repair: {rule.repair}\n\n**{rule.summary}**\n\n{markdown(rule)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
