"""Boxes and compiled operators in fp32 inside a bfloat16 forward pass.

None of mmcv's operators supports bfloat16 on CPUs and few support it on GPUs, and mmrotate's box
coders use NumPy, which has no bfloat16. Boxes would also be rounded: near 1000 px to steps of 4 px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import nn

DETECTORS = ("mmdet.", "mmrotate.")
# Methods of the detectors' heads that decode, match or suppress boxes.
BOX_METHODS = ("loss_by_feat", "predict_by_feat", "loss_and_target", "refine_bboxes")

Part = tuple[nn.Module, str]


def parts_in_full_precision(model: nn.Module) -> list[Part]:
    """Return the methods of a model that have to run in fp32, as pairs of module and name."""
    parts = []
    for module in model.modules():
        origins = [base.__module__ for base in type(module).__mro__]
        if any(origin.startswith("mmcv.ops.") for origin in origins):
            parts.append((module, "forward"))
        elif any(origin.startswith(DETECTORS) for origin in origins):
            names = ("forward",) if hasattr(module, "roi_layers") else BOX_METHODS
            parts += [(module, name) for name in names if hasattr(module, name)]
    return parts


@contextmanager
def full_precision(parts: list[Part]) -> Iterator[None]:
    """Run methods on fp32 tensors and without autocast inside the context.

    Args:
        parts: Pairs of a module and the name of its method. All are restored afterwards.
    """
    for module, name in parts:
        module.__dict__[name] = _in_full_precision(getattr(module, name))
    try:
        yield
    finally:
        for module, name in parts:
            module.__dict__.pop(name, None)


def _in_full_precision(method: Callable) -> Callable:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return method(*_as_float(args), **_as_float(kwargs))

    return call


def _as_float(value: Any) -> Any:
    """Return a nested value with its bfloat16 tensors in fp32."""
    return apply_to(value, _is_bfloat16, torch.Tensor.float)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
