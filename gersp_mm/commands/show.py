"""Draw a picture; each module listed here has its own arguments and help."""

from __future__ import annotations

from importlib import import_module

from gersp_mm.commands.options import add_common_arguments, run_tool

MODULES = {
    "augmentation_paths": "gersp_mm.visualization.augmentation_paths",
    "cam": "gersp_mm.visualization.cam",
    "curves": "gersp_mm.visualization.curves",
    "neighbours": "gersp_mm.visualization.neighbours",
    "pairs": "gersp_mm.visualization.pairs",
    "projection": "gersp_mm.visualization.projection",
}


def main(name: str, argv: list[str] | None = None) -> None:
    """Run the module of this name with its own arguments."""
    module = import_module(MODULES[name])
    if name == "pairs":  # This command reads a config and takes the options of a training.
        run_tool(module.run, module.parse_args(argv, add_common_arguments))
    else:
        run_tool(module.run, module.parse_args(argv))
