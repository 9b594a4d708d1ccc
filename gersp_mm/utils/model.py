"""Getting at the model inside its wrappers."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and the like."""
    while is_model_wrapper(model):
        model = model.module
    return model
