"""Draw the losses and monitored values of one or several runs into one picture.

Examples:
  gersp show curves work_dirs/gersp_r18_demo
  gersp show curves work_dirs/a work_dirs/b --labels 0.99 0.996 --out ab.png
  gersp show curves work_dirs/a/20260101_120000/vis_data/scalars.json

A run is a work directory (all its starts, so that a resumed run is one curve) or one scalars.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="draw these work directories or scalars.json files"
    )
    parser.add_argument(
        "--labels", nargs="+", help="give the runs these names [their folders' names]"
    )
    parser.add_argument("--out", type=Path, help="write this PNG file [<first run>/curves.png]")
    parser.add_argument(
        "--random-knn",
        type=float,
        metavar="PERCENT",
        help="draw the kNN top-1 of random weights as a line",
    )
    return parser.parse_args(argv)
