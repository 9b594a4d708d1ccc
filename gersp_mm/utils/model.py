"""Getting at the model inside its wrappers."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> Any:
    """Return the model inside DistributedDataParallel, test-time augmentation and the like."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def as_tuple(output: Any) -> Any:
    """Return the output of a module as a tuple: a bare tensor and a list become one."""
    if isinstance(output, torch.Tensor):
        return (output,)
    return tuple(output) if isinstance(output, list) else output
