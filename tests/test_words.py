"""The documents use short active sentences and the field's words: a list of habits to avoid, each with what to write.

The list finds habits, not bad sentences; whoever writes still reads. To hold other texts by it (help, messages), add
them to `TEXTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Habit(NamedTuple):
    """A way of writing that has to be read twice.

    Attributes:
        pattern: What shows it.
        instead: What to write.
        bad: A sentence in which it is found.
        good: The same without it.
    """

    pattern: re.Pattern[str]
    instead: str
    bad: str
    good: str


_START = r"(?:^|(?<=[.!?:;|] )|(?<=\*\* ))"  # of a sentence, a cell or an item

HABITS = (
    Habit(
        re.compile(rf"{_START}(?:- )?Where (?!to\b|[^.]*\?)", re.MULTILINE),
        "the subject first, and 'if' for a condition",
        "Where no layer has a gamma, only a step counter says.",
        "If no layer has a gamma, only the step counter tells.",
    ),
    Habit(
        re.compile(rf"{_START}(?:Of (?!course)|So (?:is|are|does|do) |Nor )", re.MULTILINE),
        "the subject first",
        "Of several snapshots the first is scanned.",
        "The first of several snapshots is scanned.",
    ),
    Habit(
        re.compile(r"(?<!there )(?<!There )\b(?:is|are|was|were|be) no (?!longer\b|more\b|less\b|\w+er\b)"),
        "'is not a …'",
        "The path is no checkpoint.",
        "The path is not a checkpoint; there is no release.",
    ),
    Habit(
        re.compile(r"\b(?:lies?|lay|lying) (?:with|in|beside|behind|there|next|below|at|under|on|elsewhere|between)\b"),
        "'is', 'next to', 'found in'",
        "The graph lies with the checkpoint.",
        "The graph is next to the checkpoint; the value is between the limits.",
    ),
    Habit(
        re.compile(r"\b(?:stands?|stood)\b(?! for\b)"),
        "'is', 'next to'",
        "The callback stands after whatever saves.",
        "Put the callback after the one that saves.",
    ),
    Habit(
        re.compile(r"\bthat there (?:is|are)\b"),
        "'the available …', or the list itself",
        "The error names those that there are.",
        "The error lists the inputs.",
    ),
    Habit(
        re.compile(r"\b(?:says?|said|hears?|heard)\b"),
        "'reports', 'shows', 'names', 'receives'",
        "The finding says which line to change.",
        "The finding names the line to change.",
    ),
    Habit(
        re.compile(r"\b(?:gives|gave|knows|knew)\b"),
        "'returns', 'produces', 'holds', 'contains'",
        "The function gives a list, and the file knows the decay.",
        "The function returns a list, and the file contains the decay.",
    ),
    Habit(
        re.compile(r"\b(?:is|are|was|were) to be\b"),
        "'the layers to repair', 'the planned values', 'must be'",
        "It scans clean of what was to be repaired.",
        "All targeted defects are gone.",
    ),
    Habit(
        re.compile(r"\b(?:anew|wherewith|whom|whence|thereby|whoever|as it stands)\b", re.IGNORECASE),
        "'again', 'with which', 'the affected layers', a subject",
        "It estimates them anew, and lists whom it concerns.",
        "It estimates them again, and lists the affected layers.",
    ),
    Habit(
        re.compile(r"\b(?:sick|cur(?:e|es|ed|ing)|mend(?:s|ed|ing)?)\b", re.IGNORECASE),
        "'broken', 'fix'",
        "A sick file is mended.",
        "A broken file is fixed.",
    ),
    Habit(
        re.compile(r"\d%"),
        "a space before the percent sign",
        "It is right in 37% of cases.",
        "It is right in 37 % of cases.",
    ),
    Habit(
        re.compile(r"(?<![\w.,/#-])[1-9]\d{4,}(?![\w.,/-])"),
        "a comma between thousands",
        "It reads 20000 files.",
        "It reads 20,000 files.",
    ),
)


def prose(markdown: str) -> str:
    """Return a text without what is not prose: code, output, links' targets, tags; a paragraph becomes one line."""
    text = re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|<[^>]+>", "", text, flags=re.DOTALL)
    text = re.sub(r"``.+?``|`[^`]*`", "`code`", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"\| *[\d.,]+ ?% *(?=\|)", "|", text)  # of tables that benchmarks print
    return re.sub(r"(?<=\S)\n +(?=\S)|(?<=[^\n|])\n(?=[^\n|#*>-])", " ", text)


def habits(text: str) -> list[str]:
    """Return every habit in a text, with the words around it and what to write instead."""
    told = []
    for habit in HABITS:
        for match in habit.pattern.finditer(text):
            around = text[max(match.start() - 30, 0) : match.end() + 40].replace("\n", " ")
            told.append(f"…{around}…: write {habit.instead}")
    return told


def _page(path: Path) -> Callable[[], str]:
    return lambda: prose(path.read_text("utf-8"))


def _unreleased() -> str:
    [section] = re.findall(
        r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.S | re.M
    )
    return prose(section)


def _descriptions() -> str:
    """Return what action.yml and the hook say of themselves."""
    files = ((ROOT / name).read_text("utf-8") for name in ("action.yml", ".pre-commit-hooks.yaml"))
    return prose("\n\n".join(text for file in files for text in re.findall(r"(?:description: |# )(.*)", file)))


def _heads() -> str:
    """Return what the scripts add to the pages that they generate; the rest comes from the code."""
    found = [
        (DOCS / name).read_text("utf-8").split('_HEAD = """\\\n')[1].split('"""')[0]
        for name in ("make_rules.py", "make_options.py")
    ]
    return prose("\n\n".join(found))


def _pages() -> Iterator[tuple[str, Callable[[], str]]]:
    generated = {"rules.md", "options.md"}
    for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md")):
        if path.name not in generated | {"CHANGELOG.md"} and ".zh-" not in path.name:
            yield path.relative_to(ROOT).as_posix(), _page(path)


TEXTS: dict[str, Callable[[], str]] = {
    **dict(sorted(_pages())),
    "CHANGELOG.md, Unreleased": _unreleased,
    "action.yml and the hook": _descriptions,
    "heads of generated pages": _heads,
}


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.instead)
def test_a_habit_is_found_and_its_replacement_is_not(habit):
    assert habit.pattern.search(habit.bad)
    assert not habits(habit.good)


def test_code_is_not_prose():
    assert not habits(
        prose(
            "Run `ckpt-doctor` on 37 %:\n\n```text\n24.2%  broken\n```\n\nIt says `what lies in` nothing.".replace(
                "says", "reports"
            )
        )
    )
    assert habits(prose("A path that\nis\nno checkpoint."))


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_without_the_habits(name):
    assert habits(TEXTS[name]()) == []
