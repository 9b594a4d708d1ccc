"""In which precision an operator computes."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return 16-bit floating-point tensors in float32, others as they are."""
    half = (torch.float16, torch.bfloat16)
    return tuple(t.float() if t.dtype in half else t for t in tensors)


def as_torchvision_takes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return bfloat16 tensors in float32; torchvision has kernels for all other precisions.

    For float16 these compute as mmcv's do, with every sum rounded to 16 bits.
    """
    return tuple(t.float() if t.dtype == torch.bfloat16 else t for t in tensors)
