"""Time one training step on images in memory: ours, the released code's, and other peers'.

The lower bound is the network alone, in the memory format of our model and in contiguous format:
student forward and backward, teacher forward; no loss, queue, optimizer or teacher update. The time
of a step beyond the bound is the cost of a method.

Examples:
  python benchmarks/speed/step.py --setting r50-224
  python benchmarks/speed/step.py --setting r18-64 --rounds 20 --record
  python benchmarks/speed/step.py --arch 50 --size 224 --batch 256 --device cuda --amp bf16
  python benchmarks/speed/step.py --setting r18-64 --only ours released
  python benchmarks/speed/step.py --setting r18-64 --only ours bf16 --no-micro
  python benchmarks/speed/step.py --setting r18-64 --only ours split --no-micro --contiguous
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable
from typing import Any

import peers
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from timing import (
    ROOT,
    add_arguments,
    interleave,
    paired_ratio,
    print_spreads,
    print_table,
    quiet,
    record,
    spreads,
    synchronise,
)
from torch import nn
from torch.nn import functional as F

from gersp_mm.engine import launch
from gersp_mm.engine.precision import bf16_unit
from gersp_mm.models.info_nce import InfoNCEHead
from gersp_mm.models.negative_queue import enqueue
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.memory import keep_freed_memory
from gersp_mm.utils.provenance import processor

SETTINGS = {
    "r50-224": dict(arch=50, size=224, batch=8),
    "r18-64": dict(arch=18, size=64, batch=64),
}
CONTENDERS = ("ours", "bf16", "released", "mmpretrain", "lightly")
OURS_BF16, SPLIT = "ours, bf16", "ours, split BatchNorm"
BOUND, CONTIGUOUS_BOUND = "bound", "bound, contiguous"
# Dense TFLOP/s by a part of the device's name, from the vendor's data sheets: with TF32, which
# PyTorch's convolutions use, and with bfloat16.
PEAK_TFLOPS = {
    "H200": (494, 989), "H100 PCIe": (378, 756), "H100": (494, 989), "A100": (156, 312),
    "L40S": (183, 366), "L4": (60, 121), "4090": (83, 165), "3090": (36, 71), "A10": (62, 125),
}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--setting", choices=SETTINGS, default="r50-224", help="(%(default)s)")
    parser.add_argument("--arch", type=int, help="use a ResNet of this depth [by the setting]")
    parser.add_argument("--size", type=int, help="use images of this side in px [by the setting]")
    parser.add_argument("--batch", type=int, help="use N pairs per step [by the setting]")
    parser.add_argument("--queue", type=int, default=65536, help="use N keys [%(default)s]")
    parser.add_argument("--amp", choices=("bf16",), help="mixed precision for all; released: both")
    parser.add_argument("--peak-tflops", type=float, help="peak for MFU [by the device, if known]")
    parser.add_argument("--contiguous", action="store_true", help="ours: not in channels_last")
    parser.add_argument("--split-size", type=int, default=32, help="of split [%(default)s]")
    parser.add_argument(
        "--only", nargs="+", choices=(*CONTENDERS, "split"), default=CONTENDERS,
        help="besides the bounds [all but split, which is ours with key_bn='split']",
    )  # fmt: skip
    parser.add_argument("--no-micro", action="store_true", help="do not time the single parts")
    add_arguments(parser, rounds=10, warmup=2, devices=True)
    args = parser.parse_args(argv)
    for name, value in SETTINGS[args.setting].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        else:
            args.setting = "free"
    return args


def load_config(arch: int, queue: int, amp: str | None = None) -> Config:
    """Return ``configs/pretrain/gersp_r50.py`` with another ResNet and queue."""
    cfg = Config.fromfile(ROOT / "configs" / "pretrain" / "gersp_r50.py")
    channels = 512 if arch < 50 else 2048
    cfg.model.queue_len = queue
    cfg.model.key_bn = "none"  # As the others do in one process; "split" is a contender of its own.
    cfg.model.backbone.depth = arch
    cfg.model.neck.update(in_channels=channels, hid_channels=channels)
    cfg.model.natural_head.update(in_channels=channels, num_classes=1000)
    if amp:
        launch.use_amp(cfg, amp)
    return cfg


def make_batch(pairs: int, size: int, classes: int, device: Any = "cpu") -> dict[str, Any]:
    """Return random normalised images with labels, as tensor and as samples."""
    generator = torch.Generator().manual_seed(0)
    names = ("rs_query", "rs_key", "natural")
    shape = (pairs, 3, size, size)
    batch = {name: torch.randn(shape, generator=generator).to(device) for name in names}
    label = torch.randint(classes, (pairs,), generator=generator).to(device)
    samples = [DataSample().set_gt_label(one[None]) for one in label]
    return dict(batch, label=label, data_samples=samples)


class Ours:
    """Model and optimizer as the Runner builds them from the config, and one step as it runs it."""

    def __init__(self, cfg: Config, device: Any = "cpu") -> None:
        init_default_scope(cfg.default_scope)
        self.model: Any = MODELS.build(cfg.model).to(device)
        self.model.init_weights()
        self.model.train()
        self.optim_wrapper: Any = build_optim_wrapper(self.model, cfg.optim_wrapper)

    def step(self, batch: peers.Batch) -> None:
        """Take one step on normalised images."""
        inputs = {name: batch[name] for name in ("rs_query", "rs_key", "natural")}
        with self.optim_wrapper.optim_context(self.model):
            losses = self.model(inputs, batch["data_samples"], mode="loss")
        self.optim_wrapper.update_params(self.model.parse_losses(losses)[0])
        self.model.update_teacher()


def memory_format(model: nn.Module) -> torch.memory_format:
    """Return the memory format of a model's first convolution."""
    weight = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    # A 1×1 or single-channel weight is in both formats.
    plain = weight.is_contiguous()
    return torch.channels_last if channels_last and not plain else torch.contiguous_format


def bound_step(
    model: Any, layout: torch.memory_format, amp: str | None
) -> Callable[[peers.Batch], None]:
    """Return the network's own work for one step: forward and backward, and the teacher forward."""
    student = nn.ModuleList([model.backbone, model.neck, model.natural_head.fc])
    teacher = nn.ModuleList([model.teacher.backbone, model.teacher.neck])
    student, teacher = (copy.deepcopy(part).to(memory_format=layout) for part in (student, teacher))
    parameters = list(student.parameters())
    prepared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def images(batch: peers.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if id(batch) not in prepared:
            joint = torch.cat([batch["rs_query"], batch["natural"]])
            prepared[id(batch)] = (
                joint.contiguous(memory_format=layout),
                batch["rs_key"].contiguous(memory_format=layout),
            )
        return prepared[id(batch)]

    def step(batch: peers.Batch) -> None:
        joint, key = images(batch)
        n = len(key)
        backbone, neck, classifier = student
        kind = key.device.type
        with torch.autocast(kind, torch.bfloat16) if amp else contextlib.nullcontext():
            maps = backbone(joint)[0]
            query = neck((maps[:n],))[0]
            scores = classifier(F.adaptive_avg_pool2d(maps[n:], 1).flatten(1))
            with torch.no_grad():
                teacher[1](teacher[0](key))
        (query.sum() + scores.sum()).backward()
        for parameter in parameters:
            parameter.grad = None

    return step


def build(args: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], dict[str, float], Any]:
    """Return every contender's step, its peak memory in MiB (GPU alone), and our model."""

    def config(amp: str | None, **model: Any) -> Config:
        cfg = load_config(args.arch, args.queue, amp)
        cfg.model.update(dict(channels_last=False) if args.contiguous else {}, **model)
        return cfg

    cfg = config(args.amp)
    batch = make_batch(args.batch, args.size, cfg.model.natural_head.num_classes, args.device)
    model_cfg, optimizer = cfg.model.to_dict(), cfg.optim_wrapper.optimizer.to_dict()
    amp, device = bool(args.amp), args.device
    ours = Ours(cfg, device)

    def released(amp: bool) -> Callable[[peers.Batch], Any]:
        return peers.ReleasedStep(model_cfg, optimizer, amp).to(device).load(ours.model).step

    makers: dict[str, Callable[[], Callable[[peers.Batch], Any]]] = {}
    if "ours" in args.only:
        makers["ours"] = lambda: ours.step
    if "bf16" in args.only and not amp:
        makers[OURS_BF16] = lambda: Ours(config("bf16"), device).step
    if "split" in args.only:
        groups = dict(key_bn="split", split_size=args.split_size)
        makers[SPLIT] = lambda: Ours(config(args.amp, **groups), device).step
    if "released" in args.only:
        makers["released"] = lambda: released(False)
        if amp:
            makers["released, amp"] = lambda: released(True)
    if "mmpretrain" in args.only:
        makers["mmpretrain"] = lambda: peers.mmpretrain_step(model_cfg, optimizer, amp, device)
    if "lightly" in args.only and peers.has_lightly():
        makers["lightly"] = lambda: peers.lightly_step(model_cfg, optimizer, amp, device)
    layout = memory_format(ours.model)
    makers[BOUND] = lambda: bound_step(ours.model, layout, args.amp)
    if layout is not torch.contiguous_format:
        makers[CONTIGUOUS_BOUND] = lambda: bound_step(ours.model, torch.contiguous_format, args.amp)
    print(f"memory format of our model: {layout}")

    steps: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float] = {}
    for name, make in makers.items():
        steps[name], peak = _measured(make, batch, device)
        if peak is not None:
            own = _state_bytes(ours) if name == "ours" else 0  # in memory before
            memory[name] = (peak + own) / 2**20
    return steps, memory, ours.model


def _measured(
    make: Callable[[], Callable[[peers.Batch], Any]], batch: peers.Batch, device: Any
) -> tuple[Callable[[], Any], int | None]:
    """Build a contender; on a GPU also return its peak memory in a step."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
    step = make()
    if not on_gpu:
        return lambda: step(batch), None
    for number in range(3):
        if number == 2:  # cuDNN has chosen its algorithms, which needs memory temporarily
            synchronise(device)
            torch.cuda.reset_peak_memory_stats(device)
        step(batch)
    synchronise(device)
    return lambda: step(batch), torch.cuda.max_memory_allocated(device) - before


def _state_bytes(ours: Ours) -> int:
    tensors = [*ours.model.parameters(), *ours.model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def count_flops(step: Callable[[], Any]) -> int:
    """Count the floating-point operations of one call (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_tflops(args: argparse.Namespace) -> float | None:
    """Return the peak for MFU: the argument, or the known value of the device."""
    if args.peak_tflops:
        return args.peak_tflops
    name = torch.cuda.get_device_name(args.device)
    known = [peaks for part, peaks in PEAK_TFLOPS.items() if part in name]
    return float(known[0][bool(args.amp)]) if known else None


def micro(args: argparse.Namespace, model: Any) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return the parts around the network: by part and name, the function to time."""
    device, momentum = args.device, model.teacher_momentum
    students, teachers = (
        nn.ModuleList([copy.deepcopy(part) for part in parts])
        for parts in ((model.backbone, model.neck), (model.teacher.backbone, model.teacher.neck))
    )
    replaced = copy.deepcopy(teachers)
    dim = model.queue.shape[1]
    query, key = (F.normalize(torch.randn(args.batch, dim, device=device), dim=1) for _ in "qk")
    query.requires_grad_()
    rows = model.queue.clone()
    columns = rows.t().contiguous()
    pointer = torch.zeros(1, dtype=torch.long, device=device)
    temperature = model.head.temperature
    head = InfoNCEHead(temperature)

    @torch.no_grad()
    def in_place() -> None:
        for theta_s, theta_t in zip(students.parameters(), teachers.parameters()):
            theta_t.mul_(momentum).add_(theta_s, alpha=1 - momentum)

    def gradient(loss: torch.Tensor) -> None:
        torch.autograd.grad(loss, query)

    return {
        "teacher update": {
            "released": lambda: peers.released_teacher_update(students, replaced, momentum),
            "in-place loop": in_place,
            "ours": model.update_teacher,
        },
        f"InfoNCE of {args.batch} queries, {len(rows)} keys, with gradient": {
            "released": lambda: gradient(peers.released_info_nce(query, key, columns, temperature)),
            "ours": lambda: gradient(head.loss(query, key, rows)["loss_ct"]),
        },
        f"enqueue {args.batch} keys": {
            "released": lambda: peers.released_enqueue(columns, pointer, key),
            "ours": lambda: enqueue(rows, pointer, key),
        },
    }


def main(args: argparse.Namespace) -> None:
    """Time the steps of all contenders, then the parts of the step, and record both."""
    if args.threads:
        torch.set_num_threads(args.threads)
    quiet()
    if args.device == "cpu":
        keep_freed_memory()  # as tools/train.py does; every contender benefits
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in the configs
    title = f"ResNet-{args.arch}, {args.size} px, {args.batch}+{args.batch} images"
    title += f", queue {args.queue}, {args.device}" + (f", {args.amp}" if args.amp else "")
    if args.device == "cpu":
        unit = bf16_unit() or "no unit for bf16"
        print(f"{processor()}, {unit}, {torch.get_num_threads()} threads")
    steps, memory, model = build(args)
    times = interleave(steps, args.rounds, args.warmup, args.device)
    values: dict[str, Any] = dict(step_ms=spreads(times))
    if args.device == "cpu":
        values["bf16_unit"] = bf16_unit()
    ratios = {f"{n} / ours": paired_ratio(times, n, "ours") for n in times if n != "ours"}
    ratios = {name: ratio for name, ratio in ratios.items() if not name.startswith(BOUND)}
    for name in (BOUND, CONTIGUOUS_BOUND):
        if name in times and "ours" in times:
            ratios[f"ours / {name}"] = paired_ratio(times, "ours", name)
    print_spreads(f"Step: {title} [ms]", spreads(times))
    print_spreads("Ratios, taken within each round", ratios)
    if memory:
        values.update(_print_gpu(args, times, memory, count_flops(steps[BOUND])))

    if not args.no_micro:
        for part, contenders in micro(args, model).items():
            calls = 5 if "InfoNCE" in part else 20
            part_times = interleave(contenders, args.rounds, args.warmup, args.device, calls)
            print_spreads(f"{part} [us]", spreads(part_times, 1e6))
            values[f"{part}_us"] = spreads(part_times, 1e6)
            ratio = paired_ratio(part_times, "released", "ours")
            ratios[f"{part}: released / ours"] = ratio
            print_spreads("", {"released / ours": ratio})
    record(args, f"step, {args.setting}: {title}", values, ratios)


def _print_gpu(
    args: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, float], flops: int
) -> dict[str, Any]:
    """Print rate, peak memory and MFU of every contender and return them."""
    peak = peak_tflops(args)
    rows = []
    for name, spread in spreads(times, 1).items():
        seconds = spread["median"]
        used = flops / seconds / 1e12
        rows.append([name, args.batch / seconds, memory[name], used, used / peak if peak else "?"])
    header = ["", "pairs/s", "peak MiB", "TFLOP/s", "MFU"]
    print_table(
        f"{flops / 1e9:.1f} GFLOP a step (the bound's, for all), peak {peak} TFLOP/s", header, rows
    )
    columns = ("pairs_per_s", "peak_mib", "tflops", "mfu")
    table = {row[0]: dict(zip(columns, row[1:])) for row in rows}
    return dict(gpu=table, gflop_per_step=flops / 1e9, peak_tflops=peak)


if __name__ == "__main__":
    main(parse_args())
