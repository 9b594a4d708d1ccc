"""Tables inside Markdown pages, written from rows and compared with them.

A table stands between two comments, the first of which describes it::

    <!-- table: mini_cpu
    rows="IMP, 2,400 updates => IMP; GeRSP, 2,400 updates => GeRSP"
    columns="EuroSAT kNN; NEON demo sites linear => NEON sites linear" decimals="1" -->
    ...
    <!-- end -->

``mini_cpu`` is the name of the file of rows without its suffix. ``rows`` lists pre-trainings, and
``columns`` lists data sets with short protocols; the text after ``=>`` is shown in their place.
``seeds`` selects the seeds. ``decimals`` [2] is the number of decimals. ``bold="no"`` leaves the
best value unmarked. ``layout="down"`` writes a line for each column and compares the last row with
the first one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gersp_mm.results.row import Column
from gersp_mm.results.statistics import Cell, compare
from gersp_mm.results.store import read_rows
from gersp_mm.results.tables import best_of, collect, markdown, named
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import write_text

BLOCK = re.compile(r"(<!-- table: ([\w-]+)\s+(.*?)-->\n)(.*?)(<!-- end -->)", re.S)
OPTION = re.compile(r'(\w+)="([^"]*)"')
VALUES = dict(  # allowed values of a table's options
    decimals=r"\d", seeds=r"\d+( \d+)*", bold="yes|no", layout="across|down",
              rows=r"(?s).*\S.*", columns=r"(?s).*\S.*")  # fmt: skip


class Cells:
    """The cells of a file of rows, looked up by the names that pages use.

    Args:
        path: A result file.
        seeds: Seeds to use; by default all.

    Raises:
        UserError: The file cannot be read.
    """

    def __init__(self, path: Path, seeds: list[int] | None = None) -> None:
        numbered = ((f"row {number}", row) for number, row in enumerate(read_rows(path), 1))
        chosen = (pair for pair in numbered if seeds is None or pair[1].seed in seeds)
        self.path = path
        self.columns, repeats = collect(chosen)
        for repeat in repeats:
            if repeat.other_weights:
                raise UserError(
                    f"{path}: {repeat.where} and {repeat.of} have the same name, column and seed, "
                    "but other weights or configs. Give one of them another name."
                )

    def column(self, name: str) -> Mapping[str, Cell]:
        """Return a column's cells by pre-training.

        Args:
            name: Data set and short protocol, such as ``EuroSAT kNN``; with the metric if
                several columns share them.

        Raises:
            UserError: No column or several have this name.
        """
        found = [column for column in self.columns if name in _names(column)]
        if len(found) != 1:
            known = dict.fromkeys(_names(column)[0] for column in self.columns)
            several = "several columns" if found else "no column"
            raise UserError(f"{self.path} has {several} {name!r}. There are {listed(known, 30)}.")
        return self.columns[found[0]]

    def find(self, row: str, column: str) -> Cell | None:
        """Return the values of a pre-training in a column; None if it has none there.

        Args:
            row: The pre-training.
            column: See :meth:`column`.

        Raises:
            UserError: No column has this pre-training.
        """
        known = dict.fromkeys(name for cells in self.columns.values() for name in cells)
        if named(row) not in known:
            raise UserError(f"{self.path} has no {row!r}. There are {listed(known, 50)}.")
        return self.column(column).get(named(row))


def _names(column: Column) -> tuple[str, str]:
    measured = " ".join(filter(None, (column.dataset, column.measured_by.short)))
    return measured, f"{measured} {column.metric}"


def updated(text: str, results: str | os.PathLike, where: str) -> tuple[str, int]:
    """Fill the tables of a page.

    Args:
        text: The page.
        results: Folder of the rows.
        where: Name of the page, for messages.

    Returns:
        The page with its tables, and their number.

    Raises:
        UserError: A table names an option, a row or a column that does not exist.
    """

    def filled(match: re.Match[str]) -> str:
        options = dict(OPTION.findall(match[3]))
        unknown = [name for name in options if name not in VALUES]
        for name, value in options.items():
            if name in VALUES and not re.fullmatch(VALUES[name], value):
                raise UserError(f'{where}, table {match[2]}: {name}="{value}" is not possible.')
        if unknown or not {"rows", "columns"} <= set(options):
            wrong = f"no option {unknown[0]}" if unknown else "rows or columns are missing"
            raise UserError(f"{where}, table {match[2]}: {wrong}")
        try:
            return match[1] + _table(Path(results, f"{match[2]}.jsonl"), options) + match[5]
        except UserError as error:
            raise UserError(f"{where}, table {match[2]}: {error}") from None

    page, count = BLOCK.subn(filled, text)
    begun = len(re.findall(r"<!--\s*table\b", text))
    if count < begun:
        raise UserError(
            f"{where} begins {begun} tables and ends {count}. Write <!-- table: NAME ... --> "
            "above each table and <!-- end --> below it."
        )
    return page, count


def _page(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a page: {error}") from None


def write(path: str | os.PathLike, results: str | os.PathLike) -> int:
    """Fill the tables of a page in place, keep its line ends, and return the number of tables.

    Args:
        path: A Markdown file.
        results: Folder of the rows.
    """
    text, count = updated(_page(path), results, str(path))
    if b"\r\n" in Path(path).read_bytes():
        text = text.replace("\n", "\r\n")
    write_text(path, text)
    return count


def check(path: str | os.PathLike, results: str | os.PathLike) -> int:
    """Compare the tables of a page with the rows, and return the number of tables.

    Args:
        path: A Markdown file.
        results: Folder of the rows.

    Raises:
        UserError: A table differs. The message names the first line that differs.
    """
    given = _page(path)
    text, count = updated(given, results, str(path))
    for number, (is_line, wanted) in enumerate(zip(given.splitlines(), text.splitlines()), 1):
        if is_line != wanted:
            raise UserError(
                f"{path}, line {number} is {is_line!r}, and the rows say {wanted!r}. Run "
                f"gersp table --write {path}."
            )
    if given != text:
        raise UserError(f"{path} lacks lines. Run gersp table --write {path}.")
    return count


def _table(path: Path, options: Mapping[str, str]) -> str:
    seeds = [int(seed) for seed in options["seeds"].split()] if "seeds" in options else None
    cells, decimals = Cells(path, seeds), int(options.get("decimals", 2))
    rows, columns = _labels(options["rows"]), _labels(options["columns"])
    if options.get("layout") == "down":
        return _down(cells, rows, columns, decimals)
    found = {column: _cells(cells, rows, column) for column in columns}
    best = {column: best_of(found[column], decimals) for column in columns}
    lines = [["pre-training", *columns.values()]]
    for row, label in rows.items():
        line = [markdown(label)]
        for column in columns:
            text = found[column][row].shown(decimals) if row in found[column] else ""
            bold = options.get("bold") != "no" and row in best[column]
            line.append(f"**{text}**" if bold else text)
        lines.append(line)
    return _lines(lines, ["---"] + ["---:"] * len(columns))


def _cells(cells: Cells, rows: Iterable[str], column: str) -> dict[str, Cell]:
    found = {row: cells.find(row, column) for row in rows}
    return {row: cell for row, cell in found.items() if cell}


def _down(cells: Cells, rows: dict[str, str], columns: dict[str, str], decimals: int) -> str:
    first, *_, last = rows
    lines = [["measured", *map(markdown, rows.values()), "paired over seeds"]]
    for column, label in columns.items():
        found = _cells(cells, rows, column)
        texts = [found[row].shown(decimals) if row in found else "" for row in rows]
        both = first in found and last in found
        words = compare(found[last], found[first]).words if both else ""
        lines.append([markdown(label), *texts, words])
    return _lines(lines, ["---", *["---:"] * len(rows), "---"])


def _labels(text: str) -> dict[str, str]:
    """Read ``name => label; name``."""
    pairs = [[" ".join(part.split()) for part in entry.split("=>")] for entry in text.split(";")]
    return {pair[0]: pair[-1] for pair in pairs if pair[0]}


def _lines(lines: list[list[str]], marks: list[str]) -> str:
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join(["", head, "|" + "|".join(marks) + "|", *body, "", ""])
