"""Arguments for the work of a command, which tests call without the command around it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

GROUPS = {"preparation": "prepare", "visualization": "show"}


def parse(module: ModuleType, arguments: Iterable[object]) -> argparse.Namespace:
    """Parse the arguments of the ``gersp`` command whose work this module does."""
    _, room, name = module.__name__.split(".")
    command = import_module(f"gersp_mm.commands.{GROUPS[room]}.{name}")
    return command.parse_args([str(argument) for argument in arguments])
