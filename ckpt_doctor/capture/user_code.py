"""Functions that a user names on the command line: `MODULE:FUNCTION` or `path.py:FUNCTION`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import reference


def is_reference(text: str) -> bool:
    """Return whether a text names a function."""
    return reference(text) is not None


def load_function(option: str, text: str) -> Callable[..., Any]:
    """Return the function that `MODULE:FUNCTION` or `path.py:FUNCTION` names.

    Args:
        option: The option that named it, for messages.
        text: What was given.

    Raises:
        BadRequest: The module or function is not there, or its code fails while it is imported.
    """
    found = reference(text)
    if found is None:
        raise BadRequest(f"{option} {text}: expected MODULE:FUNCTION or path.py:FUNCTION")
    name, wanted = found
    try:
        module = _from_file(option, text, Path(name)) if name.endswith(".py") else _from_name(name)
    except BadRequest:
        raise
    # The user's own code may raise anything while it is imported.
    except Exception as error:
        raise BadRequest(f"{option} {text}: importing {name} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, wanted, None)
    if not callable(function):
        raise BadRequest(f"{option} {text}: {name} has no function {wanted!r}")
    result: Callable[..., Any] = function
    return result


def call(option: str, text: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a user's function returns; what it raises becomes a `BadRequest` that names it."""
    try:
        return function(*arguments)
    except Exception as error:
        raise BadRequest(f"{option} {text}: failed with {type(error).__name__}: {error}") from error


def _from_name(name: str) -> Any:
    # What lies in the current folder can be named, as with `python -m`.
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        if added:
            sys.path.remove(here)


def _from_file(option: str, text: str, path: Path) -> Any:
    if not path.is_file():
        raise BadRequest(f"{option} {text}: no such file: {path}")
    name = f"ckpt_doctor_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
