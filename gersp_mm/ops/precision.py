"""Convert tensors to the precision that an operator computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return 16-bit floating-point tensors as float32 and other tensors unchanged."""
    half = (torch.float16, torch.bfloat16)
    return tuple(t.float() if t.dtype in half else t for t in tensors)


def as_torchvision_takes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return bfloat16 tensors in float32; torchvision has kernels for all other precisions.

    torchvision's float16 kernels round every sum to 16 bits, like mmcv's kernels.
    """
    return tuple(t.float() if t.dtype == torch.bfloat16 else t for t in tensors)
