"""The error that is the user's to mend."""


class UserError(ValueError):
    """Bad input. The message names the file or field and the fix; tools print it in one line."""
