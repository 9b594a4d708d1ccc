"""What is drawn for one view: its crop and its colours, applied by whichever engine there is.

A draw of colours is a vector of ``DRAW_SIZE`` float32 numbers, so that a batch of them is one
tensor. Worker processes (:mod:`gersp_mm.augmentation.host`) and the training device
(:mod:`gersp_mm.augmentation.device`) read the same vector and give the same image.
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np

# Codes of the four jitter operations, in torchvision's numbering.
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = 0, 1, 2, 3, -1

# Places in the vector.
FACTOR = slice(0, 4)  # brightness, contrast, saturation (factors around 1), hue (-0.5 to 0.5)
ORDER = slice(4, 8)  # which operation comes first, second, third, fourth; NOTHING leaves it out
GRAYSCALE = 8  # 0: no, 1: before the jitter, 2: after it
SIGMA = 9  # of the Gaussian blur, in pixels; 0: none
HORIZONTAL_FLIP, VERTICAL_FLIP = 10, 11  # 0 or 1
DRAW_SIZE = 12

BLUR_SIGMA = (0.1, 2.0)  # MoCo v2's range


def draw_colour(parts: dict[str, Any]) -> np.ndarray:
    """Draw from the distributions of torchvision's transforms, with Python's random state.

    Args:
        parts: an augmentation preset, see :class:`gersp_mm.datasets.ViewAugmentation`.

    Returns:
        DRAW_SIZE float32 numbers.
    """
    uniform, chance = random.uniform, random.random
    factors = [1.0, 1.0, 1.0, 0.0]
    order = [NOTHING] * 4
    if chance() < parts["jitter_prob"]:
        brightness, contrast, saturation, hue = parts["jitter"]
        order = [BRIGHTNESS, CONTRAST, SATURATION, HUE]
        random.shuffle(order)
        for operation, strength in enumerate((brightness, contrast, saturation)):
            factors[operation] = uniform(max(0.0, 1 - strength), 1 + strength)
        factors[HUE] = uniform(-hue, hue)
        order = [NOTHING if parts["jitter"][operation] == 0 else operation for operation in order]
    grayscale = chance() < parts["grayscale_prob"]
    position = (1 if parts["grayscale_first"] else 2) if grayscale else 0
    sigma = uniform(*BLUR_SIGMA) if chance() < parts["blur_prob"] else 0.0
    flips = [chance() < parts["horizontal_flip_prob"], chance() < parts["vertical_flip_prob"]]
    return np.array([*factors, *order, position, sigma, *flips], dtype=np.float32)


class Crop(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(height: int, width: int, scale: Any, ratio: Any) -> Crop:
    """Draw a crop as torchvision's ``RandomResizedCrop`` does, with Python's random state.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width divided by height.

    Returns:
        A crop inside the image; after ten that do not fit, the largest central one that does.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(random.randint(0, height - h), random.randint(0, width - w), h, w)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return Crop((height - h) // 2, (width - w) // 2, h, w)
