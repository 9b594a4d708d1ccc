r"""Draw the features of the same images by several pre-trainings, side by side in two dimensions.

Every point is an image, its colour is its class. The projection is t-SNE (scikit-learn, PCA as
start, perplexity 30) or, with --method umap, UMAP, of L2-normalised frozen features. It shows
neighbourhoods: distances between groups and their sizes mean nothing. So each title has two
numbers of the features themselves, before the projection: kNN top-1 (k = 20, five folds of these
images) and the silhouette of the classes (cosine; 1: far apart, 0: overlapping).

Checkpoints are exported backbones of any architecture; `random` is the first one's network at
random initialisation. Images are a folder with one sub-folder per class, or a list with a line
`path label` per image, the paths relative to the list's folder or one above it.

Examples:
  gersp show projection data/eurosat/splits/eurosat-gersp-1/test.txt --size 64 \
      --checkpoints GeRSP=work_dirs/gersp_r50/gersp_r50_backbone.pth IMP=imp_r50.pth random
  gersp show projection my/images --checkpoints a.pth b.pth --limit 500 \
      --method umap --out umap.png
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
    add("images", type=Path, help="project this folder of classes or list")
    add(
        "--method",
        choices=("tsne", "umap"),
        default="tsne",
        help="project by this method [%(default)s]",
    )
    add("--limit", type=int, default=2000, help="use N evenly spaced images [%(default)s]")
    add_backbone_arguments(parser, "tsne.png")
    return parser.parse_args(argv)
