"""Check ImageNet-1k, the natural images of GeRSP's pre-training.

Download ILSVRC2012_img_train.tar (138 GB) after registration from https://image-net.org/download;
the terms allow non-commercial research and education. Expected:

  data/ImageNet/train/n01440764/*.JPEG ...     1,000 folders, 1,281,167 images
  data/ImageNet/val/*.JPEG                     50,000 images, flat or foldered; not needed

The archive holds one tar file per class; each has to be unpacked into a folder of its name:

  cd data/ImageNet/train && tar xf ILSVRC2012_img_train.tar && rm ILSVRC2012_img_train.tar
  for f in n*.tar; do mkdir "${f%.tar}" && tar xf "$f" -C "${f%.tar}" && rm "$f"; done

The label of an image is the number of its folder among all sorted folders of train/ that are not
hidden or of the system (.ipynb_checkpoints, @eaDir): one folder too few or too many shifts the
labels of all after it. Nothing is written, except with --decode (which
takes hours): unreadable_<part>.txt, and decoded_<part>.txt, so that it may be interrupted.

Other trees of class folders (a subset, Tiny-ImageNet with train/<class>/images/, classes of your
own) are checked with --allow-incomplete, which reports instead of refusing.

Examples:
  gersp prepare imagenet data/ImageNet
  gersp prepare imagenet data/tiny-imagenet-200 --allow-incomplete
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    options = ("allow_incomplete", "decode", "workers")
    return new_parser(__doc__, *options, data="folder that holds train/").parse_args(argv)
