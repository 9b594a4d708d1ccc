"""Reading the values of ``--cfg-options``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gersp_mm.checkpoints.read import UNREAD
from gersp_mm.utils.errors import UserError

BRACKETS = {"[": "]", "(": ")", "{": "}"}
# Keys whose values are paths, which may look like numbers.
PATHS = re.compile(r"(^|_)(root|dir|file|from|checkpoint|pretrained|prefix|path)$")


def parse_options(
    options: Mapping[str, Any] | Sequence[str] | None, cfg: Any = None
) -> dict[str, Any]:
    """Read ``key=value`` strings; a mapping is returned unchanged.

    Numbers, ``True``, ``False`` and ``None`` become Python's values; ``[…]``, ``(…)``, ``{…}`` and
    ``dict(…)`` become lists, tuples and dicts, nested to any depth. All other values are strings,
    exactly as typed. If the config holds a list or a tuple, ``1,2`` becomes a value of that type,
    and a list that replaces a tuple becomes a tuple.

    Args:
        options: The options as typed.
        cfg: The config that the options change.

    Raises:
        UserError: An option has no key, or a list is not closed.
    """
    if isinstance(options, Mapping):
        return dict(options)
    parsed = {}
    for option in options or ():
        key, _, text = option.partition("=")
        if not all(key.split(".")) or key != key.strip():
            raise UserError(f"the option {option!r} has no valid key. Write it as a.b=value.")
        parsed[key] = _fitted(key, text, value_at(cfg, key))
    return parsed


def value_at(cfg: Any, key: str) -> Any:
    """Return the value of a config at a dotted key, or None."""
    for name in key.split("."):
        if isinstance(cfg, (list, tuple)):
            cfg = cfg[int(name)] if name.isdecimal() and int(name) < len(cfg) else None
        else:
            cfg = cfg.get(name) if hasattr(cfg, "get") else None
    return cfg


def plain_leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a config by their dotted keys.

    A list of plain values is one value. A value that is not plain data, such as a class, is
    ``UNREAD``.
    """
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, (list, tuple)):
        if any(isinstance(item, (Mapping, list, tuple)) for item in value):
            inside = enumerate(value)
        else:
            yield key, list(value)
    else:
        yield key, value if isinstance(value, (str, int, float, type(None))) else UNREAD
    for name, inner in inside:
        yield from plain_leaves(inner, f"{key}.{name}" if key else str(name))


def parse_value(text: str) -> Any:
    """Return the value of a text, as :func:`parse_options` describes it."""
    stripped = text.strip()
    if (
        len(stripped) > 1
        and stripped[0] in "'\""
        and stripped.find(stripped[0], 1) == (len(stripped) - 1)
    ):
        return parse_value(stripped[1:-1])
    is_dict = stripped.startswith("dict(")
    inner = stripped.removeprefix("dict")
    if _is_enclosed(inner):
        items = _split(inner[1:-1])
        if is_dict or inner[0] == "{":
            return _parse_dict(items, "=" if is_dict else ":", text)
        if inner is stripped:
            values = [parse_value(item.strip()) for item in items]
            return tuple(values) if inner[0] == "(" else values
    return _parse_scalar(text)


def _parse_dict(items: list[str], separator: str, text: str) -> Any:
    pairs = [item.partition(separator) for item in items]
    if not all(found for _, found, _ in pairs):
        return text  # a string in braces
    return {key.strip().strip("'\""): parse_value(value.strip()) for key, _, value in pairs}


def _parse_scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    words = {"true": True, "false": False}
    return None if text.strip() == "None" else words.get(text.strip().lower(), text)


def _fitted(key: str, text: str, held: Any) -> Any:
    """Read a value, and convert it to the type of the config's value if the text permits."""
    value = parse_value(text)
    if isinstance(held, (list, tuple)):
        if isinstance(value, str):
            if value.strip()[:1] in BRACKETS:
                raise UserError(
                    f"{key}={text} does not close its brackets. Close them, and quote the option."
                )
            if "," in value:
                value = [parse_value(item.strip()) for item in _split(value)]
        return _as_held(value, held)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and isinstance(held, str) and PATHS.search(key.rpartition(".")[2]):
        return text
    return value


def _as_held(value: Any, held: Any) -> Any:
    """Convert lists to tuples where the config holds tuples."""
    if not isinstance(value, list) or not isinstance(held, (list, tuple)):
        return value
    inner = value
    if held:
        inner = [_as_held(item, held[min(n, len(held) - 1)]) for n, item in enumerate(value)]
    return tuple(inner) if isinstance(held, tuple) else inner


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    """Yield the characters outside quotes; quotes open only at the start of an item."""
    quote, previous = "", ","
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and previous in ",=:([{":
            quote = char
        else:
            yield place, char
        previous = previous if char.isspace() else char


def _is_enclosed(text: str) -> bool:
    """Return whether the first character is a bracket that the last character closes."""
    if text[:1] not in BRACKETS:
        return False
    open_brackets: list[str] = []
    for place, char in _outside_quotes(text):
        if char in BRACKETS:
            open_brackets.append(char)
        elif char in BRACKETS.values():
            if not open_brackets or BRACKETS[open_brackets.pop()] != char:
                return False
            if not open_brackets:
                return place == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and quotes; a trailing comma is allowed."""
    parts, depth, start = [], 0, 0
    for place, char in _outside_quotes(text):
        depth += (char in BRACKETS) - (char in BRACKETS.values())
        if char == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    last = text[start:]
    return [*parts, last] if last.strip() else parts
