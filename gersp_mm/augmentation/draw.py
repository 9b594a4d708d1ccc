"""The random draws of one view: crop, turns and colours, for every engine.

A draw is one record of the NumPy type :data:`VIEW_DRAW`. Worker processes
(:mod:`gersp_mm.augmentation.host`) and the training device (:mod:`gersp_mm.augmentation.device`)
read the same record and give the same image.
"""

from __future__ import annotations

import math
import random
import struct
from typing import Any, NamedTuple

import numpy as np

# Codes of the four jitter operations, in torchvision's numbering.
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = 0, 1, 2, 3, -1

VIEW_DRAW = np.dtype(
    [
        ("image", np.int64),  # number of the image in a source that is kept on the device
        ("top", np.int64),  # of the crop in pixels, like the next three fields
        ("left", np.int64),
        ("height", np.int64),
        ("width", np.int64),
        ("turns", np.int64),  # number of turns by 90 degrees
        ("order", np.int64, 4),  # the first, second, … operation; NOTHING skips one
        ("factors", np.float32, 4),  # by operation: around 1; for the hue -0.5 to 0.5
        ("grayscale", np.int64),  # 0: no, 1: before the jitter, 2: after it
        ("sigma", np.float32),  # of the Gaussian blur in pixels; 0: no blur
        ("hflip", np.bool_),
        ("vflip", np.bool_),
    ],
    align=True,
)
_LAYOUT = struct.Struct("@6q4q4fqf2?2x")  # the same record; NumPy packs it ten times slower

BLUR_SIGMA = (0.1, 2.0)  # MoCo v2's range
RATIO = (3 / 4, 4 / 3)  # width to height of the crop


def draw_view(height: int, width: int, parts: dict[str, Any]) -> np.void:
    """Draw one view from the distributions of torchvision's transforms.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        parts: An augmentation preset, see :class:`gersp_mm.ViewAugmentation`.

    Returns:
        One record of :data:`VIEW_DRAW`, which depends on Python's random state.
    """
    uniform, chance = random.uniform, random.random
    crop = draw_crop(height, width, parts["scale"], RATIO)
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
    hflip = chance() < parts["horizontal_flip_prob"]
    vflip = chance() < parts["vertical_flip_prob"]
    turns = random.randrange(4) if parts["quarter_turns"] else 0
    record = _LAYOUT.pack(0, *crop, turns, *order, *factors, position, sigma, hflip, vflip)
    return np.frombuffer(bytearray(record), VIEW_DRAW)[0]


def pack(draw: np.void) -> np.ndarray:
    """Return a record as bytes, which every collate function can stack."""
    return np.frombuffer(bytearray(draw.tobytes()), np.uint8)


def unpack(rows: Any) -> np.ndarray:
    """Return the N records of N stacked results of :func:`pack`, an array or a tensor."""
    return np.ascontiguousarray(rows).view(VIEW_DRAW)[:, 0]


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
        A crop inside the image; after ten misfits, the largest central crop that fits.
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
