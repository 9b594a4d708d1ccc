"""Count the images of Million-AID and list them; GeRSP pre-trains on the test split.

Download the test split (990,848 images, about 140 GB in several archives) from its authors' page,
https://captain-whu.github.io/DiRS/. Its labels are not public, and they are not needed. The train
split (10,000 labelled images, 1.8 GB) is counted if it is there, but not used. Expected, flat or
nested as the archives have it:

  data/million_aid/test/P0000000.jpg ...       data/million_aid/train/...

--archives unpacks zip and tar archives, each into test/<its name> (train/ for one called train...);
the parts of a split archive (.z01, .001) have to be joined first. A part of Million-AID, or a
folder of your own images, is listed with --allow-incomplete.

Written: data/million_aid/test/images.txt, the sorted paths of the images relative to test/.

--decode decodes every image, which takes hours; those that cannot be read are left out of the list
and named in data/million_aid/unreadable_test.txt. It may be interrupted: decoded_test.txt lists
the decoded images (remove it to start over). Without --decode, the images in unreadable_test.txt
are left out as well. --decode is optional, because training replaces unreadable images anyway.

Examples:
  gersp prepare million_aid data/million_aid
  gersp prepare million_aid data/million_aid --archives /downloads/test*.zip
  gersp prepare million_aid my_images --allow-incomplete
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    options = ("archives", "decode", "allow_incomplete", "workers")
    return new_parser(__doc__, *options, data="folder that holds test/").parse_args(argv)
