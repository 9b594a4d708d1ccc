r"""Draw the same random views through every implementation of the augmentation, side by side.

Columns are the reference (crop, resize and colours by PIL and torchvision, as the released code
does), the compiled kernel of the worker processes, the batched form for the training device, and
the differences of these two from the reference, 32 times enlarged. Rows are random images of a
folder. Prints how many values differ from the reference by more than 2 of 255 grey levels.

Examples:
  gersp show augmentation_paths data/demo/remote_sensing
  gersp show augmentation_paths /my/images --preset mocov2 --rows 12 --size 96 \
      --out views.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("images", type=Path, help="search this folder recursively for images")
    parser.add_argument(
        "--preset",
        default="released",
        choices=("released", "mocov2"),
        help="draw views of this preset [%(default)s]",
    )
    parser.add_argument("--rows", type=int, default=6, help="draw N images [%(default)s]")
    parser.add_argument(
        "--size", type=int, default=160, help="crop views to this side in pixels [%(default)s]"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("augmentation_paths.png"),
        help="write this PNG file [%(default)s]",
    )
    return parser.parse_args(argv)
