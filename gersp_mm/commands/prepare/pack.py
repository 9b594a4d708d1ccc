"""Shrink an image data set once, and pack its million files into one LMDB database.

Every image whose shorter side is longer than --shorter-side is reduced to it (antialiased) and
stored as JPEG; the others are stored byte for byte. All keep their names: a shrunk `a.png` is a
JPEG called `a.png`, which image libraries read by its content. SRC is searched recursively, or
--list names the images, one a line, as `path` or `path label`, relative to SRC.

DST gets images/ or images.lmdb/, and lists that every dataset reads (as ann_file, data_root=DST):

  images.txt       the images; gersp_mm.MillionAID takes DST without naming the list
  labelled.txt     `path label`, where SRC has one sub-folder per class (labels as mmpretrain's
                   CustomDataset numbers them: the sorted folders' numbers) or --list has labels
  bad_images.txt   images that cannot be read and are left out, with the reason; line breaks and
                   bytes that are not UTF-8 are escaped in names
  progress.jsonl   finished images

The command may be interrupted or killed at any moment: the same command resumes where it stopped.
Finished images are skipped, and bad images are tried again. Remove DST to start over.

Examples:
  gersp prepare pack data/million_aid/test data/packed/maid --to lmdb
  gersp prepare pack data/ImageNet/train data/packed/imagenet --to lmdb
  gersp prepare pack data/ImageNet data/packed/subset --list subset.txt
  gersp prepare pack /my/images data/packed/mine --shorter-side 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__, "quality", "workers", source="folder of the images")
    parser.add_argument(
        "--shorter-side",
        type=int,
        default=256,
        metavar="N",
        help="shrink the shorter side to N pixels; 0 never shrinks [%(default)s]",
    )
    parser.add_argument(
        "--to",
        choices=("folder", "lmdb"),
        default="folder",
        help="write a folder or one LMDB database [%(default)s]",
    )
    parser.add_argument(
        "--list",
        metavar="FILE",
        type=Path,
        help="pack the images that FILE lists, with their labels if it has them",
    )
    return parser.parse_args(argv)
