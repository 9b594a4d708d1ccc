"""The point-wise spatial attention masks of PSANet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Index = tuple[slice, slice, Tensor, Tensor]

COLLECT = 0  # mmcv's number for collecting; 1 stands for distributing


def _columns(width: int, mask_width: int, half: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all columns of the features that a mask reaches, in the mask, and the mask's own."""
    column, own = torch.meshgrid(*[torch.arange(width, device=like.device)] * 2, indexing="ij")
    in_mask = column - own + half
    reached = (in_mask >= 0) & (in_mask < mask_width)
    return column[reached], in_mask[reached], own[reached]


def _pairs(
    attention: Tensor,
    masks: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> Iterator[tuple[Tensor, Index, Tensor, Index]]:
    """Yield, row by row, the matching elements of the attention and of the masks.

    Args:
        attention: Of shape (n, rows x columns, rows, columns).
        masks: A mask around every pixel, of shape (n, h_mask x w_mask, rows, columns).
        psa_type: 0 collects, 1 distributes.
        num_: Number of images.
        h_feature: Number of rows.
        w_feature: Number of columns.
        h_mask: Number of rows of a mask.
        w_mask: Number of columns of a mask.
        half_h_mask: Row of the mask that is its pixel's own.
        half_w_mask: Column of the mask that is its pixel's own.

    Yields:
        A view of the attention and an index into it, a view of the masks and an index into it.
    """
    # (n, row, column, row of the mask's pixel, column of the mask's pixel)
    places = attention.view(num_, h_feature, w_feature, h_feature, w_feature)
    places = places if psa_type == COLLECT else places.permute(0, 3, 4, 1, 2)
    masks = masks.view(num_, h_mask, w_mask, h_feature, w_feature)
    column, in_mask, own = _columns(w_feature, w_mask, half_w_mask, masks)
    every = slice(None), slice(None)
    at, of = (*every, column, own), (*every, in_mask, own)
    for row in range(h_feature):
        first, last = max(0, half_h_mask - row), min(h_mask, h_feature + half_h_mask - row)
        rows = slice(first + row - half_h_mask, last + row - half_h_mask)
        yield places[:, rows, :, row], at, masks[:, first:last, :, row], of


def psamask_forward(input: Tensor, output: Tensor, **sizes: int) -> None:
    """Write the attention of every pair of pixels into ``output``, 0 beyond the mask.

    Args:
        input: The masks of :func:`_pairs`.
        output: Tensor of zeros for the attention.
        **sizes: The other arguments of :func:`_pairs`.
    """
    for place, at, mask, of in _pairs(output, input, **sizes):
        place[at] = mask[of]


def psamask_backward(grad_output: Tensor, grad_input: Tensor, **sizes: int) -> None:
    """Write the gradient of :func:`psamask_forward` into ``grad_input``, filled with zeros."""
    for place, at, mask, of in _pairs(grad_output.contiguous(), grad_input, **sizes):
        mask[of] = place[at]
