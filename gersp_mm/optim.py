"""Parameter groups without the teacher, and mixed precision in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from gersp_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableParamsConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, handing over trainable parameters alone, in few groups.

    MMEngine's own puts frozen parameters (the teacher's) into the optimizer, and with a
    ``paramwise_cfg`` makes a group of every single parameter, which fused optimizers step through
    one by one. Here groups of equal options are one group.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper for ``model``."""
        wrapper = super().__call__(model)
        merged: dict[tuple, dict] = {}
        for group in wrapper.optimizer.param_groups:
            options = tuple(sorted((k, repr(v)) for k, v in group.items() if k != "params"))
            target = merged.setdefault(options, {**group, "params": []})
            target["params"] += [p for p in group["params"] if p.requires_grad]
        wrapper.optimizer.param_groups[:] = [g for g in merged.values() if g["params"]]
        return wrapper


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on any device, which MMEngine's ``AmpOptimWrapper`` has on GPUs.

    bfloat16 has the range of fp32, so the loss is not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
