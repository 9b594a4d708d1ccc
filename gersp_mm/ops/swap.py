"""Replace the compiled operators by ours temporarily, to compare both in one process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from gersp_mm.ops.install import NAME
from gersp_mm.ops.operators import OPERATORS


@contextmanager
def our_operators() -> Iterator[None]:
    """Let all of ``mmcv.ops`` call our operators; operators that we lack stay compiled."""
    extension = importlib.import_module(NAME)
    importlib.import_module("mmcv.ops")
    ours = SimpleNamespace(**{**vars(extension), **OPERATORS})
    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("mmcv.ops.") and getattr(module, "ext_module", None) is extension
    ]
    for module in users:
        vars(module)["ext_module"] = ours
    try:
        yield
    finally:
        for module in users:
            vars(module)["ext_module"] = extension
