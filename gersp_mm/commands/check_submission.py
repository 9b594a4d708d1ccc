#!/usr/bin/env python3
"""Check a file for DOTA's or LoveDA's test server before it is submitted.

  dota    Task 1 of DOTA v1.0, oriented boxes: a zip archive of the 15 files Task1_<class>.txt with
          lines `image score x1 y1 x2 y2 x3 y3 x4 y4`
          https://captain-whu.github.io/DOTA/evaluation.html
  loveda  a zip archive of 1,796 label maps <id>.png, 1024 x 1024, one channel, labels 0 to 6
          https://github.com/Junjue-Wang/LoveDA (links to the server)

The check lists the first few problems of each kind. The exit code is 2 if there is any problem.
gersp test --submission writes these files and runs this check on them.

Examples:
  python tools/analysis/check_submission.py dota work_dirs/NAME/submission/Task1/Task1.zip \
      --images data/dota/test/images
  python tools/analysis/check_submission.py loveda \
      work_dirs/NAME/submission/LoveDA_submission.zip --images data/loveda/img_dir/test
"""

from __future__ import annotations

import argparse

from gersp_mm.commands.options import run_tool
from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("kind", choices=("dota", "loveda"), help="check for this test server")
    parser.add_argument("file", help="check this zip archive")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="compare with the names, and for LoveDA the sizes, of these test images or tiles",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """List all problems of the submission file.

    Raises:
        UserError: The file has at least one problem.
    """
    from gersp_mm.evaluation import submission

    images = None
    if args.images:
        paths = submission.images_below(args.images)
        images = submission.image_sizes(paths, tiles=args.kind == "dota")
    submission.check_file(args.kind, args.file, images)
    print(f"{args.file} is fit to submit")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
