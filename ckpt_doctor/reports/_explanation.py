"""The documentation of a rule in parts: the docstring of its module, taken apart for reports that set it themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

# Where the documentation of every rule stands, for reports that can hold a link.
DOCUMENTATION = "https://github.com/ckpt-doctor/ckpt-doctor/blob/main/docs/rules.md"

# In the order in which every rule has them.
HEADINGS = ("Usual cause", "False positives", "Repair", "Repair is unsafe when", "Source")
_HEADING = re.compile(f"({'|'.join(HEADINGS)}): ")


@dataclass(frozen=True)
class Block:
    """One paragraph, or some lines of code.

    Attributes:
        text: Words in one line; code in its own lines, without the indentation that they share.
        code: Whether it is code.
        heading: One of `HEADINGS`, or empty for what the rule is about.
    """

    text: str
    code: bool = False
    heading: str = ""


@dataclass(frozen=True)
class Explanation:
    """What a rule says of itself.

    Attributes:
        code: `BN101`.
        name: `missing-moving-mean`.
        severity: The worst that it reports.
        repair: What `fix` can do about it.
        summary: One sentence, with a capital letter and without the code.
        blocks: All the rest, in its order.
        needs: What it looks at, see `ckpt_doctor.rules.interface.Rule`.
    """

    code: str
    name: str
    severity: str
    repair: str
    summary: str
    blocks: tuple[Block, ...]
    needs: str = "file"

    @property
    def link(self) -> str:
        """Where it is documented."""
        return f"{DOCUMENTATION}#{self.code.lower()}"


def explanations(codes: Sequence[str] = ()) -> tuple[Explanation, ...]:
    """Return what the rules of these codes say of themselves, in report order; of all rules for no codes."""
    from ckpt_doctor.rules import RULES  # It loads NumPy, which the command line's help does not need.

    return tuple(
        replace(explain(rule.code, rule.name, rule.severity, rule.repair, rule.documentation), needs=rule.needs)
        for rule in RULES
        if not codes or rule.code in codes
    )


def explain(code: str, name: str, severity: str, repair: str, documentation: str) -> Explanation:
    """Return a rule's documentation in parts.

    Args:
        code: The rule's code.
        name: Its name.
        severity: The worst that it reports.
        repair: What `fix` can do about it.
        documentation: `CODE: summary.`, an empty line, then paragraphs; lines that are indented after a full stop or
            a colon are code, except below `Source:`.
    """
    first, _, rest = documentation.partition("\n\n")
    summary = " ".join(first.removeprefix(f"{code}: ").split())
    blocks: list[Block] = []
    for paragraph in rest.split("\n\n"):
        words: list[str] = []
        code_lines: list[str] = []
        heading = ""
        for line in [*paragraph.splitlines(), ""]:
            found = _HEADING.match(line)
            # Indented lines go on with a sentence that is not finished, and are code after one that is.
            finished = bool(code_lines) or not words or words[-1].endswith((".", ":"))
            is_code = line.startswith("    ") and heading != "Source" and finished
            if code_lines and not is_code:
                blocks.append(Block("\n".join(code_lines), code=True, heading=heading))
                code_lines = []
            if words and (is_code or found or not line):
                blocks.append(Block(" ".join(words), heading=heading))
                words = []
            if found:
                heading = found[1]
                line = line[found.end() :]
            if is_code:
                code_lines.append(line[4:])
            elif line:
                words.append(line.strip())
    return Explanation(code, name, severity, repair, summary[:1].upper() + summary[1:], tuple(blocks))


def markdown(explanation: Explanation) -> str:
    """Return the blocks of an explanation as Markdown."""
    parts = []
    said = ""
    for block in explanation.blocks:
        heading = f"**{block.heading}:** " if block.heading and block.heading != said else ""
        said = block.heading
        language = "sh" if block.text.startswith("ckpt-doctor ") else "python"
        parts.append(f"```{language}\n{block.text}\n```" if block.code else f"{heading}{block.text}")
    return "\n\n".join(parts)


def plain(explanation: Explanation) -> str:
    """Return the blocks of an explanation as text."""
    parts = []
    said = ""
    for block in explanation.blocks:
        heading = f"{block.heading}: " if block.heading and block.heading != said else ""
        said = block.heading
        parts.append(block.text if block.code else f"{heading}{block.text}")
    return "\n\n".join(parts)
