"""Part 2: pairs per second, what bounds them, and the released step next to ours."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import shutil
import time
from typing import Any

import numpy as np
import step as speed_step
import torch
from end_to_end import Enough, Stopwatch
from measuring import (
    Context,
    config,
    distance,
    forget_memory,
    fresh,
    large,
    load_batch,
    loader_config,
    loss_error,
    make_loader,
    make_runner,
    measurement,
    pinned,
    random_batches,
    seconds_per_call,
    take_step,
    train,
)
from measuring import build as build_exactly
from timing import interleave, paired_ratio, spread, spreads
from torch.profiler import ProfilerActivity, profile

from gersp_mm.augmentation.device import KeptImages
from gersp_mm.augmentation.draw import VIEW_DRAW, draw_view, pack
from gersp_mm.augmentation.view import PRESETS
from gersp_mm.utils.provenance import cores

KINDS = {
    "copies and fills": r"memcpy|memset|copy_",
    "batch norm": r"batch_?norm|bn_fw|bn_bw|\bbn",
    "convolutions": r"conv|fprop|dgrad|wgrad|implicit_gemm|xmma",
    "layout": r"nchw|nhwc|transpose",
    "optimizer and teacher": r"multi_tensor|foreach|fused|lerp|sgd",
    "matrix products": r"gemm|nvjet|cutlass|addmm|\bmm\b|bmm|matmul",
    "pooling": r"pool",
    "softmax, reductions": r"softmax|reduce|sum|mean|amax",
    "indexing": r"index|gather|scatter|cat",
}  # of kernels, by their names


def size(ctx: Context) -> int:
    """Return the side of the images in pixels."""
    return 32 if ctx.small else 224


def pairs(ctx: Context) -> int:
    """Return the pairs of a batch, where there is one batch size."""
    return 4 if ctx.small else 256


def allow_tf32(convolutions: bool = True, products: bool = False) -> None:
    """Choose cuDNN's algorithms by trial, as the configs do, and set TF32, by default PyTorch's."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products


@functools.cache
def flops_per_pair(ctx: Context) -> float:
    """Count the operations of the network for one pair; a multiply-add is two.

    They are the student's forward and backward over query view and natural image and the teacher's
    forward over the key view, without loss, queue, optimizer and augmentation.
    """
    ours = speed_step.Ours(large(ctx, amp=None), ctx.device)
    batch = speed_step.make_batch(2, size(ctx), 1000, ctx.device)
    bound = speed_step.bound_step(ours.model, speed_step.memory_format(ours.model), None)
    return speed_step.count_flops(lambda: bound(batch)) / 2


def measure_step(
    ctx: Context,
    what: str,
    batch: int,
    amp: str | None = "bf16",
    tf32: str = "convolutions",
    seconds: float = 4.0,
    **model: Any,
) -> None:
    """Time our step on resident normalised images and add a line with rate, MFU and memory.

    Args:
        ctx: The context.
        what: Name of the line.
        batch: Pairs of the batch.
        amp: Mixed precision.
        tf32: ``'convolutions'``, PyTorch's default, ``'everywhere'`` or ``'nowhere'``.
        seconds: Duration of the timing.
        **model: Changes of the model's config.
    """
    allow_tf32(tf32 != "nowhere", tf32 == "everywhere")
    forget_memory(ctx)
    try:
        ours = speed_step.Ours(large(ctx, amp, **model), ctx.device)
        data = speed_step.make_batch(batch, size(ctx), 1000, ctx.device)
        begin = time.perf_counter()
        ours.step(data)
        ctx.sync()
        first = time.perf_counter() - begin
        times = seconds_per_call(ctx, lambda: ours.step(data), seconds)
    except torch.cuda.OutOfMemoryError as error:
        ctx.put("oom", what=what, batch=batch, error=str(error)[:200])
        return
    peak = None
    if ctx.cuda and tf32 != "nowhere":
        known = argparse.Namespace(peak_tflops=None, device=ctx.device, amp=amp)
        peak = speed_step.peak_tflops(known)
    rate = batch / times["median"]
    memory: dict[str, float] = {}
    if ctx.cuda:  # before the count of operations builds another model
        memory = dict(peak_gib=torch.cuda.max_memory_allocated() / 2**30,
                      reserved_gib=torch.cuda.max_memory_reserved() / 2**30)  # fmt: skip
    tflops = rate * flops_per_pair(ctx) / 1e12
    ctx.put(what=what, batch=batch, amp=amp, tf32=tf32, model=model, first_step_s=first,
            step_ms={name: 1e3 * value for name, value in times.items()}, pairs_per_s=rate,
            tflops=tflops, peak_tflops=peak, mfu=tflops / peak if peak else None,
            **memory)  # fmt: skip


@measurement(part=2, limit=80)
def batch_sweep(ctx: Context) -> None:
    """Time ResNet-50 at 224 px in bf16 with batches of 64 to 512."""
    gflop = flops_per_pair(ctx) / 1e9
    ctx.put(what="operations of the network for one pair", gflop=gflop)
    for batch in (2, 4) if ctx.small else (64, 128, 256, 512):
        measure_step(ctx, "bf16, channels last", batch, seconds=5)


@measurement(part=2, limit=120)
def released_beside(ctx: Context) -> None:
    """Let ours, the released step in fp32 and AMP, and mmpretrain's MoCo take turns."""
    allow_tf32()
    for batch in (pairs(ctx) // 2, pairs(ctx) // 4):  # Six contenders share the memory.
        if _let_take_turns(ctx, batch):
            return
        forget_memory(ctx)


def _let_take_turns(ctx: Context, batch: int) -> bool:
    """Time the contenders with a batch; return False where they do not fit into the memory."""
    arch, queue, rounds, calls = (18, 512, 2, 1) if ctx.small else (50, 65536, 6, 2)
    args = argparse.Namespace(
        arch=arch, size=size(ctx), batch=batch, amp="bf16", queue=queue, device=ctx.device,
        contiguous=False, only=("ours", "released", "mmpretrain"),
    )  # fmt: skip
    try:
        steps, memory, model = speed_step.build(args)
        times = interleave(steps, rounds, 1, ctx.device, calls)
    except torch.cuda.OutOfMemoryError as error:
        ctx.put("oom", batch=batch, error=str(error)[:200])
        return False
    others = [name for name in times if name != "ours"]
    ratios = {f"{name} / ours": paired_ratio(times, name, "ours") for name in others}
    rates = {name: batch / spread(seconds)["median"] for name, seconds in times.items()}
    ctx.put(what=f"interleaved, {batch} pairs", step_ms=spreads(times), pairs_per_s=rates,
            peak_mib=memory, ratios=ratios, rounds=rounds, calls=calls)  # fmt: skip
    ctx.bar("released in AMP / ours, at least 2", ratios["released, amp / ours"]["median"], 2)
    for part, contenders in speed_step.micro(args, model).items():
        if ctx.left() > 10:
            part_times = interleave(contenders, rounds, 1, ctx.device, calls=5)
            ctx.put(what=part, us=spreads(part_times, 1e6))
    return True


@measurement(part=2, limit=90)
def fed(ctx: Context) -> None:
    """Time the Runner fed from JPEG files by the project's loader against a resident batch."""
    allow_tf32()
    batch, workers = pairs(ctx), 1 if ctx.small else max(cores() - 1, 1)
    cfg = large(ctx)
    ours = speed_step.Ours(cfg, ctx.device)
    data = pinned(ctx, load_batch(ctx, batch, size(ctx)))

    def resident() -> None:
        assert ours is not None and data is not None
        ours.model.train_step(fresh(data), ours.optim_wrapper)
        ours.model.update_teacher()

    there = seconds_per_call(ctx, resident, 6)["median"]
    ctx.put(what="resident uint8 batch, colours on the device", pairs_per_s=batch / there,
            step_ms=there * 1e3)  # fmt: skip
    ours = data = None
    first, steps = (2, 3) if ctx.small else (15, 45)
    shares = {}
    for folder in ("rs256", "rs500"):
        if shares and ctx.left() < 15:
            ctx.put("skipped", what=folder, why="no time is left")
            break
        watch = Stopwatch(first, steps, ctx.device)
        loader = loader_config(ctx, batch, workers, size(ctx), (first + steps + 1) * batch, folder)
        runner = make_runner(ctx, cfg, loader)
        runner.register_hook(watch, priority="LOWEST")
        try:
            train(runner)
        except Enough:
            seconds = watch.result()["mean"]
        shares[folder] = there / seconds
        ctx.put(what=f"Runner fed from {folder}", workers=loader["num_workers"], cores=cores(),
                pairs_per_s=batch / seconds, of_resident=shares[folder])  # fmt: skip
        del runner
    ctx.bar("fed from 256 px JPEG / resident, at least 0.9", shares["rs256"], 0.9)


@measurement(part=2, limit=60)
def where_time_goes(ctx: Context) -> None:
    """Profile whole training steps, colours and optimizer included, by kinds of kernels."""
    allow_tf32()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * ctx.cuda
    for batch in (pairs(ctx), pairs(ctx) // 4):
        ours = speed_step.Ours(large(ctx), ctx.device)
        data = pinned(ctx, load_batch(ctx, max(batch, 2), size(ctx)))

        def whole(ours: Any = ours, data: Any = data) -> None:
            ours.model.train_step(fresh(data), ours.optim_wrapper)
            ours.model.update_teacher()

        def colours(ours: Any = ours, data: Any = data) -> None:
            ours.model.data_preprocessor(fresh(data), True)

        seconds = seconds_per_call(ctx, whole, 3)["median"]
        part = seconds_per_call(ctx, colours, 2)["median"]
        begin = time.perf_counter()  # Without waiting: the host's own time to start a step.
        whole()
        whole()
        host = (time.perf_counter() - begin) / 2
        ctx.sync()
        ctx.put(what=f"{batch} pairs", step_ms=seconds * 1e3, preprocessor_alone_ms=part * 1e3,
                host_ms=host * 1e3)  # fmt: skip
        steps = 1 if ctx.small else 3
        with profile(activities=activities) as profiler:
            for _ in range(steps):
                whole()
            ctx.sync()
        _sort_kernels(ctx, batch, profiler, steps, seconds)


def _sort_kernels(ctx: Context, batch: int, profiler: Any, steps: int, seconds: float) -> None:
    events = profiler.key_averages()
    field = "self_cpu_time_total"
    if ctx.cuda:  # whose name in torch before 2.4 is the other one
        names = ("self_device_time_total", "self_cuda_time_total")
        field = next(name for name in names if hasattr(events[0], name))
    times, kernels = dict.fromkeys([*KINDS, "elementwise and others"], 0.0), 0
    for event in events:
        # A range around kernels is no kernel itself.
        is_range = event.key.startswith(("Optimizer.", "ProfilerStep", "## "))
        is_range = is_range or getattr(event, "is_user_annotation", False)
        on_device = not ctx.cuda or str(event.device_type).endswith("CUDA")
        if on_device and not is_range and getattr(event, field, 0):
            kinds = (k for k, names in KINDS.items() if re.search(names, event.key.lower()))
            times[next(kinds, "elementwise and others")] += getattr(event, field) / 1e3 / steps
            kernels += event.count
    busy = sum(times.values())
    ctx.put(what=f"{batch} pairs, by kind of kernel", ms_per_step=times, busy_ms=busy,
            busy_share=busy / (seconds * 1e3), kernels_per_step=kernels // steps)  # fmt: skip
    table = events.table(sort_by=field, row_limit=40, max_name_column_width=90)
    with open(ctx.out / "profile.txt", "a", encoding="utf-8") as file:
        file.write(f"{batch} pairs, {steps} steps\n{table}\n\n")


@measurement(part=2, limit=90)
def precision(ctx: Context) -> None:
    """Time precisions and memory formats at one batch size."""
    cases: dict[str, dict[str, Any]] = {
        "bf16, channels last": {},
        "bf16, contiguous": dict(channels_last=False),
        "TF32 everywhere, channels last": dict(amp=None, tf32="everywhere"),
        "TF32 in convolutions, channels last": dict(amp=None),
        "TF32 in convolutions, contiguous": dict(amp=None, channels_last=False),
        "fp16, channels last": dict(amp="fp16"),
        "fp32, channels last": dict(amp=None, tf32="nowhere"),
    }
    for what, changes in cases.items():
        if ctx.left() < 6:
            ctx.put("skipped", what=what, why="no time is left")
        elif ctx.cuda or "fp16" not in what:
            measure_step(ctx, what, pairs(ctx) // 2, seconds=3, **changes)


@measurement(part=2, limit=40)
def loader_alone(ctx: Context) -> None:
    """Time the loader alone by number of workers and place of the colour work."""
    batch, count = (4, 4) if ctx.small else (128, 60)
    cases = list(itertools.product(("rs256", "rs500"), (cores(), cores() // 2), ("device",)))
    cases.append(("rs256", cores(), "workers"))
    for folder, workers, where in cases[:1] if ctx.small else cases:
        what = f"{folder}, {workers} workers, colours: {where}"
        if ctx.left() < 8:
            ctx.put("skipped", what=what, why="no time is left")
            continue
        loader = make_loader(ctx, batch, max(workers, 1), size(ctx), batch * count, folder,
                             colour=where)  # fmt: skip
        batches = iter(loader)
        for _ in range(count // 4):
            next(batches)
        begin, seen = time.perf_counter(), 0
        for _ in batches:
            seen += batch
            if time.perf_counter() - begin > 6:
                break
        rate = seen / (time.perf_counter() - begin)
        if loader.num_workers:
            batches._shutdown_workers()
        used = loader.num_workers  # fewer than asked for where shared memory is small
        ctx.put(what=what, pairs_per_s=rate, workers=used, per_worker=rate / max(used, 1))


@measurement(part=2, limit=30)
def kept_images(ctx: Context) -> None:
    """Time a step whose views are cut out of images that stay on the device."""
    allow_tf32()
    batch = pairs(ctx)
    ours = speed_step.Ours(large(ctx), ctx.device)
    data = load_batch(ctx, batch, 32 if ctx.small else 256)
    parts = PRESETS["released"]
    draws = {}
    for name, images in data["inputs"].items():
        kept = KeptImages(images.contiguous().to(ctx.device), size(ctx))
        ours.model.data_preprocessor.kept[name] = kept
        records = np.array([draw_view(*images.shape[2:], parts) for _ in range(batch)], VIEW_DRAW)
        records["image"] = np.arange(batch)
        draws[name] = np.stack([pack(record) for record in records])
    empty = {name: images[:, :, :0, :0] for name, images in data["inputs"].items()}
    data = dict(data, inputs=empty, draw=draws)

    def whole() -> None:
        ours.model.train_step(fresh(data), ours.optim_wrapper)
        ours.model.update_teacher()

    def views() -> None:
        ours.model.data_preprocessor(fresh(data), True)

    seconds = seconds_per_call(ctx, whole, 4)["median"]
    part = seconds_per_call(ctx, views, 2)["median"]
    ctx.put(what="views cut out of images on the device", batch=batch, step_ms=seconds * 1e3,
            pairs_per_s=batch / seconds, preprocessor_ms=part * 1e3)  # fmt: skip


def compile_options(ctx: Context) -> Any:
    """Return ``model.compile``; a rehearsal has no minutes for a compiler."""
    return dict(backend="eager") if ctx.small else True


def has_compiler(ctx: Context) -> bool:
    """Tell whether Triton finds a C compiler, without which it builds nothing; note where not."""
    found = any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))
    if ctx.cuda and not found:
        ctx.put("skipped", why="this machine has no C compiler, which torch.compile needs")
    return found or not ctx.cuda


@measurement(part=2, limit=120)
def compiled_speed(ctx: Context) -> None:
    """Time our step with both backbones compiled."""
    if not has_compiler(ctx):
        return
    measure_step(ctx, "bf16, channels last, compiled", pairs(ctx), seconds=5,
                 compile=compile_options(ctx))  # fmt: skip


@measurement(part=2, limit=120)
def compiled_values(ctx: Context) -> None:
    """Compare two steps with compiled backbones with the same without compilation."""
    if not has_compiler(ctx):
        return
    batch, side = (2, 32) if ctx.small else (16, 64)
    runs = []
    for choice in (False, compile_options(ctx)):
        ours = build_exactly(config(ctx, queue=128, compile=choice), ctx.device)
        runs.append([take_step(ours, *one) for one in random_batches(batch, side, 2, ctx.device)])
    (a, a_second), (b, b_second) = runs
    values = dict(
        loss=loss_error(b.losses, a.losses),
        gradient=distance(b.gradients, a.gradients),
        loss_second=loss_error(b_second.losses, a_second.losses),
    )
    ctx.check("compiled against eager, fp32", values,
              dict(loss=1e-4, gradient=2e-3, loss_second=5e-3))  # fmt: skip
