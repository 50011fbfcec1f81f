"""What an option is: one field of a dataclass, from which everything that has options is made."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options.kinds import Flag, Kind, suggestion

_Given = TypeVar("_Given", bound="Options")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        kind: What its values may be.
        help: What the command line's help says.
        text: What Python's documentation says.
        flag: Its name on the command line; the field's with `-` for `_`, where it is empty.
        metavar: What stands for its value in help.
        optional: Whether None is a value too.
        negative: Whether giving it on the command line makes the field false: `--no-backup`.
        shell: The default on the command line; `...` where it is that of the field.
        beside: Whether a configuration file names a file, or paths, relative to itself.
        name: The field's name.
        default: The field's value where nothing is given.
    """

    kind: Kind
    help: str
    text: str
    flag: str = ""
    metavar: str | None = None
    optional: bool = False
    negative: bool = False
    shell: Any = ...
    beside: bool = False
    name: str = ""
    default: Any = None

    @property
    def spelling(self) -> str:
        """The option's name on the command line as Python writes it: `no_backup`."""
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def parameter(self) -> str:
        """The name of what the command line gives: the field's, or the opposite of it."""
        return self.spelling if self.negative else self.name

    def take(self, value: Any) -> Any:
        """Return a value as it is kept.

        Raises:
            BadRequest: The option cannot have it.
        """
        if value is None and self.optional:
            return None
        return self.kind.take(self.flag, () if value is None and self.kind.repeatable else value)

    def words(self, value: Any) -> list[str]:
        """Return a value as words of a command line; none for what no word says."""
        if value is None or value == self.default:
            return []
        if isinstance(self.kind, Flag):
            return [self.flag]
        return [word for text in self.kind.texts(value) for word in (self.flag, text)]


def option(default: Any, kind: Kind, help_text: str, text: str, **more: Any) -> Any:
    """Return the field of a dataclass that is an option; see `Option` for the arguments.

    None as the default makes None a value.
    """
    more["optional"] = default is None or more.get("optional", False)
    described = Option(kind, help_text, text, **more)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"option": described})
    return dataclasses.field(default=default, metadata={"option": described})


_OPTIONS: dict[type[Options], tuple[Option, ...]] = {}


def options_of(kind: type[Options]) -> tuple[Option, ...]:
    """Return the options that are the fields of a class, those of the classes it derives from first."""
    if kind in _OPTIONS:  # Every value that is checked asks for them.
        return _OPTIONS[kind]
    found = []
    for field in dataclasses.fields(kind):
        default = {} if field.default is dataclasses.MISSING else field.default
        option: Option = field.metadata["option"]
        flag = option.flag or f"--{field.name.replace('_', '-')}"
        found.append(dataclasses.replace(option, name=field.name, default=default, flag=flag))
    _OPTIONS[kind] = tuple(found)
    return _OPTIONS[kind]


def own_options_of(kind: type[Options]) -> tuple[Option, ...]:
    """Return the options that a class adds to those of the class it derives from."""
    base = kind.__mro__[1]
    inherited = {option.name for option in options_of(base)} if issubclass(base, Options) else set()
    return tuple(option for option in options_of(kind) if option.name not in inherited)


@dataclass(frozen=True)
class Options:
    """What all kinds of options have in common; every value is checked when one is made."""

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            object.__setattr__(self, option.name, option.take(getattr(self, option.name)))

    @classmethod
    def of(cls: type[_Given], given: Mapping[str, Any]) -> _Given:
        """Return the options that were given by name; all others have their defaults.

        Raises:
            BadRequest: There is no such option, it was given twice, or it cannot have this value.
        """
        return cls(**cls.named(given))

    @classmethod
    def named(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return options by the names of their fields, whichever of their two names was given.

        Raises:
            BadRequest: There is no such option, or it was given twice.
        """
        by_name = {option.name: option for option in options_of(cls)}
        by_spelling = {option.spelling: option for option in options_of(cls)} | by_name
        found: dict[str, Any] = {}
        for word, value in given.items():
            spelled = str(word).replace("-", "_")
            option = by_spelling.get(spelled)
            if option is None:
                raise BadRequest(_unknown(cls, str(word)))
            if option.name in found:
                raise BadRequest(f"{option.name} was given twice, once as {option.spelling}")
            opposite = option.negative and spelled != option.name
            found[option.name] = not Flag().take(option.flag, value) if opposite else value
        return found

    def only(self, kind: type[Options]) -> dict[str, Any]:
        """Return the values of the fields that a more general class has too, by name."""
        return {option.name: getattr(self, option.name) for option in options_of(kind)}

    def words(self, kind: type[Options]) -> tuple[str, ...]:
        """Return those of a more general class that are not at their defaults, as words of a command line."""
        return tuple(word for option in options_of(kind) for word in option.words(getattr(self, option.name)))


def _unknown(kind: type[Options], word: str) -> str:
    spelled = word.replace("-", "_")
    for special in kind.__subclasses__():
        if spelled in {name for option in own_options_of(special) for name in (option.name, option.spelling)}:
            return (
                f"{word} decides an exit code, which this function does not have; the command line, check_saves and "
                "the pytest fixture do"
            )
    names = {name for option in options_of(kind) for name in (option.name, option.spelling)}
    return f"no such option: {word!r}{suggestion(spelled, sorted(names))}"


def takes(kind: type[Options]) -> Callable[[_Function], _Function]:
    """Return a decorator for a function whose `**options` are those of `kind`: its signature and docstring name each.

    The signature's keywords stand before the function's own. In the docstring the line of `**options`, the last of its
    arguments, gives way to one entry an option.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        after = [one for one in own if one.kind is inspect.Parameter.KEYWORD_ONLY]
        before = [one for one in own if one not in after]
        changed: Any = function
        changed.__signature__ = signature.replace(parameters=[*before, *_parameters(kind), *after])
        changed.__doc__ = _documented(function.__doc__, kind)
        return function

    return decorate


def _parameters(kind: type[Options]) -> Iterator[inspect.Parameter]:
    for option in options_of(kind):
        accepts = option.kind.accepts + (" | None" if option.optional else "")
        yield inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=accepts)


def _documented(doc: str | None, kind: type[Options]) -> str | None:
    lines = (doc or "").split("\n")
    place = next((number for number, line in enumerate(lines) if line.lstrip().startswith("**options:")), None)
    if place is None:  # Python runs without docstrings.
        return doc
    indent = lines[place][: -len(lines[place].lstrip())]
    end = next(n for n in range(place + 1, len(lines) + 1) if n == len(lines) or not lines[n].startswith(f"{indent} "))
    entries = []
    for option in options_of(kind):
        entries += textwrap.wrap(
            f"{option.name}: {option.text}", 120, initial_indent=indent, subsequent_indent=f"{indent}    "
        )
    return "\n".join([*lines[:place], *entries, *lines[end:]])
