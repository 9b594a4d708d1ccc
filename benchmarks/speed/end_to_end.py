"""Whole training, from image files to the moved teacher: ours against the released code's way.

Parts:
  compare    our Runner against the released pipeline and step in a plain loop, with the same files,
             workers, batch and image size; one process each, taking turns
  resident   our Runner on one batch that stays where it is: what feeding from files costs is the
             difference to `compare`
  breakdown  where the time of our step goes
  overhead   our Runner against a bare loop on the same resident batch, step by step in one process
             (ResNet-18, 64 px, 64+64 images)

Examples:
  python benchmarks/speed/end_to_end.py
  python benchmarks/speed/end_to_end.py --parts compare breakdown --steps 50 --rounds 5 --record
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
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import peers
import torch
from _common import (
    ROOT,
    add_arguments,
    interleave,
    medians,
    paired_ratio,
    print_ratios,
    print_table,
    print_times,
    quiet,
    record,
    spread,
    synchronise,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from gersp_mm.engine import launch
from gersp_mm.models import gersp

PARTS = ("compare", "resident", "breakdown", "overhead")
OVERHEAD = dict(arch=18, size=64, batch=64)
OURS, RELEASED, RESIDENT = "ours", "released", "ours, resident batch"
REST = "hooks, framework, the rest"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    parser.add_argument("--config", default="configs/pretrain/gersp_r18_demo.py", help="of ours")
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of image files for both sources, instead of the config's data",
    )
    parser.add_argument("--batch", type=int, help="pairs a step, instead of the config's")
    parser.add_argument("--size", type=int, help="side of the views, likewise")
    parser.add_argument("--workers", type=int, help="loader processes, likewise")
    parser.add_argument("--queue", type=int, help="length of the queue, likewise")
    parser.add_argument("--amp", choices=("bf16",), help="for ours; the released code has none")
    parser.add_argument("--steps", type=int, default=40, help="timed of a run (%(default)s)")
    parser.add_argument("--first", type=int, default=8, help="steps not timed (%(default)s)")
    add_arguments(parser, rounds=3, warmup=0, devices=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # what this process runs
    parser.add_argument("--child-out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------- config and data
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
    """Take both sources from one folder, listed often enough for an epoch of ``pairs``."""
    from gersp_mm.images.listing import find_images

    found = [images / name for name in find_images(images)]
    if not found:
        raise SystemExit(f"no images below {images}: give another --images")
    cfg.default_hooks.pop("knn_eval", None)  # has images of its own
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


class Numbers(Dataset):
    """Stands in for a data set whose batches are made by the collate function alone."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return index


def resident_loader(cfg: Config, steps: int, device: str) -> DataLoader:
    """Return a loader that gives the same real batch, on the device already, ``steps`` times."""
    loader = cfg.train_dataloader.to_dict()
    loader.update(num_workers=0, persistent_workers=False)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    caster: Any = MODELS.build(cfg.model.data_preprocessor).to(device)
    batch = caster.cast_data(batch)
    size = loader["batch_size"]
    return DataLoader(Numbers(steps * size), batch_size=size, collate_fn=lambda _: batch)


# ------------------------------------------------------------------------------------- timed runs
class Enough(Exception):
    """Raised when a run has taken the steps that were wanted."""


class Stopwatch(Hook):
    """Notes when each step ended and ends the run after ``first + steps`` of them."""

    priority = "LOWEST"

    def __init__(self, first: int, steps: int, device: str) -> None:
        self.first, self.steps, self.device = first, steps, device
        self.ends: list[float] = []

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Note the end of a step; wait for the device at both ends of what is timed."""
        self.lap()
        if len(self.ends) == self.first + self.steps:
            raise Enough

    def lap(self) -> None:
        """Note the time."""
        if len(self.ends) + 1 in (self.first, self.first + self.steps):
            synchronise(self.device)
        self.ends.append(time.perf_counter())

    def result(self) -> dict[str, float]:
        """Return mean and median seconds a step."""
        timed = self.ends[self.first - 1 :]
        steps = [b - a for a, b in zip(timed, timed[1:])]
        return dict(mean=(timed[-1] - timed[0]) / len(steps), median=spread(steps)["median"])


def run_ours(
    cfg: Config, args: argparse.Namespace, *hooks: Hook, loader: DataLoader | None = None
) -> None:
    """Train as ``tools/train.py`` does until a hook has had enough."""
    runner = Runner.from_cfg(cfg)
    if loader is not None:
        runner._train_dataloader = loader
    for hook in hooks:
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
        torch.backends.cudnn.benchmark = True  # ours gets it from the config
    while True:
        for collated in loader:
            step.step(peers.released_batch(collated, args.device))
            watch.lap()
            if len(watch.ends) == watch.first + watch.steps:
                return


# ---------------------------------------------------------------------------------------- breakdown
class Clock(contextlib.ExitStack):
    """Adds up the seconds that functions take, by name; they must not call each other.

    Leaving it puts the functions back.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Replace a function or method by one that is timed."""
        function: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronise(self.device)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronise(self.device)
                self.seconds[name] += time.perf_counter() - begin

        self.enter_context(mock.patch.object(owner, attribute, timed))


class Breakdown(Hook):
    """Times the parts of our step; every part waits for the device."""

    priority = "LOWEST"

    def __init__(self, first: int, steps: int, device: str) -> None:
        self.first, self.steps, self.done = first, steps, 0
        self.clock = Clock(device)
        self.result: dict[str, float] = {}

    def before_train(self, runner: Any) -> None:
        """Put a clock around every part."""
        model, wrapper, wrap = runner.model, runner.optim_wrapper, self.clock.wrap
        wrap(_BaseDataLoaderIter, "__next__", "waiting for data")
        wrap(model.data_preprocessor, "forward", "preprocessor")
        wrap(model, "extract_feat", "student forward")
        wrap(model.neck, "forward", "student forward")
        wrap(model.teacher, "forward", "teacher forward")
        wrap(model.head, "loss", "InfoNCE and queue")
        wrap(gersp, "enqueue", "InfoNCE and queue")
        wrap(model.natural_head, "loss", "cross entropy")
        wrap(wrapper, "backward", "backward")
        wrap(wrapper, "step", "optimizer")
        wrap(wrapper, "zero_grad", "optimizer")
        wrap(model, "update_teacher", "teacher update")

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Start after the first steps and stop after the last."""
        self.done += 1
        if self.done == self.first:
            self.clock.seconds.clear()
            self.begin = time.perf_counter()
        elif self.done == self.first + self.steps:
            total = time.perf_counter() - self.begin
            parts = {**self.clock.seconds}
            parts[REST] = total - sum(parts.values())
            self.result = {name: value / self.steps for name, value in parts.items()}
            raise Enough


# ----------------------------------------------------------------------------------------- overhead
class BareLoop(Hook):
    """After every step of the Runner takes one of its own, with a model of its own, and times both.

    The Runner's step is all the time between two of ours: fetching the batch, every hook, the step.
    """

    priority = "LOWEST"

    def __init__(self, cfg: Config, batch: Any, args: argparse.Namespace) -> None:
        self.args, self.batch = args, batch
        self.model: Any = MODELS.build(cfg.model).to(args.device)
        self.model.init_weights()
        self.model.train()
        self.optim_wrapper: Any = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.times: dict[str, list[float]] = {"Runner": [], "bare loop": []}
        self.done = 0
        self.resumed: float | None = None

    def step(self) -> None:
        """Take a step with nothing around it."""
        model, optimizer = self.model, self.optim_wrapper.optimizer
        with self.optim_wrapper.optim_context(model):
            losses = model(**model.data_preprocessor(self.batch, True), mode="loss")
        optimizer.zero_grad()
        (losses["loss_ct"] + losses["loss_ce"]).backward()
        optimizer.step()
        model.update_teacher()

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Time the step that has ended, then one of our own."""
        synchronise(self.args.device)
        now = time.perf_counter()
        bare = interleave({"bare": self.step}, 1, 0, self.args.device)["bare"][0]
        self.done += 1
        if self.done > self.args.first and self.resumed is not None:
            self.times["Runner"].append(now - self.resumed)
            self.times["bare loop"].append(bare)
        if len(self.times["Runner"]) == self.args.steps:
            raise Enough
        self.resumed = time.perf_counter()


def overhead_config(args: argparse.Namespace, folder: Path) -> Config:
    """Return ``gersp_r50.py`` with the small network, on the images of ``--config``."""
    from step import load_config as small_config

    cfg = small_config(OVERHEAD["arch"], args.queue or 65536, args.amp)
    source = load_config(args, folder)
    loader = cfg.train_dataloader
    for name in ("remote_sensing", "natural"):
        loader.dataset[name] = source.train_dataloader.dataset[name]
    loader.pin_memory = False
    cfg.work_dir = source.work_dir
    small = argparse.Namespace(**{**vars(args), **OVERHEAD, "images": None, "workers": 0})
    if args.batch or args.size:  # for trying it out
        small.batch, small.size = args.batch or small.batch, args.size or small.size
    return shrink(cfg, small, folder)


# ----------------------------------------------------------------------------------------- children
def run_child(args: argparse.Namespace) -> dict[str, Any]:
    """Run what this process was started for."""
    quiet()
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.child == "overhead":
            cfg = overhead_config(args, folder)
            loader = resident_loader(cfg, args.first + args.steps + 1, args.device)
            bare = BareLoop(cfg, next(iter(loader)), args)
            run_ours(cfg, args, bare, loader=loader)
            return bare.times
        cfg = load_config(args, folder)
        if args.child == "breakdown":
            breakdown = Breakdown(args.first, args.steps, args.device)
            with breakdown.clock:
                run_ours(cfg, args, breakdown)
            return breakdown.result
        watch = Stopwatch(args.first, args.steps, args.device)
        if args.child == RELEASED:
            run_released(cfg, args, watch)
        elif args.child == OURS:
            run_ours(cfg, args, watch)
        else:
            loader = resident_loader(cfg, args.first + args.steps, args.device)
            run_ours(cfg, args, watch, loader=loader)
        return {**watch.result(), "batch": cfg.train_dataloader.batch_size}


def start(args: argparse.Namespace, child: str) -> dict[str, Any]:
    """Run a part in a process of its own and return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--child",
            child,
            "--child-out",
            str(out),
        ]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if not out.is_file():
            raise SystemExit(f"{child} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


# --------------------------------------------------------------------------------------------- main
def compare(args: argparse.Namespace) -> Iterator[tuple[str, dict, dict]]:
    """Let whole runs take turns; yield title, values and ratios."""
    names = [OURS, RELEASED] if "compare" in args.parts else [OURS]
    if "resident" in args.parts:
        names.append(RESIDENT)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(-args.warmup, args.rounds):
        start_at = number % len(names)
        for name in names[start_at:] + names[:start_at]:
            result = start(args, name)
            if number >= 0:
                runs[name].append(result)
    for kind in ("median", "mean"):
        times = {name: [run[kind] for run in results] for name, results in runs.items()}
        print_times(f"{kind} step of {args.steps}, {args.rounds} runs each", times)
        ratios = {
            f"{name} / {OURS}": paired_ratio(times, name, OURS) for name in names if name != OURS
        }
        print_ratios("Ratios, taken within each round", ratios)
        values: dict[str, Any] = {f"{kind}_step_ms": medians(times)}
        if kind == "mean":
            batch = runs[OURS][0]["batch"]
            rates = {name: batch / spread(seconds)["median"] for name, seconds in times.items()}
            print_table("Pairs a second", ["", "pairs/s"], list(rates.items()))
            values["pairs_per_s"] = rates
        yield f"{kind} step", values, ratios


def main(args: argparse.Namespace) -> None:
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
    if {"compare", "resident"} & set(args.parts):
        for title, values, ratios in compare(args):
            record(args, f"{setting}: {title}", values, ratios)

    if "breakdown" in args.parts:
        parts = start(args, "breakdown")
        total = sum(parts.values())
        rows = [[name, value * 1e3, 100 * value / total] for name, value in parts.items()]
        print_table("Where our step goes", ["", "ms", "%"], [*rows, ["all", total * 1e3, 100.0]])
        values = {name: value * 1e3 for name, value in parts.items()}
        record(args, f"{setting}: breakdown", dict(ms=values), {})

    if "overhead" in args.parts:
        times = start(args, "overhead")
        ratio = paired_ratio(times, "Runner", "bare loop")
        percent = {key: 100 * (value - 1) for key, value in ratio.items()}
        whole = 100 * (sum(times["Runner"]) / sum(times["bare loop"]) - 1)
        print_times(f"Runner and bare loop, {args.steps} steps each in turn", times)
        print_ratios("Overhead of the Runner [%]", {"step by step": percent})
        print(f"over all steps: {whole:.2f} % (the bar is 3 %)")
        values = dict(step_ms=medians(times), overhead_of_all_steps_percent=whole)
        record(args, f"{setting}: overhead", values, {"overhead_percent": percent})


if __name__ == "__main__":
    main(parse_args())
