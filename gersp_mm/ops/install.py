"""Where ``mmcv._ext`` is missing, a module of that name with our operators takes its place.

mmcv reaches its compiled operators by one import, ``mmcv._ext``, and calls its functions by name
with tensors to fill. A finder that stands behind all others answers this import, so that it is
asked only where no compiled module exists, and mmcv, mmdet, mmrotate and mmseg run unchanged.
Nothing heavy is imported before that.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "mmcv._ext"
_asked: set[str] = set()  # what mmcv looked for and we do not have


class MissingOperatorError(NotImplementedError):
    """An operator was called that neither mmcv, for lack of a compiled module, nor we have."""


class _Missing:
    """Stands for an operator that nobody has; calling it says so."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise MissingOperatorError(
            f"{self.name} needs mmcv with compiled operators, which this Python does not have: "
            "gersp_mm.ops has no torch version of it. Install a wheel of mmcv that has mmcv._ext."
        )


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from gersp_mm.ops.operators import OPERATORS

        vars(module).update(OPERATORS)
        # mmcv asks for every name that it may call as soon as `mmcv.ops` is imported.
        vars(module)["__getattr__"] = _missing
        logging.getLogger(__name__).info(description())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, _Loader(), origin="gersp_mm.ops") if name == NAME else None


def _missing(name: str) -> _Missing:
    if name.startswith("__"):
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
    _asked.add(name)
    return _Missing(name)


def install() -> None:
    """Let our operators answer for ``mmcv._ext`` where it is missing; again does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def is_compiled() -> bool:
    """Whether mmcv has compiled operators, which are then the ones in use."""
    module = sys.modules.get(NAME)
    spec = module.__spec__ if module is not None else importlib.util.find_spec(NAME)
    return spec is not None and not isinstance(spec.loader, _Loader)


def description() -> str:
    """Say in one line which operators are in use."""
    if is_compiled():
        return "mmcv's operators are the compiled ones (mmcv._ext)"
    return (
        "mmcv's operators are those of gersp_mm.ops, in torch and torchvision: "
        "this mmcv has no compiled ones (mmcv._ext)"
    )


def known_operators() -> set[str]:
    """Return the names of all functions that mmcv expects in ``mmcv._ext``."""
    return {name for name in vars(sys.modules[NAME]) if not name.startswith("_")} | _asked


def missing_operators() -> set[str]:
    """Return the operators that mmcv expects and nobody has here."""
    return set(_asked)
