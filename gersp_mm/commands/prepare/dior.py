"""Write DIOR's boxes as COCO json (horizontal) and DOTA text (oriented), after checking the data.

Download DIOR (the images, splits and horizontal boxes) and DIOR-R (the oriented boxes) from
https://gcheng-nwpu.github.io/#Datasets and unpack them to

  data/dior/JPEGImages-trainval/00001.jpg ...            11,725 images
  data/dior/JPEGImages-test/11726.jpg ...                11,738 images
  data/dior/ImageSets/Main/{train,val,test}.txt
  data/dior/Annotations/Horizontal Bounding Boxes/00001.xml ...
  data/dior/Annotations/Oriented Bounding Boxes/00001.xml ...

Written next to them, for train, val, trainval and test:

  data/dior/coco/train.json ...        mmdet's CocoDataset, data_prefix=dict(img='')
  data/dior/obb/train/00001.txt ...    mmrotate's DOTADataset, img_suffix='jpg'

One of the two folders of annotations is enough. The tool names a missing folder and skips its
files. Nothing is written before everything is checked. The command can be repeated at any time.

Examples:
  gersp prepare dior data/dior
  gersp prepare dior data/dior --no-decode
  gersp prepare dior data/dior --annotations-only
  gersp prepare dior sample --allow-incomplete
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__, "no_decode", "allow_incomplete", "workers")
    parser.add_argument(
        "--annotations-only",
        action="store_true",
        help="do not look at the images; sizes are those in the XML files, else 800 x 800",
    )
    return parser.parse_args(argv)
