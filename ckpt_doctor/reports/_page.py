"""A page of text: indented, wrapped, coloured where asked; the paper of every report for people.

Colours carry nothing that the words do not say. rich does the colours and loads only where there are some.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import StringIO

from ckpt_doctor.reports.interface import Style

_NAMES_SHOWN = 4


class Page:
    """Lines of text under construction."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._lines: list[tuple[str, str]] = []

    def line(self, text: str, color: str = "") -> None:
        """Add one line as it is: a command to copy, a row of a table."""
        self._lines.append((inert(text), color))

    def paragraph(self, text: str, *, indent: int = 0, hanging: int = 0, color: str = "") -> None:
        """Add `text`, wrapped to the width; lines after the first are indented by `hanging` more columns."""
        wrapped = textwrap.wrap(
            visible(text),
            width=max(self._style.width, 40),
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hanging),
            break_on_hyphens=False,
        )
        for line in wrapped:
            self.line(line, color)

    def items(self, texts: Sequence[str], *, indent: int = 0) -> None:
        """Add `texts` with commas between, and break lines only there."""
        line = " " * indent
        for number, text in enumerate(texts):
            item = visible(text) + ("," if number < len(texts) - 1 else "")
            if line.strip() and len(line) + len(item) > self._style.width:
                self.line(line.rstrip())
                line = " " * indent
            line += f"{item} "
        self.paragraph(line.strip(), indent=indent, hanging=2)

    def blank(self) -> None:
        """Add an empty line, unless there is one or the page is empty."""
        if self._lines and self._lines[-1][0]:
            self.line("")

    def __str__(self) -> str:
        lines = self._lines
        while lines and not lines[-1][0]:
            lines = lines[:-1]
        if not lines:
            return ""
        if not self._style.color:
            return "\n".join(text for text, _ in lines) + "\n"
        from rich.console import Console
        from rich.text import Text

        sink = StringIO()
        console = Console(file=sink, force_terminal=True, color_system="standard", soft_wrap=True, highlight=False)
        for text, color in lines:
            console.print(Text(text, style=color))
        return sink.getvalue()


def visible(text: str) -> str:
    """Return `text` with control characters written out: names come from files that anyone may have made."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def inert(line: str) -> str:
    """Return a line that no runner of CI takes for a command.

    GitHub Actions obeys each line of stdout and stderr that begins so, blanks before it aside (actions/runner,
    src/Runner.Common/ActionCommand.cs: `TryParseV2`, `TryParse`); a name in a file may.
    """
    found = line.lstrip()
    return f"{line[: len(line) - len(found)]}\\{found}" if found.startswith(("::", "##[")) else line


def harmless(text: str) -> str:
    """Return a text of several lines with control characters written out, none of them a command; see `inert`."""
    return "\n".join(inert(visible(line)) for line in text.split("\n"))


def names(all_names: Sequence[str], style: Style) -> str:
    """Return `all_names` compactly: what they share once, the first few, and how many more; all of them in detail."""
    shared = _shared_scope(all_names)
    rest = [name[len(shared) :] for name in all_names]
    listed = rest if style.detail == "more" else rest[:_NAMES_SHOWN]
    text = ", ".join(listed)
    if len(listed) < len(rest):
        text += f" and {len(rest) - len(listed)} more"
    return f"in {shared}: {text}" if shared else text


def count(number: int, noun: str) -> str:
    """Return `1 layer`, `2 layers`, `1,234 layers`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(number: int) -> str:
    """Return a number of bytes for people: `1.0 MB`."""
    if number < 1000:
        return f"{number} B"
    value = float(number)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.1f} {unit}"


def _shared_scope(all_names: Sequence[str]) -> str:
    """Return the scope, with its last `/`, that all of several names lie in."""
    if len(all_names) < 2:
        return ""
    first, last = min(all_names), max(all_names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, length) + 1]
