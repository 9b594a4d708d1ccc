"""One view: its random draws, and the engines that apply them."""

from gersp_mm.augmentation.view import ViewAugmentation

__all__ = ["ViewAugmentation"]
