"""Changing the weight of the natural-image branch during training."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class AlphaScheduleHook(Hook):
    """Change the model's α linearly during training.

    This is our addition: α is constant in the paper and in the released code. α depends only on the
    number of the iteration, so that a resumed run is exact, and is logged as ``alpha``.

    Args:
        start: α of the first iteration, at least 0.
        end: α from iteration ``iterations`` on, at least 0.
        iterations: Length of the change in iterations; the whole run by default.

    Raises:
        UserError: A value is out of its range, or the model has no natural-image branch.
    """

    priority = "NORMAL"

    def __init__(self, start: float, end: float, iterations: int | None = None) -> None:
        check_number("AlphaScheduleHook: start", start, 0, such_as=1.0)
        check_number("AlphaScheduleHook: end", end, 0, such_as=0.1)
        if iterations is not None:
            check_number("AlphaScheduleHook: iterations", iterations, 1, whole=True, such_as=1000)
        self.start = start
        self.end = end
        self.iterations = iterations

    def before_train(self, runner: Any) -> None:
        """Refuse a model without a natural-image branch."""
        if not getattr(unwrap(runner.model), "with_natural_branch", False):
            raise UserError(
                "AlphaScheduleHook has no effect, because the model has no natural-image branch. "
                "Set model.natural_head and model.alpha above 0, or remove the hook."
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set α for this iteration."""
        share = min(1.0, runner.iter / (self.iterations or runner.max_iters))
        alpha = self.start + (self.end - self.start) * share
        unwrap(runner.model).alpha = alpha
        runner.message_hub.update_scalar("train/alpha", alpha)
