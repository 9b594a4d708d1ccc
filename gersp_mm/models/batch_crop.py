"""Cutting the views of a whole batch out of images that the training device keeps.

The batched twin of :meth:`gersp_mm.datasets.ViewAugmentation._resize`: the same crops give the same
views, but for single grey levels where PyTorch's kernel for 8 bits rounds its weights. The crops
stay on the host, so nothing here waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch

from gersp_mm.models.batch_colour import send


def crop_batch(images: torch.Tensor, crops: np.ndarray, size: int) -> torch.Tensor:
    """Cut out, resize with antialiasing and turn.

    Args:
        images: K×3×H×W uint8, all images of a source, on any device.
        crops: N×6 integers on the host: number of the image, top, left, height, width, and how
            many quarter turns.
        size: side of the views in pixels.

    Returns:
        N×3×size×size uint8.
    """
    number, top, left, height, width, turns = crops.T
    chosen = images.index_select(0, send(number, images)).float()
    across = resize_weights(left, width, images.shape[3], size, images)
    views = (chosen @ across[:, None].mT).add_(0.5).floor_()
    down = resize_weights(top, height, images.shape[2], size, images)
    views = (down[:, None] @ views).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    for turn in (1, 2, 3):
        rows = np.flatnonzero(turns == turn)
        if len(rows):
            place = send(rows, images)
            views.index_copy_(0, place, views.index_select(0, place).rot90(turn, (2, 3)))
    return views


def resize_weights(
    start: np.ndarray, length: np.ndarray, total: int, size: int, like: torch.Tensor
) -> torch.Tensor:
    """Return what share each old pixel of a line has in each new one: N×size×total.

    Bilinear with antialiasing: a triangle over the pixels of the crop, as wide as a new pixel, or
    as two old ones where the crop is enlarged.

    Args:
        start: N integers, first old pixel of the crop.
        length: N integers, its number of old pixels.
        total: old pixels of the whole line.
        size: new pixels of the crop.
        like: tensor on the device.
    """
    first, count = (send(v.astype(np.float32), like).view(-1, 1, 1) for v in (start, length))
    scale = count / size
    new = torch.arange(size, device=like.device).view(1, -1, 1)
    old = torch.arange(total, device=like.device).view(1, 1, -1)
    distance = (old + 0.5 - first - (new + 0.5) * scale).abs() / scale.clamp(min=1)
    inside = (old >= first) & (old < first + count)
    weights = (1 - distance).clamp_(min=0) * inside
    return weights / weights.sum(2, keepdim=True)
