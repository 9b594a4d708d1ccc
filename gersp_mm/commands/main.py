"""The table of commands. A module is imported when its command is called, not before."""

from __future__ import annotations

from importlib import import_module

COMMANDS = {
    "train": "train by any config, pre-training or downstream",
    "test": "evaluate a checkpoint, draw or submit its predictions",
    "check": "look at a folder of images before a training",
    "convert": "convert a pre-trained backbone of another project",
    "benchmark": "evaluate checkpoints by tasks and seeds into result rows",
    "table": "make tables of result rows",
    "quickstart": "pre-train on the demo images and evaluate the backbone",
    "demo_detection": "fine-tune a detector on the demo scenes",
}


def main(name: str, argv: list[str] | None = None) -> None:
    """Run a command of :data:`COMMANDS` with its own arguments."""
    import_module(f"gersp_mm.commands.{name}").main(argv)
