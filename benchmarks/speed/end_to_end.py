"""Time whole training, from image files to the teacher update: ours and the released code's.

Parts:
  compare    our Runner against the released pipeline and step in a plain loop, with the same files,
             workers, batch and image size; one process each, in turns
  breakdown  share of each part of our step, by torch.profiler

Examples:
  python benchmarks/speed/end_to_end.py
  python benchmarks/speed/end_to_end.py --parts compare --steps 50 --rounds 5 --record
  python benchmarks/speed/end_to_end.py --config configs/pretrain/gersp_r50.py --images /my/images \
      --device cuda --amp bf16 --batch 256 --workers 16
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import peers
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from timing import (
    ROOT,
    add_arguments,
    interleave,
    paired_ratio,
    print_spreads,
    print_table,
    quiet,
    record,
    spread,
    spreads,
    synchronise,
)
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gersp_mm.engine import launch
from gersp_mm.images.listing import find_images
from gersp_mm.models import gersp
from gersp_mm.utils.arguments import new_parser

PARTS = ("compare", "breakdown")
OURS, RELEASED, BREAKDOWN = "ours", "released", "breakdown"
REST = "hooks, framework, the rest"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    parser.add_argument(
        "--config", default="configs/pretrain/gersp_r18_demo.py", help="train it [%(default)s]"
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of image files for both sources, instead of the config's data",
    )
    parser.add_argument("--batch", type=int, help="use N pairs per step [as in the config]")
    parser.add_argument(
        "--size", type=int, help="crop views to this side in pixels [as in the config]"
    )
    parser.add_argument("--workers", type=int, help="use N loader processes [as in the config]")
    parser.add_argument("--queue", type=int, help="use a queue of N keys [as in the config]")
    parser.add_argument("--amp", choices=("bf16",), help="for ours; the released code has none")
    parser.add_argument("--steps", type=int, default=40, help="time N steps per run [%(default)s]")
    parser.add_argument(
        "--first", type=int, default=8, help="run N steps before these [%(default)s]"
    )
    add_arguments(parser, rounds=3, warmup=0, devices=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the contender that this process runs
    parser.add_argument("--child-out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def load_config(args: argparse.Namespace, folder: Path) -> Config:
    """Read the config as ``tools/train.py`` does and apply our arguments."""
    path = ROOT / args.config
    cfg = launch.load_config(
        argparse.Namespace(
            config=str(path if path.is_file() else args.config),
            cfg_options=None,
            work_dir=str(folder / "work_dir"),
            launcher="none",
            local_rank=0,
        )
    )
    if args.amp:
        launch.use_amp(cfg, args.amp)
    return shrink(cfg, args, folder)


def shrink(cfg: Config, args: argparse.Namespace, folder: Path) -> Config:
    """Apply batch, size, workers, queue and images."""
    loader = cfg.train_dataloader
    loader.batch_size = args.batch or loader.batch_size
    loader.num_workers = loader.num_workers if args.workers is None else args.workers
    loader.persistent_workers = loader.num_workers > 0
    cfg.model.queue_len = args.queue or cfg.model.queue_len
    if cfg.model.natural_head.num_classes == "auto":
        cfg.model.natural_head.num_classes = 1000
    for pipeline in (loader.dataset.rs_pipeline, loader.dataset.natural_pipeline):
        pipeline[0].size = args.size or pipeline[0].size
    if args.images:
        use_images(cfg, args.images, loader.batch_size * (args.steps + args.first + 1), folder)
    return cfg


def use_images(cfg: Config, images: Path, pairs: int, folder: Path) -> None:
    """Take both sources from one folder, repeated until an epoch has ``pairs`` pairs."""
    found = [images / name for name in find_images(images)]
    if not found:
        raise SystemExit(f"no images below {images}: give another --images")
    cfg.default_hooks.pop("knn_eval", None)  # It has its own images.
    paths = [str(path.resolve()) for path in found] * -(-pairs // len(found))
    classes = cfg.model.natural_head.num_classes
    lists = {"remote_sensing": [f"{path}\n" for path in paths]}
    lists["natural"] = [f"{path} {i % classes}\n" for i, path in enumerate(paths)]
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(lines))
    cfg.train_dataloader.dataset.remote_sensing = dict(
        type="gersp_mm.MillionAID", data_root="/", ann_file=str(folder / "remote_sensing.txt")
    )
    cfg.train_dataloader.dataset.natural = dict(
        type="CustomDataset", data_root="/", ann_file=str(folder / "natural.txt")
    )


class Enough(Exception):
    """Raised when a run has taken the requested steps."""


class Stopwatch(Hook):
    """A hook that notes the end of each step and ends the run after ``first + steps``."""

    priority = "LOWEST"

    def __init__(self, first: int, steps: int, device: str) -> None:
        self.first, self.steps, self.device = first, steps, device
        self.ends: list[float] = []

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Note the end of a step, and wait for the device at both ends of the timed steps."""
        self.lap()
        if len(self.ends) == self.first + self.steps:
            raise Enough

    def lap(self) -> None:
        """Note the time."""
        if len(self.ends) + 1 in (self.first, self.first + self.steps):
            synchronise(self.device)
        self.ends.append(time.perf_counter())

    def result(self) -> dict[str, float]:
        """Return mean and median seconds per step."""
        timed = self.ends[self.first - 1 :]
        steps = [b - a for a, b in zip(timed, timed[1:])]
        return dict(mean=(timed[-1] - timed[0]) / len(steps), median=spread(steps)["median"])


def run_ours(cfg: Config, args: argparse.Namespace, hook: Hook) -> None:
    """Train as ``tools/train.py`` does until the hook ends the run."""
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook, priority="LOWEST")
    try:
        runner.train()
    except Enough:
        return
    raise SystemExit(f"an epoch is too short for {args.first + args.steps} steps: lower --steps")


def run_released(cfg: Config, args: argparse.Namespace, watch: Stopwatch) -> None:
    """Train with the released pipeline and step in a plain loop."""
    settings = cfg.train_dataloader
    dataset: Any = DATASETS.build(settings.dataset)
    sources = [
        [(info["img_path"], int(info.get("gt_label", 0))) for info in map(s.get_data_info, index)]
        for s in (dataset.remote_sensing, dataset.natural)
        for index in [range(len(s))]
    ]
    view = settings.dataset.rs_pipeline[0].to_dict()
    preset = peers.PRESETS[view.get("preset", "released")]
    parts = {**preset, **{key: value for key, value in view.items() if key in preset}}
    loader = DataLoader(
        peers.ReleasedPairs(*sources, size=view["size"], rs_parts=parts),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.num_workers,
        persistent_workers=settings.num_workers > 0,
        pin_memory=args.device != "cpu",
    )
    model, optimizer = cfg.model.to_dict(), cfg.optim_wrapper.optimizer.to_dict()
    step = peers.ReleasedStep(model, optimizer).to(args.device)
    if args.device != "cpu":
        torch.backends.cudnn.benchmark = True  # Our run sets it by its config.
    while True:
        for collated in loader:
            step.step(peers.released_batch(collated, args.device))
            watch.lap()
            if len(watch.ends) == watch.first + watch.steps:
                return


class Breakdown(Hook):
    """A hook that times the parts of our step by PyTorch's profiler; each waits for the device."""

    priority = "LOWEST"

    def __init__(self, first: int, steps: int, device: str) -> None:
        self.first, self.steps, self.device, self.done = first, steps, device, 0
        self.result: dict[str, float] = {}
        self.patches = contextlib.ExitStack()

    def before_train(self, runner: Any) -> None:
        """Name the parts for the profiler."""
        model, wrapper = runner.model, runner.optim_wrapper
        self.parts = {
            "waiting for data": [(_BaseDataLoaderIter, "__next__")],
            "preprocessor": [(model.data_preprocessor, "forward")],
            "student forward": [(model, "extract_feat"), (model.neck, "forward")],
            "teacher forward": [(model.teacher, "forward")],
            "InfoNCE and queue": [(model.head, "loss"), (gersp, "enqueue")],
            "cross entropy": [(model.natural_head, "loss")],
            "backward": [(wrapper, "backward")],
            "optimizer": [(wrapper, "step"), (wrapper, "zero_grad")],
            "teacher update": [(model, "update_teacher")],
        }
        for name, functions in self.parts.items():
            for owner, attribute in functions:
                named = self.named(name, getattr(owner, attribute))
                self.patches.enter_context(mock.patch.object(owner, attribute, named))

    def named(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function under a name that the profiler reports."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                value = function(*args, **kwargs)
                synchronise(self.device)
                return value

        return timed

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Start after the first steps and stop after the last."""
        self.done += 1
        if self.done == self.first:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
            self.begin = time.perf_counter()
        elif self.done == self.first + self.steps:
            total = time.perf_counter() - self.begin
            self.profiler.stop()
            self.patches.close()
            times = {event.key: event.cpu_time_total for event in self.profiler.key_averages()}
            parts = {name: times.get(name, 0.0) / 1e6 for name in self.parts}
            parts[REST] = total - sum(parts.values())
            self.result = {name: seconds / self.steps for name, seconds in parts.items()}
            raise Enough


def run_child(args: argparse.Namespace) -> dict[str, Any]:
    """Run the contender that this process was started for."""
    quiet()
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config(args, Path(folder))
        if args.child == BREAKDOWN:
            breakdown = Breakdown(args.first, args.steps, args.device)
            run_ours(cfg, args, breakdown)
            return breakdown.result
        watch = Stopwatch(args.first, args.steps, args.device)
        run = run_released if args.child == RELEASED else run_ours
        run(cfg, args, watch)
        return {**watch.result(), "batch": cfg.train_dataloader.batch_size}


def start(args: argparse.Namespace, child: str) -> dict[str, Any]:
    """Run a contender in a separate process, and return its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        own = ["--child", child, "--child-out", str(out)]
        command = [sys.executable, __file__, *sys.argv[1:], *own]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if not out.is_file():
            raise SystemExit(f"{child} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def compare(args: argparse.Namespace, setting: str) -> None:
    """Let whole runs take turns; print and record their mean and median steps."""
    runs: dict[str, list[dict[str, float]]] = {OURS: [], RELEASED: []}
    contenders = {name: lambda name=name: runs[name].append(start(args, name)) for name in runs}
    interleave(contenders, args.rounds, args.warmup)
    timed = {name: results[args.warmup :] for name, results in runs.items()}
    for kind in ("mean", "median"):
        times = {name: [run[kind] for run in results] for name, results in timed.items()}
        ratios = {f"{RELEASED} / {OURS}": paired_ratio(times, RELEASED, OURS)}
        values: dict[str, Any] = {f"{kind}_step_ms": spreads(times)}
        print_spreads(f"{kind} step of {args.steps}, {args.rounds} runs each [ms]", spreads(times))
        print_spreads("Ratio, taken within each round", ratios)
        if kind == "mean":
            batch = timed[OURS][0]["batch"]
            rates = {name: batch / spread(seconds)["median"] for name, seconds in times.items()}
            print_table("Pairs per second", ["", "pairs/s"], list(rates.items()))
            values["pairs_per_s"] = rates
        record(args, f"{setting}: {kind} step", values, ratios)


def main(args: argparse.Namespace) -> None:
    """Run the requested parts."""
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.child:
        args.child_out.write_text(json.dumps(run_child(args)))
        return
    setting = f"end to end, {Path(args.config).stem}"
    if args.batch or args.size:
        setting += f", batch {args.batch or 'as configured'}, size {args.size or 'as configured'}"
    if "compare" in args.parts:
        compare(args, setting)
    if BREAKDOWN in args.parts:
        parts = start(args, BREAKDOWN)
        total = sum(parts.values())
        rows = [[name, value * 1e3, 100 * value / total] for name, value in parts.items()]
        print_table("Where our step goes", ["", "ms", "%"], [*rows, ["all", total * 1e3, 100.0]])
        values = {name: value * 1e3 for name, value in parts.items()}
        record(args, f"{setting}: breakdown", dict(ms=values))


if __name__ == "__main__":
    main(parse_args())
