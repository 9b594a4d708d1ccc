"""Shared parts of the benchmarks that run many cases: options, rows, and the block of a page."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from gersp_mm.utils import arguments


def new_parser(
    doc: str | None, folder: Path, **choices: Collection[str]
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark.

    Args:
        doc: Docstring of the benchmark, its help.
        folder: Folder of the benchmark and of its rows.
        choices: Names from which each option selects, by option.
    """
    parser = arguments.new_parser(doc)
    add = parser.add_argument
    for option, names in choices.items():
        add(f"--{option}", nargs="+", choices=names, default=list(names),
            metavar=option[:-1].upper(), help=f"of {', '.join(names)} [all]")  # fmt: skip
    add("--jobs", type=int, default=1, help="run N cases at once [%(default)s]")
    add("--out", type=Path, default=folder / "rows.jsonl", metavar="FILE.jsonl",
        help="append a row per run to FILE [rows.jsonl next to this script]")  # fmt: skip
    add("--again", action="store_true", help="also run cases that already have a row")
    add("--work", type=Path, help="keep data and outputs of all cases in this folder")
    add("--print", action="store_true", help="print the rows of --out and run nothing")
    add("--docs", type=Path, metavar="FILE.md", help="write the table into a page")
    return parser


def run_unless_printed(
    args: argparse.Namespace, run_all: Callable[[argparse.Namespace, Path], None]
) -> None:
    """Call ``run_all(args, folder)`` with ``--work`` or a temporary folder, unless ``--print``."""
    if args.print:
        return
    if args.work:
        run_all(args, args.work.resolve())
        return
    with tempfile.TemporaryDirectory(prefix=f"{args.out.parent.name}-") as folder:
        run_all(args, Path(folder))


def read_rows(path: Path, *fields: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the last row of each case, which these fields identify."""
    if not path.is_file():
        return {}
    rows = map(json.loads, filter(None, path.read_text(encoding="utf-8").splitlines()))
    return {tuple(row[field] for field in fields): row for row in rows}


def write_block(
    page: Path, name: str, texts: Iterable[str], lines: Sequence[Sequence[str]]
) -> None:
    """Replace the block between the two markers of a Markdown page by texts and a table.

    Args:
        page: A page with ``<!-- name: begin -->`` and ``<!-- name: end -->``.
        name: Name in the markers.
        texts: Lines above the table.
        lines: Cells of the table, the header first.
    """
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    block = "\n".join([begin, "", *texts, "", head, "|---" * len(lines[0]) + "|", *body, "", end])
    pattern = re.compile(re.escape(begin) + ".*" + re.escape(end), re.DOTALL)
    text = page.read_text(encoding="utf-8")
    page.write_text(pattern.sub(lambda _: block, text), encoding="utf-8")
