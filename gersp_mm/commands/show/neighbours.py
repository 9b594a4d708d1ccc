r"""Draw the nearest training images of some images, as several pre-trainings see them.

Rows are images, next to each of them its nearest training images by the cosine of the frozen
features, for every checkpoint. Blue frames are of the right class, vermilion ones of another. Above
each checkpoint is precision@k, the share of the k nearest that are of the right class: its mean
over all --limit images, not only those that are drawn.

Checkpoints are exported backbones of any architecture; `random` is the first one's network at
random initialisation. Images are a folder with one sub-folder per class, or a list with a line
`path label` per image, the paths relative to the list's folder or one above it.

Examples:
  gersp show neighbours data/eurosat/splits/eurosat-gersp-1/test.txt \
      --train data/eurosat/splits/eurosat-gersp-1/train.txt --train-limit 5000 --size 64 \
      --checkpoints GeRSP=work_dirs/gersp_r50/gersp_r50_backbone.pth IMP=imp_r50.pth random
  gersp show neighbours my/test --train my/train --checkpoints a.pth b.pth \
      --rows 6 --k 4 --out retrieval.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.show.options import add_backbone_arguments
from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("images", type=Path, help="query with this folder of classes or list")
    add("--train", type=Path, required=True, help="search this folder of classes or list")
    add("--rows", type=int, default=8, help="draw N images [%(default)s]")
    add("--k", type=int, default=5, help="draw N neighbours of each image [%(default)s]")
    add("--limit", type=int, default=500, help="measure precision@k on N images [%(default)s]")
    add("--train-limit", type=int, help="use only this many training images [all]")
    add_backbone_arguments(parser, "neighbours.png")
    return parser.parse_args(argv)
