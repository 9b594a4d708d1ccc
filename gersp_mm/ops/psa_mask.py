"""The point-wise spatial attention masks of PSANet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Index = tuple[slice, slice, Tensor, Tensor]

COLLECT = 0  # mmcv's number for collecting; 1 stands for distributing


def _places(output: Tensor, psa_type: int, height: int, width: int) -> Tensor:
    """View attention as (n, row, column, row of the mask's pixel, column of the mask's pixel)."""
    places = output.view(len(output), height, width, height, width)
    return places if psa_type == COLLECT else places.permute(0, 3, 4, 1, 2)


def _columns(width: int, mask_width: int, half: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all columns of the features that a mask reaches, in the mask, and the mask's own."""
    column, own = torch.meshgrid(*[torch.arange(width, device=like.device)] * 2, indexing="ij")
    in_mask = column - own + half
    reached = (in_mask >= 0) & (in_mask < mask_width)
    return column[reached], in_mask[reached], own[reached]


def _pairs(
    places: Tensor, masks: Tensor, half_height: int, half_width: int
) -> Iterator[tuple[Tensor, Index, Tensor, Index]]:
    """Yield, row by row, the matching elements of the attention and of the masks.

    Args:
        places: The result of :func:`_places`.
        masks: Masks of shape (n, rows of a mask, columns of a mask, rows, columns).
        half_height: Row of the mask that is its pixel's own.
        half_width: Column of the mask that is its pixel's own.

    Yields:
        A view of the attention and an index into it, a view of the masks and an index into it.
    """
    _, mask_height, mask_width, height, width = masks.shape
    column, in_mask, own = _columns(width, mask_width, half_width, masks)
    every = slice(None), slice(None)
    at, of = (*every, column, own), (*every, in_mask, own)
    for row in range(height):
        first, last = max(0, half_height - row), min(mask_height, height + half_height - row)
        rows = slice(first + row - half_height, last + row - half_height)
        yield places[:, rows, :, row], at, masks[:, first:last, :, row], of


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
        output: Tensor of zeros for the result, of shape (n, rows x columns, rows, columns).
        psa_type: 0 collects, 1 distributes.
        num_: Number of images.
        h_feature: Number of rows.
        w_feature: Number of columns.
        h_mask: Number of rows of a mask.
        w_mask: Number of columns of a mask.
        half_h_mask: Row of the mask that is its pixel's own.
        half_w_mask: Column of the mask that is its pixel's own.
    """
    places = _places(output, psa_type, h_feature, w_feature)
    masks = input.view(num_, h_mask, w_mask, h_feature, w_feature)
    for place, at, mask, of in _pairs(places, masks, half_h_mask, half_w_mask):
        place[at] = mask[of]


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
    for place, at, mask, of in _pairs(places, masks, half_h_mask, half_w_mask):
        mask[of] = place[at]
