"""One exported backbone: what it is, how it is written, built and converted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gersp_mm.backbones.exported import ExportedBackbone, export_backbone

__all__ = ["ExportedBackbone", "export_backbone"]


def __getattr__(name: str) -> Any:
    # A later import, because the names of sources are shown in help texts without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gersp_mm.backbones import exported

    return getattr(exported, name)
