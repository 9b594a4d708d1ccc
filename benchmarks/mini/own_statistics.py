#!/usr/bin/env python3
r"""GeRSP-mini: measure the gain from BatchNorm's statistics alone.

The script takes the finished backbones of the study, estimates the running statistics of every
BatchNorm again from unlabelled remote-sensing views of the pre-training (PyTorch's update_bn)
without changing weights, and writes the backbones and a plan of their evaluation. Run
benchmarks/mini/run.py first.

  work_dirs/mini/<size>/<row>/seed_<n>/own_statistics.pth
  work_dirs/mini/<size>/own_statistics.yml                 for tools/benchmarks/run.py

Examples:
  python benchmarks/mini/own_statistics.py
  python tools/benchmarks/run.py work_dirs/mini/cpu/own_statistics.yml \
      --out work_dirs/mini/cpu/results.jsonl
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.optim.swa_utils import update_bn

from gersp_mm.backbones.exported import ExportedBackbone, export_backbone
from gersp_mm.commands.options import run_tool
from gersp_mm.constants import PREFIX
from gersp_mm.datasets import PairedSampler
from gersp_mm.registry import DATASETS
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import write_text

HERE = Path(__file__).resolve().parent
ROWS = ("IMP", "MoCo-IN", "MoCo-RS", "MoCo-IN+RS", "GeRSP", "GeRSP with α = 0.5")
BATCH = 64


def read_views(count: int) -> torch.Tensor:
    """Return ``count`` augmented views of remote-sensing images, N×3×H×W uint8."""
    cfg = Config.fromfile(HERE / "configs" / "moco-rs.py").train_dataloader.dataset
    dataset = DATASETS.build({**cfg, "cache_images": 0})
    pairs = [pair for pair, _ in zip(PairedSampler(dataset, seed=0), range(count))]
    if len(pairs) < count:
        raise UserError(f"--views {count}: there are {len(pairs)} images")
    views = [dataset[pair]["inputs"]["rs_query"] for pair in progress(pairs, "views", "img")]
    return torch.stack(views)


def write_with_own_statistics(source: Path, target: Path, views: torch.Tensor) -> None:
    """Write the backbone of ``source`` with statistics of ``views`` to ``target``."""
    backbone = ExportedBackbone.read(source)
    network, meta = backbone.build(), backbone.meta
    scale = meta.normalisation
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (scale.mean, scale.std))
    network.train()
    update_bn(((batch.float() - mean) / std for batch in views.split(BATCH)), network)
    export_backbone(
        {PREFIX + name: tensor for name, tensor in network.state_dict().items()},
        target,
        meta.arch,
        meta.method,
        scale.mean,
        scale.std,
        meta.epoch,
        meta.stored["config_text"],
        backbone.sha256,
        backbone.architecture.config,
        iterations=meta.stored.get("iterations"),
        statistics="own",
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this script."""
    parser = new_parser(__doc__)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rows", nargs="+", metavar="NAME", default=ROWS)
    parser.add_argument(
        "--views", type=int, default=2560, help="estimate from N views [%(default)s]"
    )
    parser.add_argument(
        "--work-dir", type=Path, help="read the study in this folder [work_dirs/mini/<size>]"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the backbones with new statistics, and the plan that evaluates them."""
    os.environ["GERSP_MINI_SIZE"] = args.size
    work_dir = args.work_dir or Path("work_dirs", "mini", args.size)
    plan_file = work_dir / "frozen.yml"
    if not plan_file.is_file():
        raise UserError(f"there is no {plan_file}: run python benchmarks/mini/run.py first")
    plan: dict[str, Any] = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    missing = [row for row in args.rows if not plan["checkpoints"].get(row)]
    if missing:
        raise UserError(f"{plan_file} has no {', '.join(missing)}: run benchmarks/mini/run.py")
    init_default_scope("mmpretrain")
    views = read_views(args.views)
    checkpoints: dict[str, dict[int, str]] = {}
    for row in args.rows:
        for seed, path in progress(plan["checkpoints"][row].items(), row, "backbone"):
            target = Path(path).with_name("own_statistics.pth")
            write_with_own_statistics(Path(path), target, views)
            checkpoints.setdefault(f"{row}, own statistics", {})[seed] = str(target)
    plan.update(checkpoints=checkpoints, seeds=sorted({s for c in checkpoints.values() for s in c}))
    out = work_dir / "own_statistics.yml"
    write_text(out, yaml.safe_dump(plan, sort_keys=False, allow_unicode=True))
    print(f"next: python tools/benchmarks/run.py {out} --out {work_dir / 'results.jsonl'}")


if __name__ == "__main__":
    run_tool(main, parse_args())
