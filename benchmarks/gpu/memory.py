"""Part 3: the prediction of ``gersp plan`` against the measured peak, on emulated cards."""

from __future__ import annotations

from typing import Any

import torch
from measuring import Context, forget_memory, large, loader_config, measurement
from mmengine.config import ConfigDict

CARDS = (8, 12, 16, 24)  # GiB
VARIANTS = {"bf16": ("bf16", False), "bf16, checkpointing": ("bf16", True), "fp32": ("fp32", False)}
GIB = 2**30
TOLERANCE = 0.1  # of the measured peak


@measurement(part=3, limit=120)
def plan(ctx: Context) -> None:
    """Train with the largest batch that ``gersp plan`` finds for cards of 8 to 24 GB."""
    try:
        from gersp_mm.planning.memory import RESERVE, measure_memory
        from gersp_mm.planning.trial import Samples, Trial
    except ImportError as error:
        ctx.put("skipped", why=f"this version has no gersp plan: {error}")
        return
    torch.backends.cudnn.benchmark = True
    cfg = large(ctx, amp=None)
    side = 32 if ctx.small else 224
    cfg.train_dataloader = ConfigDict(loader_config(ctx, 2, 0, side, 64))
    samples = Samples(cfg)
    for variant, (precision, checkpointing) in VARIANTS.items():
        forget_memory(ctx)
        trial = Trial(cfg, samples, precision, checkpointing)
        memory = measure_memory(trial)
        for card in CARDS:
            what = f"{card} GiB, {variant}"
            if ctx.left() < 5:
                ctx.put("skipped", what=what, why="no time is left")
                continue
            batch = memory.largest_batch(card * GIB - RESERVE)
            parts = {name: size / GIB for name, size in memory.parts(batch).items()}
            predicted = dict(batch=batch, predicted_gib=sum(parts.values()), parts_gib=parts)
            if ctx.cuda:
                _train_on_card(ctx, what, trial, batch, card * GIB, predicted)
            else:
                ctx.put(what=what, **predicted)
        del trial


def _train_on_card(
    ctx: Context, what: str, trial: Any, batch: int, limit: int, predicted: dict[str, Any]
) -> None:
    """Take three steps within the memory of a card, and compare their peak with the prediction."""
    forget_memory(ctx)
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()  # CUDA's own, which a card has to hold
    if limit > total:
        ctx.put("skipped", what=what, why="this GPU has less memory")
        return
    torch.cuda.set_per_process_memory_fraction((limit - context) / total)
    try:
        data = trial.samples.batch(batch)
        for _ in range(3):
            trial.step(dict(data, inputs=dict(data["inputs"])))
        ctx.sync()
        peak = torch.cuda.max_memory_allocated()
        values = dict(
            relative_error=abs(predicted["predicted_gib"] * GIB / peak - 1),
            measured_gib=peak / GIB,
            reserved_gib=torch.cuda.max_memory_reserved() / GIB,
            context_gib=context / GIB,
            **predicted,
        )
        ctx.check(what, values, dict(relative_error=TOLERANCE))
    except torch.cuda.OutOfMemoryError as error:
        ctx.put("fail", what=what, error=str(error)[:300], **predicted)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
