"""Prepare a data set; each of the modules below has its arguments and its help."""

from __future__ import annotations

from importlib import import_module

from gersp_mm.commands.options import run_tool

MODULES = {
    "dior": "gersp_mm.preparation.dior",
    "dota": "gersp_mm.preparation.dota",
    "eurosat": "gersp_mm.preparation.eurosat",
    "imagenet": "gersp_mm.preparation.imagenet",
    "loveda": "gersp_mm.preparation.loveda",
    "million_aid": "gersp_mm.preparation.million_aid",
    "pack": "gersp_mm.preparation.pack",
    "resisc45": "gersp_mm.preparation.resisc45",
    "tiles": "gersp_mm.preparation.tiles",
}


def main(name: str, argv: list[str] | None = None) -> None:
    """Run the module of this name with its own arguments."""
    module = import_module(MODULES[name])
    run_tool(module.run, module.parse_args(argv))
