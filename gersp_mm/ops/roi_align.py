"""RoIAlign: averages from torchvision, maxima from samples."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from gersp_mm.ops.precision import as_torchvision_takes, wide
from gersp_mm.ops.sampling import corners

AVERAGE = 1  # mmcv's number of this mode of pooling; 0 stands for the maximum
LOWEST = -10000.0  # initial value of the maximum, and value of an empty bin


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled features of every region into ``output``.

    Args:
        input: Features of shape (n, channels, height, width).
        rois: Number of the image and corners, of shape (rois, 5).
        output: Tensor for the result, of shape (rois, channels, aligned_height, aligned_width).
        argmax_y: Tensor for the row of the largest sample, if maxima are requested.
        argmax_x: Tensor for its column.
        aligned_height: Bins from top to bottom.
        aligned_width: Bins from left to right.
        spatial_scale: Pixels of the features per pixel of the regions.
        sampling_ratio: Samples along each side of a bin; 0 takes one sample per pixel.
        pool_mode: 1 for the average, 0 for the maximum.
        aligned: Whether pixels have their centres at halves.
    """
    size = (aligned_height, aligned_width)
    if pool_mode == AVERAGE:
        input, rois = as_torchvision_takes(input, rois)
        pooled = torchvision.ops.roi_align(
            input, rois.to(input), size, spatial_scale, sampling_ratio, aligned
        )
        output.copy_(pooled)
        return
    input, rois = wide(input, rois)
    for number, roi in enumerate(rois):
        y, x = _samples(roi, size, spatial_scale, sampling_ratio, aligned)
        values = _sampled(input[int(roi[0])], y, x)
        values = torch.nn.functional.pad(values, (1, 0), value=LOWEST)
        best, where = values.max(-1)
        output[number].copy_(best)
        for argmax, place in ((argmax_y, y), (argmax_x, x)):
            place = torch.nn.functional.pad(place, (1, 0), value=-1).expand_as(values)
            argmax[number].copy_(place.gather(-1, where[..., None])[..., 0])


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` with respect to its input."""
    if pool_mode == AVERAGE:
        gradient, rois = as_torchvision_takes(grad_output, rois)
        gradient = torch.ops.torchvision._roi_align_backward(
            gradient, rois.to(gradient), spatial_scale, aligned_height, aligned_width,
            *grad_input.shape, sampling_ratio, aligned,
        )  # fmt: skip
        grad_input.copy_(gradient)
        return
    gradient, rois = wide(grad_output, rois)
    _, channels, height, width = grad_input.shape
    y, x = wide(argmax_y, argmax_x)
    pixels, weights = corners(y, x, height, width)
    # -1 is the row of an empty bin, which has no sample.
    weights = weights * (gradient * (argmax_y != -1))[..., None]
    channel = torch.arange(channels, device=rois.device)[:, None, None, None]
    image = rois[:, 0].long()[:, None, None, None, None]
    index = (image * channels + channel) * (height * width) + pixels
    total = torch.zeros_like(grad_input, dtype=weights.dtype).flatten()
    total.index_add_(0, index.flatten(), weights.flatten())
    grad_input.copy_(total.view(grad_input.shape))


def _samples(
    roi: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the samples of one region, of shape (bins, bins, samples)."""
    low, high = (roi[1:3] * scale).flip(0), (roi[3:5] * scale).flip(0)
    if aligned:
        low, high = low - 0.5, high - 0.5
    sides = high - low if aligned else (high - low).clamp(min=1)
    bins = sides / torch.tensor(size).to(roi)
    counts = [ratio] * 2 if ratio > 0 else bins.ceil().int().tolist()
    axes = []
    for start, side, bin_count, count in zip(low, bins, size, counts):
        steps = (torch.arange(count, device=roi.device) + 0.5) * side / count
        axes.append(start + torch.arange(bin_count, device=roi.device)[:, None] * side + steps)
    shape = (*size, counts[0], counts[1])
    y = axes[0][:, None, :, None].expand(shape).flatten(2)
    x = axes[1][None, :, None, :].expand(shape).flatten(2)
    return y, x


def _sampled(features: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return samples of one image, of shape (channels, bins, bins, samples)."""
    pixels, weights = corners(y, x, *features.shape[1:])
    return (features.flatten(1)[:, pixels] * weights).sum(-1)
