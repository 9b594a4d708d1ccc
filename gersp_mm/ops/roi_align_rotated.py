"""RoIAlign of rotated regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gersp_mm.ops.precision import as_torchvision_takes, wide
from gersp_mm.ops.sampling import Bags, corners, spread_bags, sum_bags


def _bags(
    rois: Tensor,
    shape: torch.Size,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Bags:
    """Return the pixels that the bins of all regions average.

    Places are computed in the precision of the regions and in the order of mmcv's arithmetic,
    because a sample may lie exactly on the line beyond which it is outside.

    Args:
        rois: Number of the image, centre x and y, width, height and angle in radians, of shape
            (rois, 6).
        shape: Shape of the features.
        pooled_height: Bins from top to bottom.
        pooled_width: Bins from left to right.
        spatial_scale: Pixels of the features per pixel of the regions.
        sampling_ratio: Samples along each side of a bin; 0 takes one sample per pixel.
        aligned: Whether pixels have their centres at halves.
        clockwise: Whether angles grow clockwise.
    """
    height, width = shape[2:]
    center = rois[:, 1:3] * spatial_scale - (0.5 if aligned else 0.0)
    sides = rois[:, 3:5] * spatial_scale
    if not aligned:
        sides = sides.clamp(min=1)
    theta = (-rois[:, 5] if clockwise else rois[:, 5]).double()
    cos, sin = theta.cos().to(rois.dtype), theta.sin().to(rois.dtype)
    bin_width, bin_height = sides[:, 0] / pooled_width, sides[:, 1] / pooled_height
    if sampling_ratio > 0:
        across = down = torch.full_like(theta, sampling_ratio, dtype=torch.long)
    else:
        across, down = (b.float().ceil().long().clamp(min=0) for b in (bin_width, bin_height))
    per_bin, bins = across * down, pooled_height * pooled_width
    counts = per_bin * bins
    starts = counts.cumsum(0) - counts
    # Flat numbers of each sample: its region, its bin there, and its row and column in the bin.
    roi = torch.repeat_interleave(torch.arange(len(rois), device=rois.device), counts)
    within = torch.arange(len(roi), device=rois.device) - starts[roi]
    number, place = within // per_bin[roi], within % per_bin[roi]
    row, column = (place // across[roi]).to(rois), (place % across[roi]).to(rois)

    def offset(number: Tensor, step: Tensor, side: Tensor, size: Tensor, count: Tensor) -> Tensor:
        return -side[roi] / 2 + number * size[roi] + (step + 0.5) * size[roi] / count[roi].to(side)

    yy = offset((number // pooled_width).to(rois), row, sides[:, 1], bin_height, down)
    xx = offset((number % pooled_width).to(rois), column, sides[:, 0], bin_width, across)
    y = yy * cos[roi] - xx * sin[roi] + center[roi, 1]
    x = yy * sin[roi] + xx * cos[roi] + center[roi, 0]
    pixels, weights = corners(y, x, height, width)
    pixels = pixels + (rois[:, 0].long() * (height * width))[roi, None]
    (weights,) = wide(weights / per_bin[roi, None].to(rois))
    first = starts[:, None] + per_bin[:, None] * torch.arange(bins, device=rois.device)
    return Bags(pixels.flatten(), weights.flatten(), first.flatten() * 4)


def roi_align_rotated_forward(input: Tensor, rois: Tensor, output: Tensor, **sizes: Any) -> None:
    """Write the averages of every rotated region into ``output``.

    Args:
        input: Features of shape (n, channels, height, width).
        rois: See :func:`_bags`.
        output: Tensor for the result, of shape (rois, channels, pooled_height, pooled_width).
        **sizes: The other arguments of :func:`_bags`.
    """
    if not output.numel():
        return
    (rois,) = as_torchvision_takes(rois.to(input))
    (features,) = wide(input)
    pooled = sum_bags(features, _bags(rois, input.shape, **sizes))
    output.copy_(pooled.view(len(rois), *output.shape[2:], -1).permute(0, 3, 1, 2))


def roi_align_rotated_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, **sizes: Any
) -> None:
    """Write the gradient of :func:`roi_align_rotated_forward` with respect to its input."""
    if not grad_output.numel():
        return
    (rois,) = as_torchvision_takes(rois.to(grad_output))
    (gradient,) = wide(grad_output)
    gradient = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])
    bags = _bags(rois, grad_input.shape, **sizes)
    grad_input.copy_(spread_bags(gradient, bags, grad_input.shape))
