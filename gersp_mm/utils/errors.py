"""The error that is the user's to mend."""


class UserError(ValueError):
    """Bad input. The message names the file or field and the fix; tools print it in one line."""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a :class:`UserError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
