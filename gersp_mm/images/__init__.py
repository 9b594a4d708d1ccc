"""Reading of image files, from the list of paths to the pixels."""

from gersp_mm.images.decode import BadImageError, load_pixels, load_rgb

__all__ = ["BadImageError", "load_pixels", "load_rgb"]
