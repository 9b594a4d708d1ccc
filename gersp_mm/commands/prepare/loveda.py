"""Check LoveDA, and bring Urban and Rural together for mmsegmentation.

Download Train.zip, Val.zip and Test.zip (about 9 GB) from https://doi.org/10.5281/zenodo.5706578.
Expected, at any depth; Test has no masks:

  data/loveda/Train/Rural/images_png/0.png    data/loveda/Train/Rural/masks_png/0.png
  data/loveda/Train/Urban/images_png/...      Val/{Rural,Urban}/...    Test/{Rural,Urban}/...

Masks have one channel: 0 is no data, which is not evaluated, 1 to 7 are background, building, road,
water, barren, forest and agricultural. Every pair is decoded and checked.

Written, as hard links where the file system has them and as copies elsewhere:

  data/loveda/img_dir/{train,val,test}/<number>.png     data/loveda/ann_dir/{train,val}/<number>.png

The command can be interrupted and repeated at any time. Only a submission needs Test.

Examples:
  gersp prepare loveda data/loveda
  gersp prepare loveda data/loveda --archives Train.zip Val.zip Test.zip
  gersp prepare loveda sample --allow-incomplete
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    return new_parser(__doc__, "archives", "allow_incomplete").parse_args(argv)
