"""A user's own function, by MODULE:FUNCTION[(numbers)]; its errors become one sentence."""

import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def own_function(flag: str, module: str, function: str, numbers: str | None) -> Callable[..., Any]:
    """A user's function, called with the numbers, if there are any."""
    try:
        made = getattr(_import(module), function)
    except (Exception, SystemExit) as error:  # a user's module can raise anything
        raise ValueError(
            f"{flag}, which cannot be imported ({_what(error)}); give MODULE:FUNCTION, "
            "where MODULE is a name or the path of a .py file."
        ) from error
    if numbers is None:
        return made
    try:
        values = [number + 0 for number in json.loads(f"[{numbers}]")]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{flag}; only numbers may stand in ( ).") from error
    return called(flag, made, *values)


def called(flag: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a user's function; its own error becomes one sentence with file and line."""
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(f"{flag} fails: {_what(error)}.") from error


def _what(error: BaseException) -> str:
    """An error in one line, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} at {frame.filename}:{frame.lineno}"


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None  # always exists for a .py file
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
