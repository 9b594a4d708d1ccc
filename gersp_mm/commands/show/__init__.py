"""Draw a picture: one module for each command, with its arguments and its help."""

from __future__ import annotations

from importlib import import_module

from gersp_mm.commands.options import run_tool

# The work of each command is in the module of this name in `gersp_mm.visualization`.
COMMANDS = {
    "pairs": "training pairs as the model sees them",
    "augmentation_paths": "the same views by each engine of the augmentation",
    "curves": "losses and monitored values of runs",
    "projection": "features in two dimensions (t-SNE, UMAP)",
    "neighbours": "nearest training images by several backbones",
    "cam": "class activation maps of several backbones",
}


def main(name: str, argv: list[str] | None = None) -> None:
    """Run a command of :data:`COMMANDS` with its own arguments."""
    args = import_module(f"{__name__}.{name}").parse_args(argv)
    run_tool(import_module(f"gersp_mm.visualization.{name}").run, args)
