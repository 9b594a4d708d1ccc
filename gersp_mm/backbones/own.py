"""Modules of the user's own, from which alone a file may name networks besides mmpretrain's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from importlib import import_module

from gersp_mm.utils.errors import UserError

ADVICE = "If it is a class of your own, name the module that defines it: --import MODULE"

_imported: set[str] = set()


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``, whose values go to :func:`import_modules`."""
    parser.add_argument(
        "--import",
        nargs="+",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import modules that register backbones of your own, such as my_package.networks",
    )


def import_modules(names: Iterable[str]) -> None:
    """Import modules, and let exported backbones be built of the classes that they define.

    They are found in the current folder too. A file never names one.

    Args:
        names: Dotted names of modules or packages.

    Raises:
        UserError: A module cannot be imported.
    """
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            import_module(name)
        except Exception as error:  # The module may raise any error.
            raise UserError(
                f"--import {name}: it cannot be imported ({type(error).__name__}: {error}). Give "
                "the name that Python imports it by, with its folder in PYTHONPATH or as the "
                "current one"
            ) from error
        _imported.add(name)


def is_own(module: str) -> bool:
    """Return whether a module is an imported module or inside one."""
    return any(f"{module}.".startswith(f"{name}.") for name in _imported)


def is_own_type(kind: str) -> bool:
    """Return whether a type is named by an imported module, or by its package as the scope."""
    scope = kind.rpartition(".")[0]
    return is_own(scope) or scope in {name.partition(".")[0] for name in _imported}
