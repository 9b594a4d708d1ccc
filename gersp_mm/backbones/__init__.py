"""One exported backbone: what it is, how it is written, built and converted."""

from gersp_mm.backbones.exported import ExportedBackbone, export_backbone

__all__ = ["ExportedBackbone", "export_backbone"]
