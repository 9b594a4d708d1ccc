"""Random states that do not depend on interruptions of a run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.randomness import seed_everything


@HOOKS.register_module()
class RNGStateHook(Hook):
    """Make the random state of every rank a function of (seed, iteration, rank).

    No state has to be stored: whichever iteration a run resumes from, that iteration sees the same
    random numbers as without the interruption. Worker processes are covered by the samplers, which
    give every sample its own seed.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this rank for this iteration."""
        seed_everything(runner.seed, runner.iter, runner.rank)
