"""Paths as people type them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

HOME = re.compile(r"~$|~[\w.-]*/")  # the folder of a user, and paths below it


def expand_home(value: Any) -> Any:
    """Return a value with ``~`` at the start of its paths replaced by the home folder.

    Args:
        value: A string or a path, or lists, tuples and dicts of any depth. Lists and dicts are
            changed in place. A string that does not begin like a path below ``~`` stays.
    """
    if isinstance(value, dict):
        for key, inner in dict.items(value):  # without building lazy parts of a config
            if (expanded := expand_home(inner)) is not inner:
                dict.__setitem__(value, key, expanded)
    elif isinstance(value, list):
        value[:] = [expand_home(inner) for inner in value]
    elif isinstance(value, tuple):
        items = tuple(expand_home(inner) for inner in value)
        changed = any(new is not old for new, old in zip(items, value))
        return items if changed and type(value) is tuple else value
    elif isinstance(value, (str, Path)) and HOME.match(str(value)):
        return type(value)(os.path.expanduser(value))
    return value
