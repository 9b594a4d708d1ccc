"""The error that a user can fix, and helpers for messages."""

import difflib
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """Bad input. The message names the file or field and the fix; tools print it in one line."""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a :class:`UserError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    whole: bool = False,
    such_as: Any = None,
) -> None:
    """Raise a :class:`UserError` unless ``value`` is a finite number in a range.

    Args:
        name: Name of the argument.
        value: Its value.
        low: Least value.
        high: Greatest value.
        above: Number that the value has to exceed.
        whole: Whether it has to be a whole number.
        such_as: Example for the message.
    """
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if fits and math.isfinite(value):
        fits = (low is None or value >= low) and (high is None or value <= high)
        if fits and (above is None or value > above):
            return
    wanted = "a whole number" if whole else "a number"
    if above is not None:
        wanted += f" above {above}" + (f" and of at most {high}" if high is not None else "")
    elif low is not None:
        wanted += f" of at least {low}" if high is None else f" from {low} to {high}"
    example = "" if such_as is None else f", such as {such_as}"
    raise UserError(f"{name} cannot be {value!r}. Set it to {wanted}{example}.")


def check_flag(name: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{name} cannot be {value!r}. Set it to True or False.")


def listed(names: Collection[object], most: int = 5) -> str:
    """Return the first ``most`` names and how many more there are: ``a, b and 3 more``."""
    shown = ", ".join(str(name) for name in list(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 tensor``, ``2,000 tensors``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.75) -> str | None:
    """Return the known name that is spelled most like ``name``, or None if none is close."""
    close = difflib.get_close_matches(name, sorted(set(known)), 1, cutoff)
    return close[0] if close else None


def first_line(error: BaseException, named: bool = True) -> str:
    """Return the first line of an error without its full stop, after the error's type.

    Args:
        error: The error.
        named: Whether the type is part of the text.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__ if named else ""
    return ": ".join(filter(None, (kind, lines[0].rstrip(".") if lines else "")))
