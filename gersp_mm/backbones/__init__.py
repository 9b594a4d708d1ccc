"""One exported backbone: what it is, how it is written, built and converted."""

from gersp_mm.backbones.exported import export_backbone

__all__ = ["export_backbone"]
