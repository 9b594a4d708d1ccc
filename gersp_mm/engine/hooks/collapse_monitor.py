"""A monitor of the contrastive branch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class CollapseMonitorHook(Hook):
    """Log the age of the queue, warn when features collapse, and stop at a loss of NaN.

    The model itself logs positive and negative similarity, contrastive and natural top-1 and the
    queries' spread (``feat_std``).

    Args:
        interval: Iterations between two checks.
        min_std: Smallest ``feat_std`` without a warning. At 0 all images have the same feature; at
            about 1 the features fill the sphere.
        warmup: Iterations before the first warning; random networks start with little spread.

    Raises:
        UserError: A loss is NaN or infinite, at a check or before a checkpoint is saved.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, interval: int = 50, min_std: float = 0.05, warmup: int = 500) -> None:
        check_number("CollapseMonitorHook: interval", interval, 1, whole=True, such_as=50)
        check_number("CollapseMonitorHook: min_std", min_std, 0, such_as=0.05)
        check_number("CollapseMonitorHook: warmup", warmup, 0, whole=True, such_as=500)
        self.interval = interval
        self.min_std = min_std
        self.warmup = warmup

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Check every ``interval``-th iteration."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        values = _read_together(outputs or {})
        self._check_finite(runner, runner.iter + 1, values)
        queue = getattr(unwrap(runner.model), "queue", None)
        if queue is None:
            return
        steps = len(queue) / (runner.train_dataloader.batch_size * get_world_size())
        age = min(steps, runner.iter + 1)
        runner.message_hub.update_scalar("train/queue_age", age)
        if runner.iter >= self.warmup and values.get("feat_std", 1.0) < self.min_std:
            runner.logger.warning(
                f"features are collapsing: feat_std is {values['feat_std']:.3f}, below "
                f"{self.min_std}; lower the learning rate or raise model.teacher_momentum"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Refuse to save after a loss that is not finite."""
        if "train/loss" in runner.message_hub.log_scalars:
            loss = runner.message_hub.get_scalar("train/loss").current()
            self._check_finite(runner, runner.iter, {"loss": float(loss)})

    @staticmethod
    def _check_finite(runner: Any, iteration: int, values: dict[str, float]) -> None:
        broken = {n: v for n, v in values.items() if "loss" in n and not math.isfinite(v)}
        if broken:
            raise UserError(
                f"at iteration {iteration} {broken} is not finite. Lower "
                "optim_wrapper.optimizer.lr, warm it up, or train without --amp; the last "
                f"checkpoint in {runner.work_dir} was saved before"
            )


def _read_together(outputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the values of one-element tensors, waiting for the device once and not for each."""
    if not outputs:
        return {}
    tensors = [value.detach().reshape(()) for value in outputs.values()]
    row = torch.stack([tensor.to(tensors[0]) for tensor in tensors])
    return dict(zip(outputs, row.tolist()))
