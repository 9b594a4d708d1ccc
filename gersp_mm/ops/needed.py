"""Find the operators that a model can call by reading its code, before it runs.

The search starts at the classes of the modules and of the objects that the modules hold. It follows
every function that their code names, until a function of ``mmcv.ops`` names an operator. Methods
that are never called are included.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from gersp_mm.ops.install import NAME, is_compiled, known_operators, missing_operators

EXTENSION = "ext_module"  # name of the compiled module in every file of mmcv.ops


def needed_and_missing(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the operators that a model needs and that are missing here.

    Returns:
        The operators of mmcv's own layers, without which a training step fails, and the operators
        that other code of the model names and may never call. Both are empty with compiled
        operators.
    """
    if is_compiled() or NAME not in sys.modules:
        return [], []
    types = {type(module) for module in model.modules()}
    layers = {kind for kind in types if kind.__module__.startswith("mmcv.ops.")}
    surely = _operators(layers) & missing_operators()
    perhaps = _operators(types | set(_held(model))) & missing_operators()
    return sorted(surely), sorted(perhaps - surely)


def _held(model: nn.Module) -> Iterator[type]:
    """Yield the classes of the objects that the modules of a model hold, such as assigners."""
    seen: set[int] = set()
    left = [value for module in model.modules() for value in vars(module).values()]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, (type, nn.Module)):
            continue
        seen.add(id(value))
        if isinstance(value, (list, tuple)):
            left += value
        elif type(value).__module__.split(".")[0] not in ("builtins", "torch", "mmengine", "numpy"):
            yield type(value)
            left += vars(value).values() if hasattr(value, "__dict__") else []


def _operators(roots: Iterable[type]) -> set[str]:
    """Return the operators that the code of classes can reach."""
    roots = list(roots)
    packages = {"mmcv", *(kind.__module__.split(".")[0] for kind in roots)} - {"torch", "builtins"}
    found: set[str] = set()
    seen: set[Any] = set()
    left: list[Any] = roots
    while left:
        part = left.pop()
        # The `apply` of an autograd function is bound to its class.
        part = part if isinstance(part, (type, FunctionType)) else getattr(part, "__self__", None)
        module = getattr(part, "__module__", None)
        if not module or module.split(".")[0] not in packages or part in seen:
            continue
        seen.add(part)
        if isinstance(part, type):
            left += part.__mro__[1:]
            left += (getattr(value, "__func__", value) for value in vars(part).values())
        elif isinstance(part, FunctionType):
            part = getattr(part, "__wrapped__", part)
            names = set(_names(part.__code__))
            variables = part.__globals__
            left += (variables[name] for name in names if name in variables)
            if EXTENSION in names and EXTENSION in variables:
                found |= names & known_operators()
    return found


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that code looks up, also in nested functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
