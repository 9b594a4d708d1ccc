"""What the text of a config in a checkpoint says, without running it."""

from __future__ import annotations

import ast
from typing import Any


class Unreadable:
    """Stands for a value that is no plain data."""


UNREADABLE = Unreadable()


def config_values(text: Any) -> dict[str, Any]:
    """Read the assignments of a config's text.

    Args:
        text: What MMEngine writes into ``meta['cfg']``; anything else gives nothing.

    Returns:
        Values by name; :data:`UNREADABLE` in the place of what is neither plain data nor
        ``dict(...)``.
    """
    try:
        statements = ast.parse(text).body if isinstance(text, str) else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        target.id: _value(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
        found = {key.arg: _value(key.value) for key in node.keywords if key.arg}
        for argument in node.args:
            inner = _value(argument)
            found.update(inner if isinstance(inner, dict) else {})
        return found
    if isinstance(node, ast.Dict):
        return {_key(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return UNREADABLE


def _key(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else UNREADABLE
    except (ValueError, TypeError):
        return UNREADABLE
