r"""Make tables of result rows: Markdown, CSV and one HTML page that needs no other file.

The pre-trainings stand side by side, each with mean ± standard deviation over the seeds, the
difference to random weights (--baseline) and to supervised pre-training (--reference), and whether
the difference exceeds the noise. Different protocols, splits or models never share a column.
The paper's values (results/paper.csv) stand next to ours where the protocol is the paper's, else in
a separate block. A row whose seed appears twice is shown as a repeat, with its difference.

With --write or --check, tables inside Markdown pages are written or compared, see
gersp_mm/results/documents.py for their form.

Examples:
  gersp table results/frozen_small.jsonl
  gersp table results/a.jsonl results/b.jsonl --out work_dirs/tables \
      --reference IMP
  gersp table --write README.md docs/results/mini.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.options import run_tool
from gersp_mm.resources import resource_root
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.errors import UserError, counted

MADE_OF_ROWS = ("out", "paper", "baseline", "reference", "title")  # Options of the three files.


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "rows", nargs="*", type=Path, metavar="ROWS.jsonl", help="read these result rows"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tables"), metavar="DIR",
        help="write table.md, table.csv and table.html into DIR [tables]",
    )  # fmt: skip
    parser.add_argument(
        "--paper", type=Path, metavar="FILE.csv",
        help="read the paper's values from FILE [results/paper.csv of the checkout]",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", default="random", metavar="NAME", help="compare with NAME [random]"
    )
    parser.add_argument(
        "--reference",
        "--against",
        default="IMP",
        metavar="NAME",
        help="compare also with NAME [IMP]",
    )
    parser.add_argument(
        "--title", default="Benchmark tables", help="give the page this title [%(default)s]"
    )
    parser.add_argument(
        "--write", nargs="+", type=Path, metavar="PAGE.md",
        help="fill the tables of these pages from the rows in results/",
    )  # fmt: skip
    parser.add_argument(
        "--check", nargs="+", type=Path, metavar="PAGE.md",
        help="fail if a table of these pages differs from the rows in results/",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.write or args.check:
        for given, name in (
            (args.rows, "ROWS.jsonl"),
            *((getattr(args, n) != parser.get_default(n), f"--{n}") for n in MADE_OF_ROWS),
        ):
            if given:
                parser.error(f"{name} does not go with --write or --check: pages name their rows")
    elif not args.rows:
        parser.error("give ROWS.jsonl, or pages with --write or --check")
    return args


def run(args: argparse.Namespace) -> None:
    """Write the tables of the given result rows."""
    from gersp_mm.results import documents, paper, read_rows, tables
    from gersp_mm.utils.files import write_text

    if args.write or args.check:
        for page in args.write or ():
            count = documents.write(page, resource_root() / "results")
            print(f"written: {page}, {counted(count, 'table')}")
        for page in args.check or ():
            documents.check(page, resource_root() / "results")
        return
    rows = [
        (f"{path}, row {number}", row)
        for path in args.rows
        for number, row in enumerate(read_rows(path), 1)
    ]
    if not rows:
        raise UserError(
            f"no result rows in {', '.join(map(str, args.rows))}. Name a file that holds some."
        )
    cells, repeats = tables.collect(rows)
    default = resource_root() / "results" / "paper.csv"
    found = args.paper or (default if default.is_file() else None)
    values = paper.read_paper(found) if found else ()
    made = tables.Tables(cells, args.baseline, args.reference, values, repeats)
    for option in ("baseline", "reference"):
        name = getattr(made, option)
        if name not in made.names:
            print(f"--{option} {name} has no rows. Choose from {', '.join(sorted(made.names))}.")
    for note in tables.notes(repeats):
        print(f"note: {note}")
    for name, text in (
        ("table.md", tables.to_markdown(made)),
        ("table.csv", tables.to_csv(made)),
        ("table.html", tables.to_html(made, args.title)),
    ):
        write_text(args.out / name, text)
        print(f"written: {args.out / name}")
    print(f"{len(rows)} rows, {len(cells)} columns, {len(made.names)} pre-trainings")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    run_tool(run, parse_args(argv))
