"""One view: what is drawn, and the engines that apply it."""

from gersp_mm.augmentation.view import ViewAugmentation

__all__ = ["ViewAugmentation"]
