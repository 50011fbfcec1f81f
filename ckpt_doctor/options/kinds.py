"""What the values of options may be: one check for the command line, for Python and for configuration.

A kind turns what was given into the value that is kept, and takes that again. What it cannot take it refuses, with
what it takes and, for a word that is nearly right, the right one.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ckpt_doctor.errors import BadRequest

_REFERENCE = re.compile(r"^(?P<module>(?:.*\.py)|(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)):(?P<function>[A-Za-z_]\w*)$")
_SIZE = re.compile(r"^(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?B?|B?)$", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def reference(text: str) -> tuple[str, str] | None:
    """Return module (or `path.py`) and function of `MODULE:FUNCTION`; None for a text of another form."""
    found = _REFERENCE.match(text)
    return (found["module"], found["function"]) if found is not None else None


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known word that is near, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1) if isinstance(word, str) else []
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True)
class Kind:
    """What the values of one option may be; a kind without fields of its own is a dataclass as this one is.

    Attributes:
        accepts: The type that Python callers may give, for signatures.
        wanted: What a value must be, for messages.
        repeatable: Whether the option may be given several times.
    """

    accepts: ClassVar[str]
    repeatable: ClassVar[bool] = False

    @property
    def wanted(self) -> str:
        """What a value must be, for messages."""
        raise NotImplementedError

    def take(self, option: str, value: Any) -> Any:
        """Return the value as it is kept.

        Args:
            option: The option, for messages: `--batch-size`.
            value: What was given.

        Raises:
            BadRequest: The option cannot have this value.
        """
        raise NotImplementedError

    def texts(self, kept: Any) -> list[str]:
        """Return a value that is kept as the command line takes it, one text for each time that it is given."""
        return [str(kept)]

    def refusal(self, option: str, value: Any, hint: str = "") -> BadRequest:
        """Return the error for a value that the option cannot have."""
        shown = value if isinstance(value, str) and value else repr(value)
        return BadRequest(f"{option} {shown}: must be {self.wanted}{hint}")


class Text(Kind):
    """A text, or a path."""

    accepts = "str | Path"
    wanted = "a text or a path"

    def take(self, option: str, value: Any) -> str:
        """Return the text."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            raise self.refusal(option, value)
        return value


class Flag(Kind):
    """True or false."""

    accepts = "bool"
    wanted = "true or false"

    def take(self, option: str, value: Any) -> bool:
        """Return the value."""
        if not isinstance(value, bool):
            raise self.refusal(option, value)
        return value


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number.

    Attributes:
        least: The smallest that is taken.
    """

    accepts = "int"
    least: int = 0

    @property
    def wanted(self) -> str:
        """What a value must be, for messages."""
        return f"a whole number of {self.least} or more"

    def take(self, option: str, value: Any) -> int:
        """Return the number; NumPy's are taken too."""
        try:
            number = operator.index(value)
        except TypeError:
            raise self.refusal(option, value) from None
        if isinstance(value, bool) or number < self.least:
            raise self.refusal(option, value)
        return number


@dataclass(frozen=True)
class Above(Kind):
    """A finite number above a limit."""

    accepts = "float"
    limit: float = 0

    @property
    def wanted(self) -> str:
        """What a value must be, for messages."""
        return f"a finite number above {self.limit:g}"

    def take(self, option: str, value: Any) -> float:
        """Return the number."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise self.refusal(option, value)
        number = float(value)
        if not (math.isfinite(number) and number > self.limit):
            raise self.refusal(option, value)
        return number


@dataclass(frozen=True)
class Choice(Kind):
    """One of several words."""

    accepts = "str"
    values: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """What a value must be, for messages."""
        return f"one of {', '.join(self.values)}"

    def take(self, option: str, value: Any) -> str:
        """Return the word."""
        if not isinstance(value, str) or value not in self.values:
            raise self.refusal(option, value, suggestion(value, self.values))
        return value


class Reference(Kind):
    """A function that the user names."""

    accepts = "str"
    wanted = "MODULE:FUNCTION or path.py:FUNCTION"

    def take(self, option: str, value: Any) -> str:
        """Return the text; whether there is such a function is not looked at."""
        if not isinstance(value, str) or reference(value) is None:
            raise self.refusal(option, value)
        return value


class Size(Kind):
    """A number of bytes."""

    accepts = "int | str"
    wanted = "a size, as in 2GB or 512MiB"

    def take(self, option: str, value: Any) -> int:
        """Return the bytes: `2GB` is 2 * 10**9, `2GiB` is 2 * 2**30."""
        if not isinstance(value, str):
            try:
                return Whole().take(option, value)
            except BadRequest:
                raise self.refusal(option, value) from None
        found = _SIZE.match(value.strip())
        if found is None:
            raise self.refusal(option, value)
        return int(float(found["number"]) * _UNITS[found["unit"].lower().removesuffix("b")])


class HeightAndWidth(Kind):
    """The size of an image."""

    accepts = "str | tuple[int, int]"
    wanted = "HEIGHTxWIDTH, as in 224x224"

    def take(self, option: str, value: Any) -> tuple[int, int]:
        """Return height and width in pixels."""
        parts = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
        pair = list(map(int, parts.groups())) if parts is not None else value
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise self.refusal(option, value)
        try:
            height, width = (Whole(1).take(option, size) for size in pair)
        except BadRequest:
            raise self.refusal(option, value) from None
        return height, width

    def texts(self, kept: tuple[int, int]) -> list[str]:
        """Return `HxW`."""
        return [f"{kept[0]}x{kept[1]}"]


class FactorAndOffset(Kind):
    """How pixels become what a model takes."""

    accepts = "str | tuple[float, float]"
    wanted = "A,B, as in 0.00784,-1 (pixel p becomes A*p+B)"

    def take(self, option: str, value: Any) -> tuple[float, float]:
        """Return factor and offset."""
        pair = value.split(",") if isinstance(value, str) else value
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise self.refusal(option, value)
        try:
            factor, offset = map(float, pair)
        except (TypeError, ValueError):
            raise self.refusal(option, value) from None
        if not (math.isfinite(factor) and math.isfinite(offset)):
            raise self.refusal(option, value)
        return factor, offset

    def texts(self, kept: tuple[float, float]) -> list[str]:
        """Return `A,B`."""
        return [f"{kept[0]!r},{kept[1]!r}"]


class Texts(Kind):
    """Any number of texts or paths."""

    accepts = "str | Path | Iterable[str | Path]"
    wanted = "texts or paths"
    repeatable = True

    def take(self, option: str, value: Any) -> tuple[str, ...]:
        """Return the texts: a lone one is one, and not a list of letters."""
        if isinstance(value, (str, os.PathLike)):
            value = [value]
        if isinstance(value, (Mapping, bytes)) or not isinstance(value, Iterable):
            raise self.refusal(option, value)
        found = []
        for one in value:
            if not isinstance(one, (str, os.PathLike)):
                raise self.refusal(option, one)
            found.append(os.fspath(one))
        return tuple(found)

    def texts(self, kept: tuple[str, ...]) -> list[str]:
        """Return each."""
        return list(kept)


class Pairs(Kind):
    """Names with a text each; on the command line `NAME=VALUE`."""

    accepts = "Mapping[str, str]"
    repeatable = True

    @property
    def wanted(self) -> str:
        """What a value must be, for messages."""
        return "NAME=VALUE"

    def take(self, option: str, value: Any) -> dict[str, Any]:
        """Return name to value."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Mapping):
            table = dict(value)
        elif isinstance(value, Iterable):
            table = dict(self._parted(option, text) for text in value)
        else:
            raise self.refusal(option, value)
        return {Text().take(option, name): self.of_one(option, name, one) for name, one in table.items()}

    def texts(self, kept: Mapping[str, Any]) -> list[str]:
        """Return `NAME=VALUE` for each."""
        return [f"{name}={one if isinstance(one, str) else ','.join(one)}" for name, one in kept.items()]

    def of_one(self, option: str, name: str, value: Any) -> Any:
        """Return the value of one name as it is kept; numbers and booleans are taken as their texts."""
        if isinstance(value, numbers.Real):
            return str(value)
        return Text().take(f"{option} {name}", value)

    def _parted(self, option: str, text: Any) -> tuple[str, str]:
        name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not (name and equals and value):
            raise self.refusal(option, text)
        return name, value


@dataclass(frozen=True)
class Levels(Pairs):
    """Rules with a severity each."""

    values: tuple[str, ...] = ()

    def of_one(self, option: str, name: str, value: Any) -> str:
        """Return the severity."""
        if not isinstance(value, str) or value not in self.values:
            hint = suggestion(value, self.values)
            raise BadRequest(f"{option.lstrip('-')} of {name}: {value!r} is not one of {', '.join(self.values)}{hint}")
        return value


class Lists(Pairs):
    """Names with any number of texts each."""

    accepts = "Mapping[str, str | Iterable[str]]"

    def of_one(self, option: str, name: str, value: Any) -> tuple[str, ...]:
        """Return the texts."""
        return Texts().take(f"{option} {name}", value)
