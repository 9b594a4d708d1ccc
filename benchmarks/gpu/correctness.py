"""Part 1: the device against the CPU, mixed precision against fp32, and no synchronisation."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import traceback
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from measuring import (
    Context,
    Step,
    build,
    config,
    distance,
    fresh,
    levels,
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
    teacher_of,
    train,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from PIL import Image
from torch.nn import functional as F

from gersp_mm import GeRSP, PairedDataPreprocessor
from gersp_mm.augmentation.device import crop_batch, recolour_batch
from gersp_mm.augmentation.draw import VIEW_DRAW, draw_view, unpack
from gersp_mm.augmentation.host import apply_compiled, apply_with_pil, has_numba
from gersp_mm.augmentation.view import PRESETS
from gersp_mm.checkpoints.read import read_checkpoint
from gersp_mm.evaluation.knn import knn_predict
from gersp_mm.models.info_nce import InfoNCEHead
from gersp_mm.models.negative_queue import enqueue, random_queue

FP64 = dict(loss_first=1e-10, gradient=1e-9, loss_all=1e-8, teacher_change=1e-7, queue=1e-9,
            statistics=1e-10)  # fmt: skip
FP32 = dict(loss_first=1e-4, gradient=2e-3, loss_all=5e-3, teacher_change=2e-2, queue=1e-3,
            statistics=1e-4)  # fmt: skip
# First step against fp32. On a CPU with 32 pairs of 64 px, bf16 changes losses by 1e-4, the
# gradient's norm by 5e-4, and turns it by 0.25.
AMP = dict(
    bf16=dict(loss_ct=0.02, loss_ce=0.01, gradient_angle=0.4, gradient_norm=0.05),
    fp16=dict(loss_ct=0.003, loss_ce=0.002, gradient_angle=0.1, gradient_norm=0.02),
)


@measurement(part=1, limit=30)
def environment(ctx: Context) -> None:
    """Describe the machine and measure its two ceilings: copies and matrix products."""
    optional = ("numba", "simplejpeg", "lmdb")
    values: dict[str, Any] = dict(
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        cv2=importlib.import_module("cv2").__version__,
        cores=len(os.sched_getaffinity(0)),
        **{name: importlib.util.find_spec(name) is not None for name in optional},
    )
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")  # through which workers send batches
        values["shared_memory_gib"] = shared.f_blocks * shared.f_frsize / 2**30
    if ctx.cuda:
        query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
        with contextlib.suppress(OSError):
            command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
            done = subprocess.run(command, capture_output=True, text=True)
            values["nvidia_smi"] = done.stdout.strip()
        values["capability"] = torch.cuda.get_device_capability()
        values["bf16_with_emulation"] = torch.cuda.is_bf16_supported()
    ctx.put(**values)
    n = 256 if ctx.small else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(n, n, device=ctx.device).to(dtype) for _ in "ab")
        seconds = seconds_per_call(ctx, lambda a=a, b=b: a @ b, 1.0)["median"]
        ctx.put(what=f"product of {n}×{n}, {dtype}", tflops=2 * n**3 / seconds / 1e12)
    source = torch.empty((1 if ctx.small else 512) * 2**20, device=ctx.device)
    target = torch.empty_like(source)
    seconds = seconds_per_call(ctx, lambda: target.copy_(source), 1.0)["median"]
    ctx.put(what="copy on the device", tb_per_s=2 * source.nbytes / seconds / 1e12)
    if ctx.cuda:
        host = torch.empty(2**28, dtype=torch.uint8).pin_memory()
        there = torch.empty_like(host, device="cuda")
        seconds = seconds_per_call(ctx, lambda: there.copy_(host, non_blocking=True), 1)["median"]
        ctx.put(what="copy from pinned memory", gb_per_s=host.nbytes / seconds / 1e9)


# ----------------------------------------------------------------------------------------- training
def compare_training(
    ctx: Context,
    what: str,
    cfg: Config,
    dtype: torch.dtype,
    pairs: int,
    size: int,
    steps: int,
    bounds: dict[str, float],
) -> None:
    """Take the same steps on the device and on the CPU from the same state, and compare."""
    reference, tested = build(cfg, "cpu", dtype), build(cfg, ctx.device, dtype)
    start = teacher_of(reference)
    errors, values = [], {}
    for here, there in zip(
        random_batches(pairs, size, steps, "cpu", dtype),
        random_batches(pairs, size, steps, ctx.device, dtype),
    ):
        expected, found = take_step(reference, *here), take_step(tested, *there)
        errors.append(loss_error(found.losses, expected.losses))
        if not values:
            values["gradient"] = distance(found.gradients, expected.gradients)
    ours, theirs = tested.model, reference.model
    statistics = {name: value for name, value in theirs.named_buffers() if "running" in name}
    values.update(
        loss_first=errors[0],
        loss_all=max(errors),
        teacher_change=distance(teacher_of(tested), teacher_of(reference), start),
        queue=float((ours.queue.double().cpu() - theirs.queue.double()).abs().max()),
        pointer=abs(int(ours.queue_ptr) - int(theirs.queue_ptr)),
        statistics=distance(dict(ours.named_buffers()), statistics),
    )
    ctx.check(what, values, dict(bounds, pointer=0))


@measurement(part=1, limit=50)
def fp64_training(ctx: Context) -> None:
    """Compare two steps in float64 with the CPU's, for every way to take a step."""
    pairs, size = (4, 32) if ctx.small else (8, 64)
    cases: dict[str, dict[str, Any]] = {
        "default": {},
        "symmetric": dict(symmetric=True),
        "separate forwards": dict(joint_forward=False, natural_statistics=False),
        "contiguous": dict(channels_last=False),
    }
    if "split_size" in inspect.signature(GeRSP).parameters:
        cases["split BatchNorm"] = dict(key_bn="split", split_size=pairs // 2)
    for what, changes in cases.items():
        cfg = config(ctx, queue=50, **changes)  # The queue wraps around, inside of a batch.
        with mock.patch.object(torch, "randperm", _permute_on_cpu):
            compare_training(ctx, what, cfg, torch.float64, pairs, size, 2, FP64)


def _permute_on_cpu(n: int, *, device: Any = None, **options: Any) -> torch.Tensor:
    """Return the same permutation on every device, where each has a generator of its own."""
    generator = torch.Generator().manual_seed(n)
    return torch.arange(n)[torch.rand(n, generator=generator).argsort()].to(device)


@measurement(part=1, limit=25)
def fp32_training(ctx: Context) -> None:
    """Compare steps in fp32 without TF32 with the CPU's: ResNet-18, then ResNet-50."""
    pairs, size, steps = (4, 32, 2) if ctx.small else (16, 64, 5)
    compare_training(ctx, "ResNet-18", config(ctx), torch.float32, pairs, size, steps, FP32)
    if ctx.left() > 10:
        pairs, size = (2, 32) if ctx.small else (8, 224)
        cfg = config(ctx, arch=50, queue=512 if ctx.small else 65536)
        compare_training(ctx, "ResNet-50", cfg, torch.float32, pairs, size, 1, FP32)


@measurement(part=1, limit=10)
def queue_and_loss(ctx: Context) -> None:
    """Compare the queue and InfoNCE alone with the CPU's in float64."""
    for length, count in ((20, 7), (20, 20), (20, 47), (65536, 256)):
        host, pointer = random_queue(length, 8), torch.zeros(1, dtype=torch.long)
        there, place = host.clone().to(ctx.device), pointer.clone().to(ctx.device)
        for _ in range(4):
            keys = torch.randn(count, 8)
            enqueue(host, pointer, keys)
            enqueue(there, place, keys.to(ctx.device))
        differs = float(not torch.equal(there.cpu(), host) or int(place) != int(pointer))
        ctx.check(f"{count} keys into {length}", dict(differs=differs), dict(differs=0))
    length, count = (512, 8) if ctx.small else (65536, 256)
    queue = random_queue(length, 128)
    query, key = (F.normalize(torch.randn(count, 128), dim=1) for _ in "qk")

    def run(device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        q, k, negatives = (tensor.to(device, dtype) for tensor in (query.clone(), key, queue))
        q.requires_grad_()
        loss = InfoNCEHead(0.07).loss(q, k, negatives)["loss_ct"]
        loss.backward()
        return dict(loss=loss.detach(), gradient=q.grad)

    expected = run("cpu", torch.float64)
    for tf32, bounds in ((False, (1e-5, 1e-5)), (True, (1e-3, 1e-2))):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found = run(ctx.device, torch.float32)
        values = {name: distance({name: found[name]}, {name: expected[name]}) for name in expected}
        ctx.check(f"InfoNCE in fp32, TF32 {tf32}", values, dict(zip(("loss", "gradient"), bounds)))


# --------------------------------------------------------------------------------------- the views
@measurement(part=1, limit=60)
def colour(ctx: Context) -> None:
    """Compare colours, blur and flips with the CPU's tensors, PIL and the compiled kernel."""
    pairs, size = (6, 32) if ctx.small else (96, 224)
    all_parts = dict(preset="mocov2", blur_prob=0.5, vertical_flip_prob=0.5)
    for what, parts in {"released": {}, "mocov2": all_parts}.items():
        batch = load_batch(ctx, pairs, size, **parts)
        for name in ("rs_query", "natural"):
            images, draws = batch["inputs"][name], unpack(batch["draw"][name])
            found = recolour_batch(images.to(ctx.device), draws)
            values = levels(found, recolour_batch(images, draws))
            layout = found.is_contiguous(memory_format=torch.channels_last)
            values["not_channels_last"] = float(not layout)
            bounds = dict(above_2=1e-3, differing=1e-2, not_channels_last=0)
            ctx.check(f"{what}, {name}: against CPU tensors", values, bounds)
            _against_workers(ctx, f"{what}, {name}", found, images, draws)


def _against_workers(
    ctx: Context, what: str, found: torch.Tensor, images: torch.Tensor, draws: np.ndarray
) -> None:
    """Compare with the colour work of worker processes.

    PIL extends an image at its edges in each of the three passes of its blur, the device once.
    On a CPU 0.1 % of the values of 224 px are more than 2 levels off for that, near the edges.
    """
    pixels = [np.ascontiguousarray(one.permute(1, 2, 0).numpy()) for one in images[:48]]
    engines = {"PIL": lambda p, draw: np.array(apply_with_pil(Image.fromarray(p), draw))}
    if has_numba():
        engines["compiled kernel"] = lambda p, draw: apply_compiled(p.copy(), draw)
    edge = 6 if ctx.small else 16
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    for engine, apply in engines.items():
        expected = torch.from_numpy(np.stack([apply(p, d) for p, d in zip(pixels, draws)]))
        expected, part = expected.permute(0, 3, 1, 2), found[:48]
        bound = dict(above_2=2e-2 if ctx.small else 5e-3)
        ctx.check(f"{what}: against {engine}", levels(part, expected), bound)
        values = levels(part[inner], expected[inner])
        ctx.check(f"{what}: against {engine}, {edge} px inside", values, dict(above_2=1e-3))


@measurement(part=1, limit=15)
def crop(ctx: Context) -> None:
    """Compare views that are cut out on the device with the CPU's, without and with TF32."""
    count, size = (6, 32) if ctx.small else (128, 224)
    kept = load_batch(ctx, 6, 256)["inputs"]["rs_key"].contiguous()
    parts = {**PRESETS["released"], "quarter_turns": True}
    draws = np.array([draw_view(256, 256, parts) for _ in range(count)], VIEW_DRAW)
    draws["image"] = np.arange(count) % len(kept)
    expected = crop_batch(kept, draws, size)
    # TF32 keeps 10 bits of the weights. Emulated on a CPU: 3 % of the values differ, by one level.
    for tf32, bounds in ((False, dict(above_1=0, differing=1e-3)),
                         (True, dict(above_1=1e-3, differing=0.1))):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found = crop_batch(kept.to(ctx.device), draws, size)
        ctx.check(f"TF32 {tf32}", levels(found, expected), bounds)


@measurement(part=1, limit=20)
def preprocessor(ctx: Context) -> None:
    """Compare whole batches of a loader with the CPU's, without and within autocast."""
    pairs, size, workers = (4, 32, 0) if ctx.small else (64, 224, 4)
    here, there = PairedDataPreprocessor(), PairedDataPreprocessor().to(ctx.device)
    loader = make_loader(ctx, pairs, workers, size, 3 * pairs, preset="mocov2")
    for number, batch in enumerate(loader):
        expected = here(fresh(batch))["inputs"]
        with torch.autocast(ctx.device, torch.bfloat16, enabled=number > 0):
            data = there(fresh(batch))
        found = data["inputs"]
        labels = torch.cat([sample.gt_label for sample in data["data_samples"]])
        errors = {name: (found[name].cpu() - expected[name]).abs() for name in expected}
        flags = dict(
            pinned=not ctx.cuda or all(v.is_pinned() for v in batch["inputs"].values()),
            labels=torch.equal(labels.cpu(), batch["gt_label"]),
            device=labels.device.type == ctx.device,
            fp32=all(v.dtype == torch.float32 for v in found.values()),
            channels_last=all(
                v.is_contiguous(memory_format=torch.channels_last) for v in found.values()
            ),
        )
        values = {f"not_{name}": float(not right) for name, right in flags.items()}
        bounds = dict.fromkeys(values, 0.0)
        values["share"] = max(float((e > 0.05).double().mean()) for e in errors.values())
        values["largest"] = max(float(e.max()) for e in errors.values())
        ctx.check(f"batch {number}", values, dict(bounds, share=5e-3))


# --------------------------------------------------------------------------------------- whole runs
class SyncDebug(Hook):
    """Set CUDA's debug mode for synchronisation before the first hook of an iteration."""

    def __init__(self, mode: str, cuda: bool) -> None:
        self.mode, self.cuda = mode, cuda

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Switch the mode on when cuDNN has chosen its algorithms."""
        if self.cuda and batch_idx == 4:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(self.mode)


class SyncDebugEnd(Hook):
    """Switch the debug mode off after the last hook of an iteration, and count iterations."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.iterations = cuda, 0

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Switch the mode off before the end of the epoch, which reads the losses."""
        self.iterations = batch_idx + 1
        if self.cuda and batch_idx == 9:
            torch.cuda.set_sync_debug_mode("default")


@measurement(part=1, limit=60)
def no_sync(ctx: Context) -> None:
    """Train by the Runner with an error where the host waits for the device, iterations 4 to 9."""
    cases = {"fp32": None, "bf16": "bf16", "fp16": "fp16", "fp32, images kept": None}
    for what, precision in cases.items():
        if precision == "fp16" and not ctx.cuda:
            continue
        if ctx.left() < 5:
            ctx.put("skipped", what=what, why="no time is left")
            continue
        kept = "kept" in what
        error = _train_without_sync(ctx, what, precision, kept, "error")
        if error:  # Once more, to list all lines that wait.
            _train_without_sync(ctx, what, precision, kept, "warn")


def _train_without_sync(
    ctx: Context, what: str, precision: str | None, kept: bool, mode: str
) -> str | None:
    pairs, size, steps = (4, 32, 6) if ctx.small else (32, 64, 12)
    cfg = config(ctx, queue=128, amp=precision)
    natural = "natural"
    if kept:
        cfg.default_hooks.device_images = dict(type="gersp_mm.DeviceImagesHook")
        natural = "natural64" if (ctx.images / "natural64").is_dir() else "tiles64"
    workers = 0 if ctx.small else 2
    loader = loader_config(ctx, pairs, workers, size, steps * pairs, "tiles64", natural,
                           preset="mocov2")  # fmt: skip
    runner = make_runner(ctx, cfg, loader)
    counter = SyncDebugEnd(ctx.cuda)
    runner.register_hook(SyncDebug(mode, ctx.cuda), priority="HIGHEST")
    runner.register_hook(counter, priority="LOWEST")
    error = trace = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            train(runner)
        except RuntimeError as raised:
            error, trace = str(raised)[:300], _lines(traceback.format_exc())
        finally:
            if ctx.cuda:
                torch.cuda.set_sync_debug_mode("default")
    waits = sorted({f"{w.filename}:{w.lineno}" for w in caught
                    if "synchronizing" in str(w.message).lower()})  # fmt: skip
    wrong = error or counter.iterations != steps or (mode == "warn" and waits)
    ctx.put("fail" if wrong else "ok", what=f"{what}, {mode}", error=error, lines=trace,
            waiting_lines=waits, iterations=counter.iterations)  # fmt: skip
    return error


def _lines(trace: str) -> list[str]:
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', trace)
    return [f"{'/'.join(Path(f).parts[-3:])}:{n} {name}" for f, n, name in found][-12:]


@measurement(part=1, limit=45)
def amp(ctx: Context) -> None:
    """Compare bf16 and fp16 with fp32: first losses and gradients, then 20 updates."""
    pairs, size, updates = (4, 32, 3) if ctx.small else (64, 64, 20)
    data = load_batch(ctx, pairs, size, folder="tiles64")
    first: dict[str, Step] = {}
    for what in ("fp32", "bf16", "fp16"):
        if what == "fp16" and not ctx.cuda:
            continue
        cfg = config(ctx, queue=4 * pairs, amp=None if what == "fp32" else what)
        if what == "fp16":
            # The default, 65,536, overflows at gradients above 1 until it has halved itself.
            cfg.optim_wrapper.loss_scale = dict(init_scale=1024.0)
        ours = build(cfg, ctx.device)
        model, images = ours.model, ours.model.data_preprocessor(fresh(data))
        losses = []
        for number in range(updates):
            scale = ours.optim_wrapper.loss_scaler.get_scale() if what == "fp16" else 1.0
            taken = take_step(ours, images["inputs"], images["data_samples"])
            if number == 0:
                first[what] = Step(
                    taken.losses, {name: g / scale for name, g in taken.gradients.items()}
                )
            losses.append(round(float(taken.losses["loss_ct"] + taken.losses["loss_ce"]), 4))
        kinds = dict(queue=model.queue.dtype, teacher=next(model.teacher.parameters()).dtype,
                     statistics=model.backbone.bn1.running_mean.dtype)  # fmt: skip
        wrong = dict(
            not_finite=sum(not torch.isfinite(p).all() for p in model.parameters()),
            not_fp32=sum(kind != torch.float32 for kind in kinds.values()),
        )
        values = {name: float(count) for name, count in wrong.items()}
        ctx.check(f"{what}: {updates} updates", dict(values, last_loss=losses[-1]),
                  dict.fromkeys(values, 0.0))  # fmt: skip
        ctx.put(what=f"{what}: losses", losses=losses[:: max(updates // 5, 1)])
    reference = first.pop("fp32")
    slack = 4 if ctx.small else 1  # A network of 8 channels is less exact.
    for what, found in first.items():
        a, b = (
            torch.cat([g[n].double().flatten().cpu() for n in sorted(reference.gradients)])
            for g in (found.gradients, reference.gradients)
        )
        cosine = float(a @ b / (a.norm() * b.norm()))
        values = {
            name: float((found.losses[name] - value).abs() / value.abs().clamp(min=1))
            for name, value in reference.losses.items()
            if name in AMP[what]
        }
        values["gradient_angle"] = max(0.0, 1 - cosine**2) ** 0.5
        values["gradient_norm"] = float((a.norm() / b.norm() - 1).abs())
        bounds = {name: slack * bound for name, bound in AMP[what].items()}
        ctx.check(f"{what} against fp32, first step", values, bounds)


@measurement(part=1, limit=20)
def streams(ctx: Context) -> None:
    """Check that pinned copies in flight are not overwritten, and train in a side stream."""
    pairs, size, repeats = (4, 32, 3) if ctx.small else (96, 224, 12)
    data = [load_batch(ctx, pairs, size, preset="mocov2") for _ in range(2)]
    images = data[0]["inputs"]["rs_query"].to(ctx.device)
    draws = [unpack(batch["draw"][name]) for batch in data for name in batch["draw"]] * repeats
    one_by_one = []
    for draw in draws:
        one_by_one.append(recolour_batch(images, draw))
        ctx.sync()
    at_once = [recolour_batch(images, draw) for draw in draws]
    ctx.sync()
    wrong = sum(not torch.equal(a, b) for a, b in zip(at_once, one_by_one))
    ctx.check(f"{len(draws)} recolourings in flight", dict(wrong=wrong), dict(wrong=0))
    del at_once, one_by_one
    if not ctx.cuda:
        return
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        ours = build(config(ctx, queue=1024), ctx.device)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for batch in data:
                views = ours.model.data_preprocessor(fresh(pinned(ctx, batch)), True)
                small = {name: v[:32, :, :64, :64] for name, v in views["inputs"].items()}
                taken = take_step(ours, small, views["data_samples"][:32])
        torch.cuda.synchronize()
        results.append((taken.losses, teacher_of(ours)))
    (expected, teacher), (found, other) = results
    values = dict(loss=loss_error(found, expected), teacher=distance(other, teacher))
    ctx.check("training in a side stream", values, dict(loss=1e-4, teacher=1e-5))


@measurement(part=1, limit=75)
def resume_and_export(ctx: Context) -> None:
    """Train twice, resume one from the middle, and compare; load the exported backbone."""
    pairs, size, per_epoch = (4, 32, 3) if ctx.small else (32, 64, 8)
    cfg = config(ctx, queue=10 * pairs)
    cfg.env_cfg.cudnn_benchmark = False
    workers = 0 if ctx.small else 2

    def run(name: str, resume: Path | None = None) -> Path:
        loader = loader_config(ctx, pairs, workers, size, per_epoch * pairs, "tiles64")
        folder = ctx.scratch / f"{name}_{os.getpid()}"
        train(make_runner(ctx, cfg, loader, 2, work_dir=folder, resume=resume))
        ctx.sync()
        return folder

    def state(file: Path) -> dict[str, torch.Tensor]:
        content = read_checkpoint(file).data["state_dict"]
        return {name: value for name, value in content.items() if value.is_floating_point()}

    first, second = run("first"), run("second")
    resumed = run("resumed", first / "epoch_1.pth")
    start = state(first / "epoch_1.pth")
    a, b, c = (state(folder / "epoch_2.pth") for folder in (first, second, resumed))
    values = dict(
        two_equal_runs=distance(b, a, start),
        resumed=distance(c, a, start),
        equal_tensors_of_two_runs=sum(torch.equal(a[name], b[name]) for name in a) / len(a),
        equal_tensors_of_resumed=sum(torch.equal(a[name], c[name]) for name in a) / len(a),
    )
    bound = max(3 * values["two_equal_runs"], 1e-6)
    ctx.check("shares of what the second epoch changed", values, dict(resumed=bound))

    (file,) = first.glob("*_backbone.pth")
    stored = torch.load(file, weights_only=True)["state_dict"]
    weights = {name.removeprefix("backbone."): value for name, value in stored.items()}
    backbone = MODELS.build(dict(cfg.model.backbone))
    backbone.load_state_dict(weights)
    backbone.eval()  # This one returns nothing in mmpretrain.
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(images)[0]
        found = backbone.to(ctx.device)(images.to(ctx.device))[0]
    values = dict(
        wrong_tensors=sum(not torch.equal(value, a[f"backbone.{name}"])
                          for name, value in weights.items() if value.is_floating_point()),
        not_on_cpu=sum(value.is_cuda for value in weights.values()),
        features=distance(dict(x=found), dict(x=expected)),
    )  # fmt: skip
    bounds = dict(wrong_tensors=0, not_on_cpu=0, features=1e-4)
    ctx.check("exported backbone", values, bounds)


@measurement(part=1, limit=40)
def deterministic(ctx: Context) -> None:
    """Check that deterministic algorithms exist for every operation and repeat bit for bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    try:
        pairs, size = (4, 32) if ctx.small else (16, 64)
        runs = []
        for _ in range(2):
            ours = build(config(ctx, queue=256), ctx.device)
            for images, samples in random_batches(pairs, size, 3, ctx.device):
                take_step(ours, images, samples)
            runs.append(ours.model.state_dict())
        differing = sum(not torch.equal(value, runs[1][name]) for name, value in runs[0].items())
        ctx.check("two runs", dict(differing=differing), dict(differing=0))
        features = torch.randn(400, 16, device=ctx.device).round()  # with ties
        labels = torch.arange(400, device=ctx.device) % 7
        votes = [knn_predict(features, labels, features.roll(1, 0)) for _ in range(3)]
        differing = sum(not torch.equal(vote, votes[0]) for vote in votes)
        ctx.check("kNN, whose votes are scattered", dict(differing=differing), dict(differing=0))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
