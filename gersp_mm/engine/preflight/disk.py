"""A check that the disk has room for the checkpoints of a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict

from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import unwrap


def check_free_space(runner: Any, hook: Any, folder: str | os.PathLike) -> None:
    """Compare the free space of a folder with the checkpoints that a run will write.

    A warning is logged if there is room for only some of the checkpoints.

    Args:
        runner: The run before its first step.
        hook: The ``CheckpointHook`` of the run, which says how many checkpoints are kept.
        folder: Folder of the checkpoints.

    Raises:
        UserError: There is no room for one checkpoint.
    """
    size = checkpoint_bytes(unwrap(runner.model), runner.optim_wrapper, hook.save_optimizer)
    total, step = (
        (runner.max_epochs, runner.epoch) if hook.by_epoch else (runner.max_iters, runner.iter)
    )
    left = max(total - step, 0)
    coming = -(-left // hook.interval) if hook.interval > 0 else min(left, 1)
    if hook.max_keep_ckpts > 0:
        stored = len(list(Path(folder).glob(hook.filename_tmpl.format("*"))))
        coming = min(coming, max(hook.max_keep_ckpts - stored, 1))
    existing = next(
        path for path in (Path(folder), *Path(folder).resolve().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    if coming == 0 or free >= coming * size:
        return
    numbers = (
        f"{_text(free)} are free in {folder}, a checkpoint takes about {_text(size)} and "
        f"{coming} are to come"
    )
    fix = (
        "Free space, choose another folder with --work-dir, or keep fewer with "
        "default_hooks.checkpoint.max_keep_ckpts"
    )
    if free < size:
        raise UserError(f"no checkpoint can be written: {numbers}. {fix}")
    runner.logger.warning(f"the disk has no room for all checkpoints: {numbers}. {fix}")


def checkpoint_bytes(model: torch.nn.Module, optim_wrapper: Any, with_optimizer: bool) -> int:
    """Estimate the size of a checkpoint from the model and the kind of its optimizer.

    Args:
        model: The model without wrappers.
        optim_wrapper: An ``OptimWrapper`` or ``OptimWrapperDict`` of MMEngine.
        with_optimizer: Whether the state of the optimizer is saved.
    """
    size = _bytes(value for value in model.state_dict().values() if torch.is_tensor(value))
    if not with_optimizer:
        return size
    several = isinstance(optim_wrapper, OptimWrapperDict)
    for wrapper in optim_wrapper.values() if several else [optim_wrapper]:
        for group in wrapper.optimizer.param_groups:
            # SGD keeps one tensor for each parameter and none without momentum, Adam's kind two.
            copies = 2 if "betas" in group else int(group.get("momentum", 1) != 0)
            size += copies * _bytes(group["params"])
    return size


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _text(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
