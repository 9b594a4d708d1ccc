"""What `key_bn='split'` costs: one training step with it and one without, in turns.

Images are in memory and normalised; model and optimizer are those of `step.py`.

Examples:
  python benchmarks/speed/key_bn.py --setting r18-64
  python benchmarks/speed/key_bn.py --setting r50-224 --layout contiguous --amp bf16 --record
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from step import SETTINGS, Ours, load_config, make_batch
from timing import (
    add_arguments,
    interleave,
    paired_ratio,
    print_spreads,
    quiet,
    record,
    spreads,
)

from gersp_mm.utils.memory import keep_freed_memory


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=SETTINGS, default="r18-64", help="(%(default)s)")
    parser.add_argument("--batch", type=int, help="pairs of a step; at least 16 by default")
    parser.add_argument("--split-size", type=int, default=32, help="(%(default)s)")
    parser.add_argument(
        "--layout", choices=("channels_last", "contiguous"), default="channels_last"
    )
    parser.add_argument("--amp", choices=("bf16",))
    add_arguments(parser, rounds=20, warmup=2, devices=True)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Time both steps and print their ratio."""
    if args.threads:
        torch.set_num_threads(args.threads)
    quiet()
    if args.device == "cpu":
        keep_freed_memory()
    network = SETTINGS[args.setting]
    pairs = args.batch or max(16, network["batch"])
    steps: dict[str, Callable[[], Any]] = {}
    for key_bn in ("none", "split"):
        cfg = load_config(network["arch"], 65536, args.amp)
        cfg.model.update(
            key_bn=key_bn,
            split_size=args.split_size,
            channels_last=args.layout == "channels_last",
        )
        ours = Ours(cfg, args.device)
        batch = make_batch(pairs, network["size"], 1000, args.device)
        steps[key_bn] = lambda ours=ours, batch=batch: ours.step(batch)
    times = interleave(steps, args.rounds, args.warmup, args.device)
    groups = ours.model.groups.number
    title = f"key_bn: ResNet-{network['arch']}, {network['size']} px, {pairs}+{pairs} images"
    title += f", {groups} groups, {args.layout}, {args.amp or 'fp32'}, {args.device}"
    ratios = {"split / none": paired_ratio(times, "split", "none")}
    print_spreads(f"{title} [ms]", spreads(times))
    print_spreads("Ratio, taken within each round", ratios)
    record(args, title, dict(step_ms=spreads(times)), ratios)


if __name__ == "__main__":
    main(parse_args())
