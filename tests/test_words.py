"""Documents, help and messages use short active sentences and the field's words: habits to avoid, and what to write.

The list finds habits, not bad sentences; whoever writes still reads. To hold other texts by it, add them to `TEXTS`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.options import GateOptions, RepairOptions, options_of
from ckpt_doctor.reports._explanation import explanations
from ckpt_doctor.rules import RULES

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


def _help_of(command: click.Command) -> Callable[[], str]:
    """Return a function for what `--help` prints, without line breaks in sentences."""

    def text() -> str:
        parts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
        return prose("\n\n".join(parts))

    return text


def _options() -> str:
    """Return what docs/options.md and the docstrings of the Python functions show of each option."""
    return prose("\n\n".join(option.text for kind in (GateOptions, RepairOptions) for option in options_of(kind)))


def _explanations() -> str:
    """Return what `explain` prints of every rule, without code and without sources, which name issues by numbers."""
    texts = []
    for rule in explanations():
        texts += [rule.summary, *(block.text for block in rule.blocks if not block.code and block.heading != "Source")]
    return prose("\n\n".join(texts))


def _findings() -> str:
    """Return the messages of the examples of all rules."""
    found = [finding.message for rule in RULES for make in rule.sick for finding in rule.check(rule, make())]
    assert len(found) >= len(RULES)
    return prose("\n\n".join(found))


def literals(node: ast.AST) -> Iterator[str]:
    """Yield the texts in a module that users may see: no docstrings, no debug log; a value in an f-string is `X`."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Call(func=ast.Attribute(value=ast.Name(id="_log"))):
            return
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
            for part in parts:
                if isinstance(part, ast.FormattedValue):
                    yield from literals(part.value)
        case ast.Constant(value=str(text)):
            yield text
        case _:
            for child in ast.iter_child_nodes(node):
                yield from literals(child)


def _messages_of(folder: Path) -> Callable[[], str]:
    """Return a function for all texts of three words and more in the modules of a folder."""

    def text() -> str:
        modules = [path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))]
        found = [text for module in modules for text in literals(ast.parse(module)) if text.count(" ") >= 2]
        assert found, folder
        return prose("\n\n".join(found))

    return text


_PACKAGE = ROOT / "ckpt_doctor"

TEXTS: dict[str, Callable[[], str]] = {
    **dict(sorted(_pages())),
    "CHANGELOG.md, Unreleased": _unreleased,
    "action.yml and the hook": _descriptions,
    "heads of generated pages": _heads,
    "help": _help_of(ckpt_doctor_group),
    **{f"help of {name}": _help_of(command) for name, command in ckpt_doctor_group.commands.items()},
    "options": _options,
    "explanations of rules": _explanations,
    "findings of the examples": _findings,
    "messages": _messages_of(_PACKAGE),
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


def test_texts_of_a_module_are_its_messages():
    module = (
        '"""It is no text."""\n_log.debug("it is no text")\nraise Error(f"{path}: is no {\'nested\'} file", "short")\n'
    )
    assert list(literals(ast.parse(module))) == ["X: is no X file", "nested", "short"]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_without_the_habits(name):
    assert habits(TEXTS[name]()) == []
