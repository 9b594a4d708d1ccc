"""Averages of bilinear samples of a feature map, and their gradient.

Samples that share a bin form one bag: its value is the weighted sum of rows of the feature map,
laid out as pixels x channels. torch computes this sum by ``embedding_bag``, which does not store
the samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Bags(NamedTuple):
    """The pixels that each bin sums, with their weights.

    Attributes:
        pixels: Rows of the feature map, of shape (n,).
        weights: Weights of the pixels, of shape (n,).
        starts: First entry of each bag, of shape (bags,).
    """

    pixels: Tensor
    weights: Tensor
    starts: Tensor


def corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the four pixels around points and their bilinear weights.

    The weights of a point more than a pixel outside are 0; a closer point is moved to the border.

    Args:
        y: Rows, in pixels, of any shape.
        x: Columns in pixels, of the same shape.
        height: Height of the feature map in pixels.
        width: Width of the feature map in pixels.

    Returns:
        Numbers of the pixels and weights, both of shape (..., 4).
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = (torch.where(inside, v, 0).clamp(min=0) for v in (y, x))
    top, left = y.long().clamp(max=height - 1), x.long().clamp(max=width - 1)
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    dy = torch.where(top < height - 1, y - top, 0)
    dx = torch.where(left < width - 1, x - left, 0)
    pixels = [top * width + left, top * width + right, bottom * width + left]
    pixels.append(bottom * width + right)
    weights = [(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx]
    return torch.stack(pixels, -1), torch.stack(weights, -1) * inside[..., None]


def sum_bags(features: Tensor, bags: Bags) -> Tensor:
    """Return the sums of all bags, of shape (bags, channels).

    Args:
        features: Feature maps of shape (n, channels, height, width).
        bags: The bags, whose pixels are numbered over the whole batch.
    """
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return F.embedding_bag(
        bags.pixels, rows, bags.starts, mode="sum", per_sample_weights=bags.weights
    )


def spread_bags(gradient: Tensor, bags: Bags, shape: torch.Size) -> Tensor:
    """Return the gradient of :func:`sum_bags` with respect to the features.

    Args:
        gradient: Gradient of the sums, of shape (bags, channels).
        bags: The bags that were summed.
        shape: Shape of the features.
    """
    batch, channels, height, width = shape
    ends = torch.cat([bags.starts[1:], bags.starts.new_tensor([len(bags.pixels)])])
    bag = torch.repeat_interleave(
        torch.arange(len(bags.starts), device=gradient.device), ends - bags.starts
    )
    # The rows of the transposed sum are pixels: after sorting by pixel, each pixel is a bag of
    # bins.
    order = bags.pixels.argsort(stable=True)
    counts = torch.bincount(bags.pixels, minlength=batch * height * width)
    starts = counts.cumsum(0) - counts
    rows = F.embedding_bag(
        bag[order], gradient, starts, mode="sum", per_sample_weights=bags.weights[order]
    )
    return rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
