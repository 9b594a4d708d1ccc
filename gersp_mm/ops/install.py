"""Provide our operators as ``mmcv._ext`` if mmcv has no compiled operators.

mmcv reaches its compiled operators by one import, ``mmcv._ext``, and calls functions of this module
by name with tensors to fill. Our finder is the last that Python asks, so it answers this import
only if no compiled module exists. mmcv, mmdet, mmrotate and mmseg run unchanged. No heavy library
is imported before the first import of ``mmcv._ext``. A compiled module that exists and does not
load is a fault of the installation: it is not replaced, and the error names the fix.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NAME = "mmcv._ext"
_asked: set[str] = set()  # names that mmcv looked up and gersp_mm.ops lacks


class MissingOperatorError(NotImplementedError):
    """Neither this mmcv nor :mod:`gersp_mm.ops` has the operator that was called."""


class _Missing:
    """Placeholder for a missing operator. Calling it raises :class:`MissingOperatorError`."""

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


class _CompiledLoader(Loader):
    """A loader of the compiled operators whose error names the fix."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        try:
            return self.loader.create_module(spec)
        except ImportError as error:
            raise ImportError(
                f"The compiled operators of this mmcv do not load: {error}. They are damaged or "
                "made for another torch. Install an mmcv for this torch, or one without compiled "
                "operators, which gersp_mm.ops replaces (bash tools/setup_env.sh --downstream)."
            ) from error

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)


class _CompiledFinder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == NAME else None
        if spec is not None and spec.loader is not None:
            spec.loader = _CompiledLoader(spec.loader)
        return spec


def _missing(name: str) -> _Missing:
    if name.startswith("__"):
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
    _asked.add(name)
    return _Missing(name)


def install() -> None:
    """Register the finders for ``mmcv._ext``. A second call does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path[:] = [_CompiledFinder(), *sys.meta_path, _Finder()]


def is_compiled() -> bool:
    """Return whether mmcv has compiled operators, which are then in use."""
    module = sys.modules.get(NAME)
    spec = module.__spec__ if module is not None else importlib.util.find_spec(NAME)
    return spec is not None and not isinstance(spec.loader, _Loader)


def description() -> str:
    """Return one line that says which operators are in use."""
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
    """Return the operators that mmcv expects and :mod:`gersp_mm.ops` lacks."""
    return set(_asked)
