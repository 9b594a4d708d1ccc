"""One exported backbone: its description, and how it is written, built and converted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gersp_mm.backbones.exported import ExportedBackbone, export_backbone
    from gersp_mm.backbones.load import load_backbone

_MODULES = {"ExportedBackbone": "exported", "export_backbone": "exported", "load_backbone": "load"}
__all__ = ["ExportedBackbone", "export_backbone", "load_backbone"]


def __getattr__(name: str) -> Any:
    # A later import, because the names of sources are shown in help texts without torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
