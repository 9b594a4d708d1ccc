"""Checkpoints that are written atomically."""

from __future__ import annotations

import os.path as osp
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from gersp_mm.engine.preflight.disk import check_free_space
from gersp_mm.engine.runs import together
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.files import remove_temporaries, replacing
from gersp_mm.utils.model import unwrap

ATOMIC_BACKEND = "gersp_mm.atomic"


class AtomicLocalBackend(LocalBackend):
    """A local file system whose files are written under a temporary name and moved into place."""

    def put(self, obj: bytes, filepath: str) -> None:
        """Write bytes so that a reader sees the old or the new content, never a part of it."""
        with replacing(filepath) as temporary:
            temporary.write_bytes(obj)


register_backend(ATOMIC_BACKEND, AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` with checkpoints moved into place when they are complete.

    A run that is killed while it saves keeps all earlier checkpoints readable. A checkpoint at the
    end of an epoch that lies between two optimizer steps also holds the gradients accumulated so
    far. A checkpoint by iteration waits for the optimizer step, because gradients differ between
    ranks and only rank 0 saves.

    Args:
        **kwargs: Arguments of ``CheckpointHook``. ``max_keep_ckpts`` must not be 1, because the
            old checkpoint is removed before the new one is complete.

    Raises:
        UserError: ``max_keep_ckpts`` is 1, a number is of another type or below its range, or the
            disk has no room for a checkpoint.
    """

    def __init__(self, **kwargs: Any) -> None:
        _check_numbers(kwargs)
        if kwargs.get("max_keep_ckpts") == 1:
            raise UserError(
                "default_hooks.checkpoint.max_keep_ckpts must be 2 or more (or -1 for all): with "
                "1, a run killed while it saves would be left without any checkpoint"
            )
        kwargs.setdefault("backend_args", dict(backend=ATOMIC_BACKEND))
        super().__init__(**kwargs)
        self._gradients: dict[str, torch.Tensor] = {}
        self._due = False

    def before_train(self, runner: Any) -> None:
        """Remove partly written files of an earlier run, and restore its gradients."""
        super().before_train(runner)
        with together():
            if runner.rank == 0 and "://" not in self.out_dir:
                if osp.isdir(self.out_dir):
                    remove_temporaries(self.out_dir)
                check_free_space(runner, self, self.out_dir)
        if not runner.optim_wrapper.should_update():
            for name, parameter in unwrap(runner.model).named_parameters():
                if name in self._gradients:
                    parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}

    def after_train_epoch(self, runner: Any) -> None:
        """Average gradients that are still accumulated over the ranks, and save on rank 0."""
        if get_world_size() > 1 and not runner.optim_wrapper.should_update():
            for gradient in _gradients(runner).values():
                all_reduce(gradient, "mean")
        super().after_train_epoch(runner)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save at the first optimizer step after a checkpoint is due."""
        if self.by_epoch:
            return
        last = self.save_last and self.is_last_train_iter(runner)
        self._due |= last or self.every_n_train_iters(runner, self.interval, self.save_begin)
        if self._due and runner.optim_wrapper.should_update():
            self._due = False
            runner.logger.info(f"Saving checkpoint at {runner.iter + 1} iterations")
            self._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        """Save a checkpoint, and end all ranks if rank 0 fails."""
        with together():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        """Save the best checkpoint, and end all ranks if rank 0 fails."""
        with together():
            super()._save_best_checkpoint(runner, metrics)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the gradients that the next optimizer step will use."""
        if not runner.optim_wrapper.should_update():
            checkpoint["gradients"] = {k: v.cpu() for k, v in _gradients(runner).items()}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the gradients until training starts."""
        self._gradients = checkpoint.get("gradients", {})


def _check_numbers(options: dict[str, Any]) -> None:
    for name, lowest, example in (
        ("interval", -1, "1 (-1 for none but the last)"),
        ("max_keep_ckpts", -1, "2 (-1 for all)"),
        ("save_begin", 0, 0),
    ):
        value, option = options.get(name, lowest), f"default_hooks.checkpoint.{name}"
        check_number(option, value, lowest, whole=True, such_as=example)


def _gradients(runner: Any) -> dict[str, torch.Tensor]:
    named = unwrap(runner.model).named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}
