"""Check EuroSAT (RGB) and write the split eurosat-gersp-1.

Download EuroSAT_RGB.zip (about 95 MB) from https://zenodo.org/records/7711810; the older
EuroSAT.zip works as well. The class folders may lie at any depth:

  data/eurosat/2750/AnnualCrop/AnnualCrop_1.jpg    10 classes, 27,000 JPEG images of 64x64 pixels
  data/eurosat/2750/Forest/Forest_1.jpg ...

Written: data/eurosat/splits/eurosat-gersp-1/{train,val,test}.txt, lines `path label`. Each class is
put in the order of sha256("eurosat-gersp-1:<class>/<file>") and divided 60/20/20: EuroSAT comes
without a split, and that of the GeRSP paper is unknown. The command can be repeated at any time.

Examples:
  gersp prepare eurosat data/eurosat
  gersp prepare eurosat data/eurosat --archive EuroSAT_RGB.zip
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    return new_parser(__doc__, "archive", "allow_incomplete", "no_decode").parse_args(argv)
