"""Checks of the batch size against images, queue, BatchNorm and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.utils.model import unwrap


def check_queue(runner: Any) -> Iterator[Finding]:
    """Find a queue that is smaller than the keys of one step, never full, or longer than an epoch.

    Random start vectors remain in a queue that is never full. A queue longer than an epoch holds
    keys of the query's own image.
    """
    model, loader = unwrap(runner.model), runner.train_dataloader
    queue, batch = getattr(model, "queue", None), loader.batch_size
    if queue is None or not batch:
        return
    field, steps, processes = "model.queue_len", runner.max_iters, get_world_size()
    length, views = f"{field}={len(queue)}", 2 if model.symmetric else 1
    keys = batch * processes * views
    if len(queue) < keys:
        yield Finding(
            field,
            f"{length} keys are fewer than the {keys} of one step ({batch} images per process, "
            f"{processes} processes).",
            "Raise model.queue_len or lower train_dataloader.batch_size.",
        )
    if len(queue) > keys * steps:
        yield Finding(
            field,
            f"{length}: the queue is never full, because all {steps} iterations give "
            f"{keys * steps} keys; the others stay random vectors.",
            "Lower model.queue_len, or train for longer.",
            "warning",
        )
    images = getattr(loader.dataset, "sizes", (0,))[0]
    if images and len(queue) > images * views and batch * processes * steps > images:
        yield Finding(
            field,
            f"{length} is more than the {images * views} keys of one pass over the {images} "
            "remote-sensing images: older keys of an image are among its own negatives.",
            f"Lower model.queue_len to at most {images * views}, or add images.",
            "warning",
        )


def check_pooled_norm(runner: Any) -> Iterator[Finding]:
    """Find a BatchNorm after global pooling whose batch is a single image."""
    loader = runner.train_dataloader
    name = _pooled_norm(unwrap(runner.model))
    if name is None or not loader.batch_size:
        return
    sizes = {loader.batch_size: "every batch has one image per process"}
    ends = isinstance(runner.train_loop, EpochBasedTrainLoop) and not loader.drop_last
    if ends and len(loader.sampler) > loader.batch_size:
        rest = len(loader.sampler) % loader.batch_size
        sizes.setdefault(rest, f"the last of {len(loader)} batches of an epoch has one image")
    if 1 in sizes:
        yield Finding(
            "train_dataloader.batch_size",
            f"train_dataloader.batch_size={loader.batch_size} does not work with the BatchNorm of "
            f"{name}, which gets one value per channel and image: {sizes[1]}.",
            "Use at least 2 images per process, and train_dataloader.drop_last=True for the rest "
            "of an epoch.",
        )


def _pooled_norm(model: nn.Module) -> str | None:
    """Return the name of a BatchNorm after global pooling, or None."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        pooled = False
        for part in module:
            if isinstance(part, nn.AdaptiveAvgPool2d):
                pooled = part.output_size in (1, (1, 1))
            for norm in part.modules() if pooled else ():
                across = isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1
                if isinstance(norm, _BatchNorm) and norm.training and not across:
                    return name
    return None


def check_epoch(runner: Any) -> Iterator[Finding]:
    """Warn of an epoch that is shorter than one batch; the loop refuses one without a batch."""
    loader = runner.train_dataloader
    if not loader.batch_size:
        return
    images = len(loader.sampler) * get_world_size()
    if len(loader) and images < loader.batch_size * get_world_size():
        yield Finding(
            "train_dataloader.batch_size",
            f"train_dataloader.batch_size={loader.batch_size} exceeds the number of samples: an "
            f"epoch is one batch of {images} samples.",
            "Lower train_dataloader.batch_size or add images.",
            "warning",
        )


def check_accumulation(runner: Any) -> Iterator[Finding]:
    """Find a run that is shorter than one optimizer step."""
    counts = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
    if isinstance(counts, int) and counts > runner.max_iters:
        yield Finding(
            "optim_wrapper.accumulative_counts",
            f"optim_wrapper.accumulative_counts={counts} is more than the {runner.max_iters} "
            "iterations of the run.",
            "Lower accumulative_counts, or train for longer.",
        )


def check_base_batch_size(runner: Any) -> Iterator[Finding]:
    """Warn of a learning rate that is meant for another batch size."""
    scaling = runner.cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    batch = runner.train_dataloader.batch_size or 0
    accumulated = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
    effective = batch * get_world_size() * accumulated
    if not base or not batch or base == effective or scaling.get("enable"):
        return
    yield Finding(
        "train_dataloader.batch_size",
        f"The learning rate of this config is meant for batches of {base}; this run has "
        f"{effective} ({batch} per process x {get_world_size()} processes x {accumulated} "
        "accumulated) and does not change the learning rate.",
        "Add --auto-scale-lr to scale it, or set optim_wrapper.optimizer.lr yourself.",
        "warning",
    )


def check_view_sizes(runner: Any) -> Iterator[Finding]:
    """Find views of different sizes in one forward pass."""
    model, dataset = unwrap(runner.model), runner.train_dataloader.dataset
    if not (getattr(model, "joint_forward", False) and model.with_natural_branch):
        return
    sizes = {}
    for name in ("rs_pipeline", "natural_pipeline"):
        transforms = getattr(getattr(dataset, name, None), "transforms", ())
        found = [t.size for t in transforms if isinstance(getattr(t, "size", None), int)]
        if found:
            sizes[name] = found[-1]
    if model.with_contrastive_branch and len(set(sizes.values())) > 1:
        rs, natural = sizes["rs_pipeline"], sizes["natural_pipeline"]
        yield Finding(
            "train_dataloader.dataset.natural_pipeline",
            f"Remote-sensing views of {rs} px and natural views of {natural} px cannot go through "
            "the network together.",
            "Give both the same size, or set model.joint_forward=False.",
        )
