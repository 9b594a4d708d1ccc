#!/usr/bin/env python3
"""Convert the checkpoint of a public pre-training or of a training to a complete backbone.

SRC may be a file of GeRSP (the released training file or its converted one, or a run of this
package), SeCo, CACo (.ckpt and .pth), MoCo v1 and v2, Geo-Aware, TOV, CMID (full and backbone
only), RSP (ResNet-50), torchvision, timm, or of any training with mmpretrain or mmselfsup. The
command recognises the kind of file and prints it; where two kinds look alike, --source decides.
docs/guide/checkpoints.md lists for each kind the download, the normalisation and the quirks.

A ResNet-18, 34, 50, 101 or 152 is accepted only if every tensor is there; an exported file of this
package may hold any backbone. The student is taken, not the teacher. DST contains

  --to mmlab         {'state_dict': {'backbone.…'}, 'meta': {…}} for
                     init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')
  --to torchvision   the bare state dict: model.fc = nn.Identity(); model.load_state_dict(…)
  --to timm          the same names: timm.create_model('resnet50', num_classes=0)

The last two also write the meta to DST.json, which the conversion back to mmlab reads, and print
the lines that load DST in torchvision, its FPN, timm, segmentation-models-pytorch and torchgeo.

Files are read with torch.load(weights_only=True). A file with objects of other classes is refused
without --trust. With --trust no code of the file runs either: these objects are left unread.

Examples:
  gersp convert GeRSP.pth gersp_r50.pth --verify
  gersp convert resnet50-0676ba61.pth imp_r50.pth
  gersp convert seco_resnet50_1m.ckpt seco_r50.pth --trust
  gersp convert moco.pth.tar geo_r50.pth --source geo-aware
  gersp convert epoch_100.pth teacher_r50.pth --teacher
  gersp convert gersp_r50.pth gersp_tv.pth --to torchvision
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from gersp_mm.backbones.sources import NAMES
from gersp_mm.commands.options import run_tool
from gersp_mm.constants import RESNETS, TARGETS
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.errors import UserError

if TYPE_CHECKING:
    from gersp_mm.backbones.convert import Conversion


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("source_file", metavar="SRC", type=Path, help="convert this checkpoint")
    parser.add_argument("target", metavar="DST", type=Path, help="write this file")
    parser.add_argument(
        "--source",
        choices=("auto", *NAMES),
        default="auto",
        help="read SRC as this pre-training; mmlab is mmpretrain and mmselfsup [auto]",
    )
    parser.add_argument(
        "--arch",
        choices=("auto", *RESNETS),
        default="auto",
        help="refuse any other architecture [auto: accept all]",
    )
    parser.add_argument(
        "--to", choices=TARGETS, default="mmlab", help="write these tensor names [mmlab]"
    )
    parser.add_argument("--teacher", action="store_true", help="take the EMA teacher instead")
    parser.add_argument(
        "--trust", action="store_true", help="accept a file with objects of unknown classes"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the features of both networks, SRC and DST, before writing DST",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert one checkpoint file and report its origin."""
    from gersp_mm.backbones import elsewhere
    from gersp_mm.backbones.convert import take_backbone, write_backbone
    from gersp_mm.backbones.verify import require_same_features

    if args.target.is_dir():
        raise UserError(f"{args.target} is a folder. Name the file to write.")
    if args.target.resolve() == args.source_file.resolve():
        raise UserError(f"SRC and DST are both {args.target}. Write to another file.")
    conversion = take_backbone(args.source_file, args.source, args.arch, args.teacher, args.trust)
    print(report(conversion))
    if args.verify:
        difference = require_same_features(conversion)
        print(f"verified       features differ by {difference:.1e} of the largest at most")
    write_backbone(conversion, args.target, args.to)
    print(f"wrote          {args.target} ({args.to} names)")
    if args.to != "mmlab":
        for library in elsewhere.LINES:
            lines = elsewhere.lines_for(library, args.target, f"resnet{conversion.depth}")
            print(f"\nin {library}:\n" + textwrap.indent(lines, "    "))


def report(conversion: Conversion) -> str:
    """Print which tensors were taken, which were left out, and where the file comes from."""
    from gersp_mm.utils.console import table

    meta, counts = conversion.meta, dict(conversion.counts)
    taken = next(iter(counts))
    total, whole = sum(counts.values()), len(conversion.backbone)
    del counts[taken]
    rows: list[tuple[str, object]] = [(f"taken: {taken}", f"{whole}/{whole}")]
    rows += [(f"left out: {group}", count) for group, count in counts.items()]
    rows.append(("in the file", total))
    normalisation, source = meta["normalisation"], meta.get("source") or {}
    lines = {
        "recognised": f"{meta['method']}, because {' and '.join(conversion.reasons)}",
        "architecture": meta["arch"],
        "epochs": meta["epoch"],
        "normalisation": f"mean {_numbers(normalisation['mean'])}, std "
        f"{_numbers(normalisation['std'])}, {normalisation['channel_order']}, of 0-255",
        "images": source.get("images"),
        "source sha256": meta["source_sha256"],
        "weights sha256": meta["weights_sha256"],
    }
    text = [table(("tensors", ""), rows), ""]
    text += [f"{name:<14} {value}" for name, value in lines.items() if value is not None]
    text += [f"note           {note}" for note in conversion.notes]
    text += [f"WARNING        {warning}" for warning in conversion.warnings]
    return "\n".join(text)


def _numbers(values: list[float]) -> str:
    return "/".join(f"{value:g}" for value in values)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
