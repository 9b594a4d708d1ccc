"""Examine a folder of images before a training, and print the lines for the config.

SRC is a folder (searched recursively), a packed folder, a text list with one path per line, or one
raster. All files are listed, but only the pixels of an even sample of them (--sample) are decoded.
The bytes of at most 50,000 files are compared. A folder of 100,000 files of 1 KB takes 12 s on one
core, including the start; decoding a sample of large images takes longer.

The report gives formats, number types, bands, sizes, ground scale, ranges of values with
histograms, unreadable files, files without content, duplicates, and the lines for the config.
The command writes to OUT:

  report.txt         the printed report
  contact_sheet.png  pairs of views (query and key) as the model will see them
  bad_images.txt     unreadable files, with the reason
  empty.txt          files without data or of one colour, with the reason
  duplicates.txt     files with the bytes of an earlier file, with its path

Unreadable files are not an error, because training replaces them with other files. The exit code is
0 if at least one file can be used.

Examples:
  gersp check /my/images
  gersp check /my/scenes --bands 4 3 2 --window "384 m"
  gersp check /my/list.txt --sample 5000 --out work_dirs/check/mine
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.options import run_tool
from gersp_mm.preparation.options import SHARED_OPTIONS, add_raster_options
from gersp_mm.utils.arguments import new_parser

PRESETS = ("released", "mocov2", "overhead")  # the presets of ViewAugmentation


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="examine this folder, list or raster"
    )
    parser.add_argument(
        "--out", type=Path, help="write to this folder [work_dirs/check/<name of SRC>]"
    )
    add_raster_options(parser)
    parser.add_argument(
        "--window",
        help="read windows of this side from scenes: 512 (pixels) or '384 m' [by the files]",
    )
    parser.add_argument(
        "--sample", type=int, default=1000, metavar="N", help="decode N files [%(default)s]"
    )
    parser.add_argument("--rows", type=int, default=6, help="draw N rows of 4 pairs [%(default)s]")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="overhead",
        help="draw views of this preset [%(default)s]",
    )
    flag, settings = SHARED_OPTIONS["workers"]
    parser.add_argument(flag, **settings)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command with its own arguments."""
    args = parse_args(argv)
    from gersp_mm.preparation import check

    run_tool(check.run, args)
