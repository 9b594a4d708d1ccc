"""Getting at the model inside its wrappers."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> Any:
    """Return the model inside DistributedDataParallel, test-time augmentation and the like."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner
