"""Check NWPU-RESISC45 and write the split resisc45-gersp-1.

Download NWPU-RESISC45 (about 400 MB) from its authors' link,

  https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs   (RAR: unpack it with unrar or 7z)

or NWPU-RESISC45.zip, a copy, from https://huggingface.co/datasets/torchgeo/resisc45. Expected, the
class folders at any depth:

  data/resisc45/NWPU-RESISC45/airplane/airplane_001.jpg   45 classes of 700 JPEG images, 256x256
  data/resisc45/NWPU-RESISC45/airport/airport_001.jpg ... 31,500 images

Written: data/resisc45/splits/resisc45-gersp-1/{train,val,test}.txt, lines `path label`. Each class
is put in the order of sha256("resisc45-gersp-1:<class>/<file>") and divided: 126 train, 14 val, 560
test. Train and val are together the 20 % that most of the literature trains on. The split of the
GeRSP paper is unknown; this one is our choice. The command can be repeated at any time.

Examples:
  gersp prepare resisc45 data/resisc45
  gersp prepare resisc45 data/resisc45 --archive NWPU-RESISC45.zip
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    return new_parser(__doc__, "archive", "allow_incomplete", "no_decode").parse_args(argv)
