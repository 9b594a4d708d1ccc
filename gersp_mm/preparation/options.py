"""Arguments that several converters take; the module imports no heavy library, for fast help."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from gersp_mm.utils import arguments


def _workers(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return number or os.cpu_count() or 1


# The options that several converters take: flag, and keyword arguments of argparse.
SHARED_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "archive": (
        "--archive",
        dict(type=Path, help="unpack this zip or tar archive into DATA first"),
    ),
    "archives": (
        "--archives",
        dict(
            nargs="+",
            type=Path,
            default=[],
            metavar="FILE",
            help="unpack these archives first [none]",
        ),
    ),
    "allow_incomplete": (
        "--allow-incomplete",
        dict(
            action="store_true",
            help="take a sample: report what differs from the complete data set, and continue",
        ),
    ),
    "decode": ("--decode", dict(action="store_true", help="decode every image; takes hours")),
    "no_decode": (
        "--no-decode",
        dict(
            action="store_true",
            help="do not decode the images; scene images are not compared either",
        ),
    ),
    "quality": (
        "--quality",
        dict(type=int, default=95, help="write JPEG of this quality, 1 to 100 [%(default)s]"),
    ),
    "workers": (
        "--workers",
        dict(
            type=_workers,
            default=os.cpu_count(),
            metavar="N",
            help="use N threads or processes; 0 takes all cores [%(default)s]",
        ),
    ),
}


def new_parser(
    doc: str | None, *shared: str, data: str = "folder of the data set", source: str | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a converter: its folders and the options that it shares with others.

    Args:
        doc: Docstring of the converter, its help.
        shared: Keys of :data:`SHARED_OPTIONS`.
        data: Help of the folder DATA.
        source: Help of the folder SRC, for a converter that makes another folder, DST.
    """
    parser = arguments.new_parser(doc)
    if source is None:
        parser.add_argument("data", metavar="DATA", type=Path, help=data)
    else:
        parser.add_argument("source", metavar="SRC", type=Path, help=source)
        parser.add_argument("target", metavar="DST", type=Path, help="write this folder")
    for name in shared:
        flag, settings = SHARED_OPTIONS[name]
        parser.add_argument(flag, **settings)
    return parser


def add_raster_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--bands`` and ``--scale``, the arguments of a pixel scale."""
    parser.add_argument(
        "--bands",
        nargs="+",
        type=lambda text: int(text) if text.isdecimal() else text,
        metavar="BAND",
        help="read these bands as red, green and blue, or one for all three, by number from 1 or "
        "by name",
    )
    parser.add_argument(
        "--scale",
        nargs="+",
        action=_Scale,
        default="percentile",
        metavar="VALUE",
        help="scale by percentile, none, or the values for black and for white [%(default)s]",
    )


class _Scale(argparse.Action):
    """Read one word, or two numbers."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Set the scale."""
        scale: Any = values[0]
        if len(values) > 1:
            try:
                scale = tuple(map(float, values))
            except ValueError:
                parser.error(f"{option_string} takes two numbers such as 0 10000, got {values}")
        setattr(namespace, self.dest, scale)
