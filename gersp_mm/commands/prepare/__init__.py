"""Prepare a data set: one module for each command, with its arguments and its help."""

from __future__ import annotations

from importlib import import_module

from gersp_mm.commands.options import run_tool

# The work of each command is in the module of this name in `gersp_mm.preparation`.
COMMANDS = {
    "million_aid": "check Million-AID and list its images",
    "imagenet": "check and count ImageNet-1k",
    "eurosat": "check EuroSAT and write its split",
    "resisc45": "check NWPU-RESISC45 and write its split",
    "dior": "check DIOR and write its annotations as COCO and DOTA",
    "dota": "check DOTA and cut it into tiles",
    "loveda": "check LoveDA and lay it out for mmsegmentation",
    "pack": "shrink images once, into a folder or one LMDB database",
    "tiles": "cut large scenes into tiles",
}


def main(name: str, argv: list[str] | None = None) -> None:
    """Run a command of :data:`COMMANDS` with its own arguments."""
    args = import_module(f"{__name__}.{name}").parse_args(argv)
    run_tool(import_module(f"gersp_mm.preparation.{name}").run, args)
