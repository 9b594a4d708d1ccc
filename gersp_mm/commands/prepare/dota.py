"""Check DOTA v1.0 and cut it into tiles with mmrotate's own splitter.

Download DOTA v1.0 from https://captain-whu.github.io/DOTA/dataset.html and unpack it to

  data/dota/train/images/P0000.png ...       1,411 images
  data/dota/train/labelTxt/P0000.txt ...     labels of v1.0; labelTxt-v1.0/ is found, too
  data/dota/val/images/, data/dota/val/labelTxt/       458 images
  data/dota/test/images/                     937 images, only for --protocol field; no labels

--protocol released writes the format of the released GeRSP code, horizontal boxes:

  data/dota/tiles_800_160/{train,val}/{images,annfiles}/    tiles of 800 px that overlap by 160
  data/dota/tiles_800_160/coco/{train,val}.json             for mmdet's CocoDataset

--protocol field writes what mmrotate's DOTA configs read, oriented boxes:

  data/dota/tiles_1024_200/trainval/{images,annfiles}/      tiles of 1024 px that overlap by 200
  data/dota/tiles_1024_200/test/images/

The command may be interrupted or killed at any moment: a folder of tiles appears when it is
complete. The same command resumes with the missing folders; --force makes all of them again.

Examples:
  gersp prepare dota data/dota --protocol released
  gersp prepare dota data/dota --protocol field --workers 8
  gersp prepare dota sample --protocol released --allow-incomplete
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser

PROTOCOLS = ("released", "field")  # the names in gersp_mm.preparation.dota


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__, "allow_incomplete", "no_decode", "workers")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, required=True, help="make the tiles of this protocol"
    )
    parser.add_argument("--force", action="store_true", help="make finished tiles again")
    return parser.parse_args(argv)
