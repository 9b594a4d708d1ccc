"""The colour changes of one view in a worker process: compiled with numba, or with PIL."""

from __future__ import annotations

import importlib.util

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from gersp_mm.augmentation.draw import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    NOTHING,
    SATURATION,
    VIEW_DRAW,
)

ADJUST = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}


def has_numba() -> bool:
    """Return whether the compiled kernel is available (``pip install gersp_mm[fast]``)."""
    return importlib.util.find_spec("numba") is not None


def compile_kernel() -> None:
    """Compile the kernel, or load it from numba's cache, before worker processes are forked."""
    apply_compiled(np.zeros((1, 1, 3), np.uint8), np.zeros(1, VIEW_DRAW)[0])


def apply_compiled(pixels: np.ndarray, draw: np.void) -> np.ndarray:
    """Apply one draw with the compiled kernel, with the result of :func:`apply_with_pil`.

    Args:
        pixels: H×W×3 uint8 RGB, contiguous; it is overwritten.
        draw: A record of :func:`gersp_mm.augmentation.draw.draw_view`.

    Returns:
        H×W×3 uint8.
    """
    from gersp_mm.augmentation.kernel import recolour

    out = np.empty_like(pixels)
    recolour(pixels, np.frombuffer(draw, VIEW_DRAW), out)
    if draw["sigma"] > 0:  # The blur follows the colours and commutes with flips.
        out = np.array(_blur(Image.fromarray(out), draw))
    return out


def apply_with_pil(image: Image.Image, draw: np.void) -> Image.Image:
    """Apply one draw to a PIL RGB image with torchvision's functions, as the released code does."""
    if draw["grayscale"] == 1:
        image = F.rgb_to_grayscale(image, 3)
    for operation in draw["order"].tolist():
        if operation != NOTHING:
            image = ADJUST[operation](image, float(draw["factors"][operation]))
    if draw["grayscale"] == 2:
        image = F.rgb_to_grayscale(image, 3)
    if draw["sigma"] > 0:
        image = _blur(image, draw)
    if draw["hflip"]:
        image = F.hflip(image)
    if draw["vflip"]:
        image = F.vflip(image)
    return image


def _blur(image: Image.Image, draw: np.void) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(draw["sigma"])))
