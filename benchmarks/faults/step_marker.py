"""Hooks of the small configs: one prints the current step, the other injects a fault."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StepMarkerHook(Hook):
    """Print which step begins, so that a message can be placed before or after it."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Print a line that ``run.py`` searches for."""
        print(f"[faults] step {runner.iter + 1} begins", flush=True)


@HOOKS.register_module()
class NaNGradientHook(Hook):
    """Make the gradients of one step NaN, as an overflow in the backward pass does.

    Args:
        step: Number of the step, counted from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Make the gradients of this step NaN; its loss stays finite."""
        if runner.iter + 1 == self.step:
            model = getattr(runner.model, "module", runner.model)
            weight = next(p for p in model.parameters() if p.requires_grad)
            self.handle = weight.register_hook(lambda grad: torch.full_like(grad, torch.nan))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Leave the gradients of later steps alone."""
        if runner.iter + 1 == self.step:
            self.handle.remove()
