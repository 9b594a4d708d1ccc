"""Random states that a resumed run shares with one that was never interrupted."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from gersp_mm.registry import HOOKS
from gersp_mm.utils.randomness import seed_everything


@HOOKS.register_module()
class RNGStateHook(Hook):
    """Make the random state of every rank a function of (seed, iteration, rank).

    Nothing has to be stored or gathered, and a run may die at any moment: whichever iteration it
    resumes from, that iteration sees the random numbers it would have seen. Workers are covered
    by :class:`gersp_mm.PairedSampler`, which gives every sample a seed of its own.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this rank for this iteration."""
        seed_everything(runner.seed, runner.iter, runner.rank)
