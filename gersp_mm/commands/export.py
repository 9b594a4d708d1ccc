"""Write a backbone in the form in which another library loads it.

SRC is the folder of a run, an exported backbone, or any checkpoint that `convert` reads. OUT is

  --to mmlab         a file for init_cfg=dict(type='Pretrained', checkpoint=OUT, prefix='backbone.')
  --to torchvision   the bare state dict of a ResNet, and OUT.json with its origin
  --to timm          the state dict with timm's names, which are the same
  --to hub           a folder: model.safetensors and config.json for timm and transformers,
                     torchgeo.ckpt, the file for mmlab, and a model card (README.md)

The model card lists the rows of --results that were measured on the exported file.

Examples:
  gersp export work_dirs/gersp_r50 --to hub hub/gersp-r50 --license cc-by-4.0
  gersp export work_dirs/gersp_r50 --to timm gersp_r50_timm.pth
  gersp export gersp_r50_backbone.pth --to hub hub/gersp-r50 --results results/frozen_small.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from gersp_mm.commands.options import run_tool
from gersp_mm.constants import TARGETS
from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("source", metavar="SRC", help="export this run folder or file")
    parser.add_argument("target", metavar="OUT", type=Path, help="write this file or folder")
    parser.add_argument(
        "--to", choices=(*TARGETS, "hub"), default="hub", help="write this form [hub]"
    )
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="state this licence of the weights, in the hub's spelling: cc-by-4.0 [not stated]",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="ROWS.jsonl",
        help="list the rows of this file in the model card",
    )
    parser.add_argument(
        "--trust", action="store_true", help="accept a file with objects of unknown classes"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Export one backbone."""
    from gersp_mm.backbones.convert import take_backbone, write_backbone
    from gersp_mm.backbones.hub import measured, write_hub_folder
    from gersp_mm.backbones.load import find_file, read_backbone
    from gersp_mm.results.store import read_rows
    from gersp_mm.utils.errors import UserError

    if args.to != "hub":
        unused = ["--license"] * bool(args.license) + ["--results"] * bool(args.results)
        if unused:
            raise UserError(f"{unused[0]} is for the model card of --to hub. Leave it out")
        if args.target.is_dir():
            raise UserError(f"{args.target} is a folder. Name the file to write")
        conversion = take_backbone(find_file(args.source), trust=args.trust)
        write_backbone(conversion, args.target, args.to)
        print(f"wrote {args.target} ({conversion.meta['arch']}, {args.to} names)")
        return
    backbone = read_backbone(args.source, args.trust)
    rows = [row for path in args.results for row in read_rows(path)]
    folder = write_hub_folder(backbone, args.target, args.license, rows)
    print(f"wrote {folder}/ ({backbone.meta.arch}, {backbone.meta.method or 'unknown method'})")
    if rows:
        print(f"  results in the model card: {len(measured(backbone, rows))} columns")
    if not args.license:
        print("  The model card says that the licence of the weights is not stated: see --license.")
    print(f"  load it:   gersp_mm.load_backbone({str(folder)!r})")
    print(f"  upload it: gersp push {quote(str(folder))} organisation/name")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
