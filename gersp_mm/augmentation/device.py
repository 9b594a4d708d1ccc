"""Colour changes and crops of a whole batch on the training device.

This is the batched form of :func:`gersp_mm.augmentation.host.apply_with_pil`: the same draws give
the same images, except for single grey levels where float32 rounds differently and where PIL rounds
between the passes of its blur. The draws stay on the host, which counts the images of each
operation, so that no operation waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from gersp_mm.augmentation.draw import BRIGHTNESS, CONTRAST, HUE, SATURATION

LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # ITU-R 601-2 in PIL's fixed point


class KeptImages(NamedTuple):
    """All images of a source, on the device.

    Attributes:
        images: K×3×H×W uint8.
        size: Side of the views that are cropped from them, in pixels.
    """

    images: torch.Tensor
    size: int


def recolour_batch(images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Apply grayscale, jitter, blur and flips to each image by its own draw.

    Args:
        images: N×3×H×W uint8 RGB on any device; not changed.
        draws: N records of :data:`gersp_mm.augmentation.draw.VIEW_DRAW` on the host.

    Returns:
        N×3×H×W uint8 in the memory format of ``images``.
    """
    images = images.clone()
    _apply(images, draws["grayscale"] == 1, _grayscale)
    for slot in range(4):
        chosen = draws["order"][:, slot]
        for code, operation in OPERATIONS.items():
            _apply(images, chosen == code, operation, draws["factors"][:, code])
    _apply(images, draws["grayscale"] == 2, _grayscale)
    _blur_some(images, draws["sigma"])
    for name, dim in (("hflip", -1), ("vflip", -2)):
        if draws[name].any():
            flipped = send(draws[name], images).view(-1, 1, 1, 1)
            images = torch.where(flipped, images.flip(dim), images)
    return images


def _apply(
    images: torch.Tensor,
    chosen: np.ndarray,
    operation: Callable[..., torch.Tensor],
    factors: np.ndarray | None = None,
) -> None:
    """Replace the chosen images (N booleans) by the result of ``operation``."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    arguments = [] if factors is None else [send(factors[rows], images).view(-1, 1, 1, 1)]
    if len(rows) == len(images):
        images.copy_(operation(images.float(), *arguments))
    else:
        place = send(rows, images)
        changed = operation(images.index_select(0, place).float(), *arguments)
        images.index_copy_(0, place, changed.to(torch.uint8))


def send(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Copy a few numbers of the host to the device of ``like`` without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if like.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)


def _gray(images: torch.Tensor) -> torch.Tensor:
    r, g, b = images.unbind(1)
    return (r * LUMA[0] + g * LUMA[1]).add_(b * LUMA[2]).add_(0.5).floor_().unsqueeze(1)


def _blend(
    degenerate: torch.Tensor | float, images: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    return (images - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255).floor_()


def _grayscale(images: torch.Tensor) -> torch.Tensor:
    return _gray(images).expand_as(images)


def _brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(0.0, images, factor)


def _contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    mean = _gray(images).mean((1, 2, 3), keepdim=True, dtype=torch.float64)
    return _blend((mean + 0.5).floor().float(), images, factor)


def _saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(_gray(images), images, factor)


def _hue(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Rotate the hue by a share of the circle, in PIL's HSV of 8 bits."""
    r, g, b = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    divisor = chroma.clamp(min=1)
    rc, gc, bc = (high - r) / divisor, (high - g) / divisor, (high - b) / divisor
    sector = torch.where(g == high, 2 + rc - bc, 4 + gc - rc)
    sector = torch.where(r == high, bc - gc, sector)
    hue = (sector / 6 + 1).remainder_(1).mul_(255).floor_().mul_(chroma > 0)
    saturation = (chroma / high.clamp(min=1)).mul_(255).floor_().div_(255)
    steps = (shift.view(-1, 1, 1) * 255).trunc_()
    sixth = (hue + steps).remainder_(256).mul_(6 / 255)
    whole = (sixth + 1e-5).floor_()  # 6/255 is not exact in float32, multiples of 42.5 must be
    rest = (sixth - whole).clamp_(min=0)
    whole = whole.remainder_(6)
    p = (high * (1 - saturation)).add_(0.5).floor_()
    q = (high * (1 - saturation * rest)).add_(0.5).floor_()
    t = (high * (1 - saturation * (1 - rest))).add_(0.5).floor_()
    is_sector = [whole == number for number in range(6)]

    def choose(v: tuple[int, int], up: int, down: int) -> torch.Tensor:
        channel = torch.where(is_sector[v[0]] | is_sector[v[1]], high, p)
        return torch.where(is_sector[up], t, torch.where(is_sector[down], q, channel))

    return torch.stack([choose((0, 5), 4, 1), choose((1, 2), 0, 3), choose((3, 4), 2, 5)], 1)


OPERATIONS = {
    BRIGHTNESS: _brightness,
    CONTRAST: _contrast,
    SATURATION: _saturation,
    HUE: _hue,
}


def _blur_some(images: torch.Tensor, sigmas: np.ndarray) -> None:
    """Blur the images whose σ is positive, in place."""
    rows = np.flatnonzero(sigmas)
    if not len(rows):
        return
    kernels = [blur_kernel(float(sigma)) for sigma in sigmas[rows]]
    radius = max(len(kernel) for kernel in kernels) // 2
    padded = [np.pad(kernel, radius - len(kernel) // 2) for kernel in kernels]
    weights = send(np.stack(padded).astype(np.float32), images)
    place = send(rows, images)
    part = images.index_select(0, place).float()
    for pad, dim in (((radius, radius, 0, 0), 3), ((0, 0, radius, radius), 2)):
        wide = F.pad(part, pad, mode="replicate")
        length = part.shape[dim]
        part = torch.zeros_like(part)
        for tap in range(2 * radius + 1):
            part.addcmul_(wide.narrow(dim, tap, length), weights[:, tap].view(-1, 1, 1, 1))
        part = part.add_(0.5).floor_().clamp_(0, 255)
    images.index_copy_(0, place, part.to(torch.uint8))


def blur_kernel(sigma: float) -> np.ndarray:
    """Return the weights of PIL's ``GaussianBlur(sigma)``: three box blurs of fractional radius.

    Args:
        sigma: Standard deviation in pixels, positive.

    Returns:
        An odd number of weights that add up to 1.
    """
    variance = sigma * sigma / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    rest /= 6 * (variance - (whole + 1) ** 2)
    box = np.ones(2 * whole + 3)
    box[[0, -1]] = rest
    box /= box.sum()
    return np.convolve(np.convolve(box, box), box)


def crop_batch(images: torch.Tensor, draws: np.ndarray, size: int) -> torch.Tensor:
    """Crop, resize with antialiasing and rotate.

    Args:
        images: K×3×H×W uint8, all images of a source, on any device.
        draws: N records of :data:`gersp_mm.augmentation.draw.VIEW_DRAW` on the host.
        size: Side of the views in pixels.

    Returns:
        N×3×size×size uint8.
    """
    chosen = images.index_select(0, send(draws["image"], images)).float()
    across = resize_weights(draws["left"], draws["width"], images.shape[3], size, images)
    views = (chosen @ across[:, None].mT).add_(0.5).floor_()
    down = resize_weights(draws["top"], draws["height"], images.shape[2], size, images)
    views = (down[:, None] @ views).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    for turn in (1, 2, 3):
        rows = np.flatnonzero(draws["turns"] == turn)
        if len(rows):
            place = send(rows, images)
            views.index_copy_(0, place, views.index_select(0, place).rot90(turn, (2, 3)))
    return views


def resize_weights(
    start: np.ndarray, length: np.ndarray, total: int, size: int, like: torch.Tensor
) -> torch.Tensor:
    """Return the share of each old pixel of a line in each new pixel: N×size×total.

    The weights are bilinear with antialiasing: a triangle over the pixels of the crop, as wide as a
    new pixel, or as two old ones where the crop is enlarged.

    Args:
        start: First old pixel of each crop, N integers.
        length: Number of old pixels of each crop, N integers.
        total: Number of old pixels of the whole line.
        size: Number of new pixels of the crop.
        like: A tensor on the device.
    """
    first, count = (send(v.astype(np.float32), like).view(-1, 1, 1) for v in (start, length))
    scale = count / size
    new = torch.arange(size, device=like.device).view(1, -1, 1)
    old = torch.arange(total, device=like.device).view(1, 1, -1)
    distance = (old + 0.5 - first - (new + 0.5) * scale).abs() / scale.clamp(min=1)
    inside = (old >= first) & (old < first + count)
    weights = (1 - distance).clamp_(min=0) * inside
    return weights / weights.sum(2, keepdim=True)
