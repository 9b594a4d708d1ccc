"""From a file to the pixels that a network takes."""

from gersp_mm.images.decode import BadImageError, load_pixels, load_rgb

__all__ = ["BadImageError", "load_pixels", "load_rgb"]
