"""The point-wise spatial attention masks of PSANet."""

from __future__ import annotations

import torch
from torch import Tensor

COLLECT = 0  # mmcv's number for collecting; 1 is distributing


def _places(output: Tensor, psa_type: int, height: int, width: int) -> Tensor:
    """View attention as (n, row, column, row of the mask's pixel, column of it)."""
    places = output.view(len(output), height, width, height, width)
    return places if psa_type == COLLECT else places.permute(0, 3, 4, 1, 2)


def _columns(width: int, mask_width: int, half: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all columns of the features that a mask reaches, in the mask, and the mask's own."""
    column, own = torch.meshgrid(*[torch.arange(width, device=like.device)] * 2, indexing="ij")
    in_mask = column - own + half
    reached = (in_mask >= 0) & (in_mask < mask_width)
    return column[reached], in_mask[reached], own[reached]


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the attention of every pair of pixels into ``output``, 0 beyond the mask.

    Args:
        input: A mask around every pixel, of shape (n, h_mask x w_mask, rows, columns).
        output: Of shape (n, rows x columns, rows, columns), filled with zeros.
        psa_type: 0 collects, 1 distributes.
        num_: Number of images.
        h_feature: Rows.
        w_feature: Columns.
        h_mask: Rows of a mask.
        w_mask: Columns of a mask.
        half_h_mask: Row of the mask that is its pixel's own.
        half_w_mask: Column of the mask that is its pixel's own.
    """
    places = _places(output, psa_type, h_feature, w_feature)
    masks = input.view(num_, h_mask, w_mask, h_feature, w_feature)
    column, in_mask, own = _columns(w_feature, w_mask, half_w_mask, input)
    for row in range(h_feature):
        first, last = max(0, half_h_mask - row), min(h_mask, h_feature + half_h_mask - row)
        rows = slice(first + row - half_h_mask, last + row - half_h_mask)
        places[:, rows, :, row][:, :, column, own] = masks[:, first:last, :, row][
            :, :, in_mask, own
        ]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of :func:`psamask_forward` into ``grad_input``, filled with zeros."""
    places = _places(grad_output.contiguous(), psa_type, h_feature, w_feature)
    masks = grad_input.view(num_, h_mask, w_mask, h_feature, w_feature)
    column, in_mask, own = _columns(w_feature, w_mask, half_w_mask, grad_input)
    for row in range(h_feature):
        first, last = max(0, half_h_mask - row), min(h_mask, h_feature + half_h_mask - row)
        rows = slice(first + row - half_h_mask, last + row - half_h_mask)
        masks[:, first:last, :, row][:, :, in_mask, own] = places[:, rows, :, row][
            :, :, column, own
        ]
