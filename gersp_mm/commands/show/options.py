"""Arguments that the pictures of features share."""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.backbones.own import add_import_argument


def add_backbone_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Add checkpoints, device, size, batch size, seed and the picture to write."""
    add = parser.add_argument
    add(
        "--checkpoints",
        nargs="+",
        required=True,
        metavar="[NAME=]FILE",
        help="exported backbones, and `random` for the first one's network untrained",
    )
    add("--out", type=Path, default=Path(out), help="write this PNG file [%(default)s]")
    add("--size", type=int, default=224, help="resize images to this side in pixels [%(default)s]")
    add("--batch-size", type=int, default=64, help="pass N images forward at once [%(default)s]")
    add("--device", help="run on cpu, cuda or cuda:N [the first GPU, else cpu]")
    add("--seed", type=int, default=0, help="seed the random choices [%(default)s]")
    add_import_argument(parser)
