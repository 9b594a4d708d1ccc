"""The error that is the user's to mend, and what messages are made of."""

from collections.abc import Collection


class UserError(ValueError):
    """Bad input. The message names the file or field and the fix; tools print it in one line."""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a :class:`UserError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def listed(names: Collection[object], most: int = 5) -> str:
    """Return the first ``most`` names and how many more there are: ``a, b and 3 more``."""
    shown = ", ".join(str(name) for name in list(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
