"""Make tables of result rows: Markdown, CSV and one HTML page that needs no other file.

Every pre-training stands side by side, with mean ± standard deviation over the seeds, the
difference to random weights (--baseline) and to supervised pre-training (--reference), and whether
that is more than noise. Values of different protocols, splits or models are never in one column.
The paper's values (results/paper.csv) stand beside ours where the protocol is the paper's, else in
a block of their own.

Examples:
  python tools/benchmarks/table.py results/frozen_small.jsonl
  python tools/benchmarks/table.py results/a.jsonl results/b.jsonl --out work_dirs/tables
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.options import run_tool
from gersp_mm.resources import resource_root
from gersp_mm.utils.errors import UserError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROWS.jsonl", help="result rows")
    parser.add_argument(
        "--out", type=Path, default=Path("tables"), metavar="DIR",
        help="gets table.md, table.csv and table.html; default tables",
    )  # fmt: skip
    parser.add_argument(
        "--paper", type=Path, metavar="FILE.csv",
        help="the paper's values; default results/paper.csv of the checkout, where there is one",
    )  # fmt: skip
    parser.add_argument("--baseline", default="random", help="pre-training; default random")
    parser.add_argument("--reference", default="IMP", help="pre-training; default IMP")
    parser.add_argument("--title", default="Benchmark tables", help="of the page")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Write the tables of the given result rows."""
    from gersp_mm.preparation.common import write_text
    from gersp_mm.results import tables
    from gersp_mm.results.store import read_rows

    rows = [
        (f"{path}, row {number}", row)
        for path in args.rows
        for number, row in enumerate(read_rows(path), 1)
    ]
    if not rows:
        raise UserError(f"there are no rows in {', '.join(map(str, args.rows))}")
    cells, notes = tables.collect(rows)
    default = resource_root() / "results" / "paper.csv"
    paper = args.paper or (default if default.is_file() else None)
    made = tables.Tables(
        cells, args.baseline, args.reference, tables.read_paper(paper) if paper else (), notes
    )
    present = {name for named in cells.values() for name in named}
    for option in ("baseline", "reference"):
        if getattr(args, option) not in present:
            print(f"no rows of --{option} {getattr(args, option)}: there are {', '.join(present)}")
    for note in notes:
        print(f"note: {note}")
    for name, text in (
        ("table.md", tables.to_markdown(made)),
        ("table.csv", tables.to_csv(made)),
        ("table.html", tables.to_html(made, args.title)),
    ):
        write_text(args.out / name, text)
        print(f"written: {args.out / name}")
    print(f"{len(rows)} rows, {len(cells)} columns, {len(present)} pre-trainings")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
