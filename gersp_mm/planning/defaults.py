"""Settings of a pre-training on one's own images, each with the reason for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gersp_mm.utils.errors import UserError

# Name on the command line: config it starts from, channels of the backbone's features.
ARCHITECTURES = {
    "resnet18": ("gersp_r50", 512),
    "resnet34": ("gersp_r50", 512),
    "resnet50": ("gersp_r50", 2048),
    "resnet101": ("gersp_r50", 2048),
    "resnet152": ("gersp_r50", 2048),
    "vit-small": ("gersp_vit-small", 384),
    "swin-tiny": ("gersp_swin-tiny", 768),
}
CROP = 224  # Pixels; the crop of the recipe.
LEAST_CROP = 32
QUEUE = 65_536
LONG_QUEUE = 4_096  # Queues of at least this length use the recipe's temperature.
GPU_UPDATES, CPU_UPDATES = 20_000, 1_000
LEAST_EPOCHS, MOST_EPOCHS = 100, 400  # on a GPU; the recipe has 100
BATCH_OF_GB = ((70, 256), (35, 128), (14, 64), (0, 32))  # memory of the GPU in GB, images
CPU_BATCH = 32
LR = 0.06  # Learning rate of SGD for 256 images.
LR_BATCH = 256
WARM_UP = 0.05  # Share of the epochs.


@dataclass(frozen=True)
class Decision:
    """One setting.

    Attributes:
        name: The setting in words.
        value: Its value in words.
        reason: Why it has this value; empty where nobody asks.
        options: Values of the config by dotted key.
    """

    name: str
    value: str
    reason: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where the training runs.

    Attributes:
        gpu_gb: Memory of the GPU in GB; None on a CPU.
        cores: Usable processor cores.
    """

    gpu_gb: float | None
    cores: int


def decide(
    count: int,
    side: int,
    arch: str,
    machine: Machine,
    epochs: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
) -> list[Decision]:
    """Choose the settings of a pre-training on one process.

    Args:
        count: Number of remote-sensing images, or windows of scenes, of one epoch.
        side: Length in pixels of the shorter side that half of them reach.
        arch: One of :data:`ARCHITECTURES`.
        machine: Where it runs.
        epochs: Epochs that were asked for.
        batch_size: Images per batch that were asked for.
        size: Side of the crops in pixels that was asked for.

    Raises:
        UserError: There are fewer than two images, or a number that was asked for does not fit.
    """
    if count < 2:
        raise UserError(f"--images has {count} image. Pre-training contrasts at least two.")
    crop = _crop(side, arch, size)
    batch = _batch(count, machine, batch_size)
    per_batch = int(batch.options["train_dataloader.batch_size"])
    length = _epochs(count // per_batch, machine, epochs)
    updates = int(length.options["train_cfg.max_epochs"]) * (count // per_batch)
    return [
        crop,
        batch,
        length,
        _queue(count, per_batch),
        _teacher(updates),
        _rate(per_batch, arch),
        Decision(
            "workers",
            str(max(1, min(machine.cores - 1, 16))),
            "",
            {"train_dataloader.num_workers": max(1, min(machine.cores - 1, 16))},
        ),
    ]


def schedule(epochs: int, arch: str) -> list[dict[str, Any]]:
    """Return a warm-up and one cosine, for so many epochs."""
    warm_up = min(max(1, round(WARM_UP * epochs)), max(epochs - 1, 1))
    common = dict(by_epoch=True, convert_to_iter_based=True)
    start = dict(type="LinearLR", start_factor=0.01, end=warm_up, **common)
    if epochs < 2:
        return [start]
    cosine = dict(
        type="CosineAnnealingLR", begin=warm_up, end=epochs, T_max=epochs - warm_up,
        eta_min_ratio=0.05, **common,
    )  # fmt: skip
    return [start, cosine]


def _crop(side: int, arch: str, size: int | None) -> Decision:
    step = 32 if arch == "swin-tiny" else 16
    if size is not None:
        if size % step or size < LEAST_CROP:
            raise UserError(
                f"--size {size}: {arch} takes multiples of {step} from {LEAST_CROP} pixels on."
            )
        value, reason = size, "as asked for"
    elif side >= CROP:
        value, reason = CROP, f"the recipe's; half of the images have {side} pixels or more"
    else:
        value = max(LEAST_CROP, int(0.75 * side) // step * step)
        reason = f"three quarters of the images' {side} pixels"
    options: dict[str, Any] = {"size": value}
    return Decision("crop", f"{value} px", reason, options)


def _batch(count: int, machine: Machine, asked: int | None) -> Decision:
    if asked is not None:
        if asked < 2 or asked > count:
            raise UserError(f"--batch-size {asked}: there are {count} images. Use 2 to {count}.")
        value, reason = asked, "as asked for"
    elif machine.gpu_gb is None:
        value, reason = min(CPU_BATCH, count), "on a CPU"
    else:
        fits = next(batch for least, batch in BATCH_OF_GB if machine.gpu_gb >= least)
        value, reason = min(fits, count), f"for a GPU with {machine.gpu_gb:.0f} GB"
    if asked is None and value == count:
        reason = "all images"
    options = {
        "train_dataloader.batch_size": value,
        "auto_scale_lr.base_batch_size": value,
    }
    return Decision("batch", f"{value} pairs", reason, options)


def _epochs(steps: int, machine: Machine, asked: int | None) -> Decision:
    if asked is not None:
        value, reason = asked, "as asked for"
    elif machine.gpu_gb is None:
        value = max(1, math.ceil(CPU_UPDATES / steps))
        reason = f"about {CPU_UPDATES:,} updates, a first look; a GPU affords more (--epochs)"
    else:
        value = min(max(LEAST_EPOCHS, math.ceil(GPU_UPDATES / steps)), MOST_EPOCHS)
        reason = f"{LEAST_EPOCHS} as in the recipe, up to {MOST_EPOCHS} for few images"
    return Decision(
        "epochs", f"{value} of {steps:,} steps", reason, {"train_cfg.max_epochs": value}
    )


def _queue(count: int, batch: int) -> Decision:
    value = min(QUEUE, count // batch * batch)
    temperature = 0.07 if value >= LONG_QUEUE else 0.1
    reason = "the recipe's" if value == QUEUE else "one pass, so that no image is its own negative"
    return Decision(
        "queue",
        f"{value:,} keys, temperature {temperature}",
        reason,
        {"model.queue_len": value, "model.head.temperature": temperature},
    )


def _teacher(updates: int) -> Decision:
    value = round(min(0.996, max(0.9, 1 - 4 / updates)), 4)
    reason = "the paper's" if value == 0.996 else f"a quarter of {updates:,} updates at most"
    return Decision("teacher momentum", f"{value:g}", reason, {"model.teacher_momentum": value})


def _rate(batch: int, arch: str) -> Decision:
    if not arch.startswith("resnet"):
        value = 5e-4 * batch / LR_BATCH
        kind = "AdamW"
    else:
        value, kind = LR * batch / LR_BATCH, "SGD"
    reason = f"{value * LR_BATCH / batch:g} for {LR_BATCH} images, one cosine after a warm-up"
    return Decision(
        "learning rate",
        f"{value:g} ({kind})",
        reason,
        {"optim_wrapper.optimizer.lr": value},
    )


def options_of(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Return the values of the config that some decisions set, without ``size``."""
    merged = {key: value for one in decisions for key, value in one.options.items()}
    merged.pop("size", None)
    return merged
