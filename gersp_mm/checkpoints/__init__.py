"""Checkpoint files: finding, reading and exporting them."""

from gersp_mm.checkpoints.export import export_backbone
from gersp_mm.checkpoints.find import latest_checkpoint

__all__ = ["export_backbone", "latest_checkpoint"]
