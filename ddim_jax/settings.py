"""Settings as frozen dataclasses whose fields carry their ranges: check, compare, read from JSON.

steps: Annotated[int, at_least(1)] = 10
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple


class Range(NamedTuple):
    """The values that a field may have, as a test and in words."""

    holds: Callable[[Any], bool]
    allowed: str


def at_least(low: int, most: int = 2**31 - 1) -> Range:
    """Numbers ≥ `low`, up to `most`."""
    return Range(lambda value: low <= value <= most, f"{low} or more, up to {most:,}")


MANY = 1_000_000  # more images at once, or times, than any machine holds
ABOVE_0 = Range(lambda value: value > 0, "above 0")
IMAGES = Range(lambda value: value == 0 or 8 <= value <= 10 * MANY,
               f"0 (the default), or 8 or more, up to {10 * MANY:,}")  # fmt: skip
FRACTION = Range(lambda value: 0 <= value < 1, "at least 0 and below 1")
BETWEEN_0_AND_1 = Range(lambda value: 0 < value < 1, "between 0 and 1")
SEED = Range(lambda value: 0 <= value < 2**32, f"from 0 to {2**32 - 1}")


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise a ValueError for the first field outside its range, nested dataclasses included."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{name}.")
        for rule in getattr(hint, "__metadata__", ()):
            if isinstance(rule, Range):
                require(rule.holds(value), prefix + name, value, rule.allowed)


def require(good: bool, name: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that names the flag, its value and what is allowed."""
    if not good:
        raise ValueError(f"--{flag(name)} is {value}; it must be {allowed}.")


class Free:
    """Marks a group of fields that change what a training step computes by rounding at most.

    A run may continue with other values for these.
    """


def differences(saved: Any, asked: Any) -> dict[str, tuple[Any, Any]]:
    """The fields that affect a training step and differ, as {flag: (saved, asked)}."""
    before, now = _fixed(saved), _fixed(asked)
    return {name: (before[name], now[name]) for name in before if before[name] != now[name]}


def _fixed(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields outside `Free` groups, by flag."""
    free = {
        name for group in type(config).__mro__ if Free in group.__bases__
        for name in typing.get_type_hints(group)
    }  # fmt: skip
    fixed: dict[str, Any] = {}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            fixed |= _fixed(value, f"{prefix}{name}.")
        elif name not in free:
            fixed[flag(prefix + name)] = value
    return fixed


def from_dict(group: Any, values: Any, prefix: str = "") -> Any:
    """A dataclass from nested dicts; unknown names and values of the wrong type are rejected."""
    hints = typing.get_type_hints(group)
    if not isinstance(values, dict):
        raise ValueError(
            f"the configuration's {prefix or 'content'} is {values!r}; it must be an object of "
            "names and values."
        )
    for name in values.keys() - hints.keys():
        raise ValueError(
            f"the configuration has a field {prefix}{name}, which this version does not know; "
            "remove it."
        )
    return group(**{name: _value(hints[name], values[name], prefix + name) for name in values})


def _value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{name}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in options:
        return None if value is None else _value(options[0], value, name)
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_value(options[0], item, name) for item in value)
    elif origin is Literal:
        if value in options:
            return value
        raise ValueError(
            f"the configuration's {name} is {value!r}; it must be one of "
            f"{', '.join(map(str, options))}."
        )
    elif type(value) is hint or (hint is float and type(value) is int):
        return hint(value)
    wanted = getattr(hint, "__name__", hint)
    raise ValueError(f"the configuration's {name} is {value!r}; it must be of type {wanted}.")


def is_number(text: str) -> bool:
    """Whether a text is a whole number of up to 18 digits, which `int` reads.

    >>> is_number("07"), is_number("²"), is_number("-1"), is_number("9" * 5000)
    (True, False, False, False)
    """
    return text.isascii() and text.isdecimal() and len(text) <= 18


def flag(name: str) -> str:
    """A field's name as it is spelled in flags."""
    return name.replace("_", "-")
