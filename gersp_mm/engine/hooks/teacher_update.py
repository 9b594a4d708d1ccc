"""The update of the teacher, once per optimizer step."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class TeacherUpdateHook(Hook):
    """Call the model's ``update_teacher`` once per optimizer step, also if gradients accumulate.

    Args:
        end_momentum: Momentum at the end of the run, in [0, 1]. It is reached from the model's
            ``teacher_momentum`` along half a cosine; constant by default.
        timing: ``'after_step'``, or ``'before_forward'`` as in the released code. The two differ
            in the first step, if teacher and student start apart, and in the teacher of the last
            checkpoint.

    Raises:
        UserError: ``timing`` has another value, or ``end_momentum`` is out of its range.
    """

    priority = "NORMAL"

    def __init__(self, end_momentum: float | None = None, timing: str = "after_step") -> None:
        if timing not in ("after_step", "before_forward"):
            raise UserError(f"timing must be 'after_step' or 'before_forward', got {timing!r}")
        if end_momentum is not None:
            check_number("TeacherUpdateHook: end_momentum", end_momentum, 0, 1, such_as=1.0)
        self.end_momentum = end_momentum
        self.timing = timing

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Update before the forward pass, as the released code does."""
        if self.timing == "before_forward":
            self._update(runner)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update after the optimizer step."""
        if self.timing == "after_step":
            self._update(runner)

    def _update(self, runner: Any) -> None:
        # True between two optimizer steps, whichever way gradients accumulate.
        if not runner.optim_wrapper.should_update():
            return
        model = unwrap(runner.model)
        if not hasattr(model, "update_teacher"):  # Models of mmpretrain do it themselves.
            return
        momentum = model.teacher_momentum
        if self.end_momentum is not None:
            progress = runner.iter / runner.max_iters
            remaining = (1 + math.cos(math.pi * progress)) / 2
            momentum = self.end_momentum - (self.end_momentum - momentum) * remaining
        model.update_teacher(momentum)
