r"""Draw where several pre-trainings look: class activation maps, images by pre-trainings.

A backbone has no classes. So a linear probe (logistic regression, its strength chosen on a fifth
of --train) is fitted on the frozen features of labelled images and put behind the backbone as its
last layer; then the library grad-cam makes the map of the last stage for the class that the image
has, or, with --target predicted and where the class is not known, for the predicted class. Every
map is scaled to its own largest value: colours compare places within a map, not maps.

Below each map is the predicted class with its probability, and the class of the map where that is
another; above each column the probe's accuracy and the number of images that it is of, a fifth of
--train that the probe was not fitted on when its strength was chosen.

Checkpoints are exported backbones of any architecture whose output is a map; `random` is the
first one's network at random initialisation. Images are files, a folder with one sub-folder per
class, or a list with one line `path label` per image, the paths relative to the list's folder or
one above it.

Examples:
  gersp show cam data/eurosat/splits/eurosat-gersp-1/test.txt \
      --train data/eurosat/splits/eurosat-gersp-1/train.txt --train-limit 2000 \
      --checkpoints GeRSP=work_dirs/gersp_r50/gersp_r50_backbone.pth IMP=imp_r50.pth random
  gersp show cam a.jpg b.jpg --train my/train --checkpoints a.pth b.pth \
      --method gradcam++ --target predicted --out cam.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.show.options import add_backbone_arguments
from gersp_mm.utils.arguments import new_parser

# The names in gersp_mm.visualization.cam.
METHODS = (
    "gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigencam", "eigengradcam",
    "scorecam",
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="draw these files, or one folder of classes or list")
    add("--train", type=Path, required=True, help="fit the probe on this folder of classes or list")
    add("--train-limit", type=int, help="use only this many training images [all]")
    add("--rows", type=int, default=8, help="draw N images of a folder or list [%(default)s]")
    add(
        "--method",
        choices=METHODS,
        default="gradcam",
        help="make maps by this method [%(default)s]",
    )
    add("--target", choices=("true", "predicted"), default="true",
        help="make maps of this class [%(default)s]")  # fmt: skip
    add("--overlay", type=float, default=0.45, help="blend in this share of the map [%(default)s]")
    add_backbone_arguments(parser, "cam.png")
    return parser.parse_args(argv)
