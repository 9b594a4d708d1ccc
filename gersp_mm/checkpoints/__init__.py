"""Files that hold weights: read safely, find, compare."""

from gersp_mm.checkpoints.find import latest_checkpoint

__all__ = ["latest_checkpoint"]
