"""Upload a hub folder, as `gersp export --to hub` writes it, to the Hugging Face hub.

The hub's own login is used (`hf auth login`, or the variable HF_TOKEN). A new repository is private
until --public is given.

Examples:
  gersp push hub/gersp-r50 my-lab/gersp-r50
  gersp push hub/gersp-r50 my-lab/gersp-r50 --public
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.options import run_tool
from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="hub folder to upload")
    parser.add_argument("name", metavar="ORGANISATION/NAME", help="repository on the hub")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Upload one folder."""
    from gersp_mm.backbones.hub import push

    print(f"uploaded: {push(args.folder, args.name, private=not args.public)}")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
