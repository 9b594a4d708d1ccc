"""Look at a folder of images before a training; the body is gersp_mm/preparation/check.py."""

from __future__ import annotations

from gersp_mm.commands.options import run_tool


def main(argv: list[str] | None = None) -> None:
    """Run the command with its own arguments."""
    from gersp_mm.preparation import check

    run_tool(check.run, check.parse_args(argv))
