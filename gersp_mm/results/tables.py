"""Tables of result rows: mean and spread over seeds, differences, noise, the paper's values."""

from __future__ import annotations

import csv
import html
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from gersp_mm.results.paper import PaperValue
from gersp_mm.results.row import NAMES_OF_RANDOM, RANDOM, Column, Row
from gersp_mm.results.statistics import LEAST_PAIRS, LEVEL, Cell, Comparison, compare, fixed
from gersp_mm.utils.errors import counted

FORMULA = tuple("=+-@＝＋－＠")  # starts of formulas in spreadsheets
MARKDOWN = re.compile(r"[\\`*_{}\[\]|~$#]")  # may be markup within a line


class Repeat(NamedTuple):
    """A further row with the same column, pre-training and seed, which enters no mean.

    Attributes:
        where: File and line.
        of: File and line of the row that enters the mean.
        column: The column.
        name: The pre-training.
        seed: The seed.
        value: The repeated value.
        first: The value that enters the mean.
        other_weights: Whether the two rows name other files of weights or other configs.
    """

    where: str
    of: str
    column: Column
    name: str
    seed: int | None
    value: float
    first: float
    other_weights: bool

    @property
    def difference(self) -> float:
        """The difference from the value that enters the mean."""
        return self.value - self.first


SENTENCE_PART = re.compile(r", (?![^(]*\))")  # Between the parts, not within brackets.

# Two rows with the same name and seed belong to the same weights if these fields agree.
IDENTITY_OF_WEIGHTS = ("checkpoint_sha256", "config")


@dataclass
class Tables:
    """All columns, and the pre-trainings that each one is compared with.

    Attributes:
        cells: Cells by column and pre-training.
        baseline: Pre-training to compare with, usually random weights.
        reference: Second pre-training to compare with, usually supervised on ImageNet.
        paper: Values of the paper.
        repeats: Rows whose seed appears twice.
    """

    cells: Mapping[Column, Mapping[str, Cell]]
    baseline: str = RANDOM
    reference: str = "IMP"
    paper: Sequence[PaperValue] = ()
    repeats: Sequence[Repeat] = ()

    def __post_init__(self) -> None:
        """Replace any name of random weights by the name in rows."""
        self.baseline, self.reference = named(self.baseline), named(self.reference)

    @property
    def names(self) -> set[str]:
        """All pre-trainings."""
        return {name for cells in self.cells.values() for name in cells}

    @property
    def others(self) -> list[str]:
        """Baseline and reference, if there are rows of them."""
        return [o for o in dict.fromkeys((self.baseline, self.reference)) if o in self.names]

    def head(self, column: Column) -> str:
        """Return a column's data set, protocol and metric in a few words.

        Where several columns of a model have the same words, those parts of the protocol's
        sentence follow that they do not share.
        """
        parts = {
            one: SENTENCE_PART.split(one.sentence)
            for one in self.cells
            if (one.model, one.dataset, one.short) == (column.model, column.dataset, column.short)
        }
        own = parts.pop(column)
        different = [part for part in own if any(part not in other for other in parts.values())]
        return ", ".join((column.dataset, column.short, *different))

    def best(self, column: Column) -> set[str]:
        """Return the pre-trainings with the highest printed mean; none if there is only one."""
        return best_of(self.cells[column])

    def compared(self, column: Column, name: str, other: str) -> Comparison | None:
        """Compare two pre-trainings; None if one has no values or they are the same."""
        cells = self.cells[column]
        if name == other or name not in cells or other not in cells:
            return None
        return compare(cells[name], cells[other])

    def of_paper(self, column: Column, name: str) -> PaperValue | None:
        """Return the paper's value of a pre-training if the protocol equals the paper's."""
        return next((p for p in self.paper if p.name == name and p.matches(column)), None)

    def apart(self) -> dict[tuple[str, str, str], list[PaperValue]]:
        """Return the paper's values on our data sets that stand next to no column of ours."""
        ours = {column.dataset for column in self.cells}
        found: dict[tuple[str, str, str], list[PaperValue]] = {}
        for value in self.paper:
            if value.dataset_of_ours in ours and not any(map(value.matches, self.cells)):
                found.setdefault((value.dataset, value.model, value.metric), []).append(value)
        return found


def best_of(cells: Mapping[str, Cell], decimals: int = 2) -> set[str]:
    """Return the names with the highest printed mean; none if there is only one cell."""
    shown = {name: fixed(cell.mean, decimals) for name, cell in cells.items()}
    top = max(shown.values(), key=float, default="")
    return {name for name, text in shown.items() if text == top} if len(shown) > 1 else set()


def named(name: str | None) -> str:
    """Return a pre-training's name in tables; all names of random weights give the same."""
    return RANDOM if str(name).lower() in NAMES_OF_RANDOM else str(name or "unknown")


def collect(
    rows: Iterable[tuple[str, Row]],
) -> tuple[dict[Column, dict[str, Cell]], list[Repeat]]:
    """Sort rows into columns and cells.

    Args:
        rows: Pairs of a row's file and line, and the row.

    Returns:
        The cells by column and pre-training; and the rows whose column, pre-training and seed
        appear twice, of which the first one enters the mean.
    """
    cells: dict[Column, dict[str, dict[int | None, float]]] = {}
    first: dict[tuple[Column, str, int | None], tuple[str, Row]] = {}
    repeats = []
    for where, row in rows:
        column = row.column
        name = RANDOM if row.settings.method == RANDOM else named(row.pretraining)
        key = (column, name, row.seed)
        if key in first:
            of, counted_row = first[key]
            other = any(getattr(row, n) != getattr(counted_row, n) for n in IDENTITY_OF_WEIGHTS)
            repeats.append(Repeat(where, of, *key, row.value, counted_row.value, other))
            continue
        first[key] = (where, row)
        cells.setdefault(column, {}).setdefault(name, {})[row.seed] = row.value
    built = {c: {n: Cell(values) for n, values in inner.items()} for c, inner in cells.items()}
    return built, repeats


def notes(repeats: Sequence[Repeat]) -> list[str]:
    """Say how many rows are repeats, and by how much they differ."""
    if not repeats:
        return []
    same = sum(fixed(repeat.difference) == "0.00" for repeat in repeats)
    farthest = max(repeats, key=lambda repeat: abs(repeat.difference))
    text = f"{counted(len(repeats), 'repeated row')}, part of no mean: {same} with the same value"
    if same < len(repeats):
        place = f"{farthest.name}, {farthest.column.dataset}, {farthest.column.short}"
        text += f", the largest difference {fixed(farthest.difference, sign=True)} ({place})"
    found = [text]
    other = [repeat for repeat in repeats if repeat.other_weights]
    if other:
        found.append(
            f"{counted(len(other), 'repeat')} of other weights or by another config, such as "
            f"{other[0].where} against {other[0].of}. Give other weights another name"
        )
    return found


class Detail(NamedTuple):
    """The values of one pre-training in one column.

    Attributes:
        name: The pre-training.
        cell: Its values; None if only the paper has a value.
        best: Whether its mean is the highest.
        comparisons: Comparisons with baseline and reference.
        paper: The paper's value.
    """

    name: str
    cell: Cell | None
    best: bool
    comparisons: list[Comparison | None]
    paper: PaperValue | None


class Numbered(NamedTuple):
    """A column with its number on the page and its lines."""

    number: int
    column: Column
    details: list[Detail]

    @property
    def has_paper(self) -> bool:
        """Whether the paper has a value."""
        return any(detail.paper for detail in self.details)


def _details(tables: Tables, column: Column) -> list[Detail]:
    best, cells = tables.best(column), tables.cells[column]
    details = [
        Detail(
            name,
            cell,
            name in best,
            [tables.compared(column, name, other) for other in tables.others],
            tables.of_paper(column, name),
        )
        for name, cell in sorted(cells.items(), key=lambda item: -item[1].mean)
    ]
    nothing: list[Comparison | None] = [None] * len(tables.others)
    only = (p for p in tables.paper if p.name not in cells and p.matches(column))
    return details + [Detail(p.name, None, False, nothing, p) for p in only]


def _overview_rows(tables: Tables, columns: Sequence[Column]) -> list[str]:
    """Return the names of the pre-trainings, the best mean rank first."""
    names = dict.fromkeys(name for column in columns for name in tables.cells[column])

    def rank(name: str) -> float:
        places = []
        for column in columns:
            cells = tables.cells[column]
            if name in cells:
                places.append(sum(cell.mean > cells[name].mean for cell in cells.values()))
        return statistics.fmean(places)

    return sorted(names, key=rank)


def _facts(tables: Tables) -> list[str]:
    tests = sum(
        1
        for column, cells in tables.cells.items()
        for name in cells
        for other in tables.others
        if (found := tables.compared(column, name, other)) and found.p is not None
    )
    return [
        "Mean ± sample standard deviation over the seeds, in per cent; the best mean of a column "
        "is bold. n is the number of seeds; n = 1 has no spread. For a single checkpoint, seeds "
        "vary the choice of images, not its pre-training.",
        f"Significance: two-sided paired t-test over common seeds, level {LEVEL}, at least "
        f"{LEAST_PAIRS} seeds. {tests} tests were made here, and p is not corrected for that.",
    ]


def _view(tables: Tables) -> dict[str, Any]:
    """Return the content of both templates."""
    models: dict[str, list[Numbered]] = {}
    by_model: dict[str, list[Column]] = {}
    for column in tables.cells:
        by_model.setdefault(column.model, []).append(column)
    number = 0
    for model, columns in by_model.items():
        for column in columns:
            number += 1
            shown = Numbered(number, column, _details(tables, column))
            models.setdefault(model, []).append(shown)
    return dict(
        tables=tables,
        facts=_facts(tables),
        notes=notes(tables.repeats),
        models=models,
        overview={model: _overview_rows(tables, columns) for model, columns in by_model.items()},
        apart=tables.apart(),
    )


def to_markdown(tables: Tables) -> str:
    """Return overviews for the models, tables for the columns, and the paper's other values."""
    return _render("table.md.j2", **_view(tables))


def to_html(tables: Tables, title: str = "Benchmark tables") -> str:
    """Return one page that needs no other file; a click on the head of a column sorts by it."""
    return _render("table.html.j2", title=title, **_view(tables))


def _render(template: str, **view: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gersp_mm.results"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=markdown, fixed=fixed)
    return environment.get_template(template).render(**view)


def markdown(text: str) -> str:
    """Escape a name so that Markdown shows it as it is, in one line."""
    return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(str(text).split()), quote=False))


def to_csv(tables: Tables) -> str:
    """Return a line for each column and pre-training, with names that are never formulas."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["dataset", "model", "protocol", "metric", "pretraining", "mean", "std", "seeds"]
    header += ["best"]
    for other in tables.others:
        header += [f"difference to {other}", f"p against {other}", f"against {other}"]
    writer.writerow([_cell(name) for name in [*header, "paper", "paper_std"]])
    for column in tables.cells:
        names = (column.dataset, column.model, column.sentence, column.metric)
        for detail in _details(tables, column):
            line: list[Any] = [_cell(name) for name in (*names, detail.name)]
            mean, std, count = "", "", 0
            if detail.cell:
                mean, count = fixed(detail.cell.mean, 4), len(detail.cell.values)
                std = "" if detail.cell.std is None else f"{detail.cell.std:.4f}"
            line += [mean, std, count, int(detail.best)]
            for found in detail.comparisons:
                p = "" if found is None or found.p is None else f"{found.p:.4g}"
                line += [fixed(found.difference, 4), p, found.words] if found else ["", "", ""]
            paper = detail.paper
            line += [paper.value, "" if paper.std is None else paper.std] if paper else ["", ""]
            writer.writerow(line)
    return out.getvalue()


def _cell(name: str) -> str:
    """Mark a name as text if a spreadsheet would run it as a formula."""
    return f"'{name}" if name.lstrip().startswith(FORMULA) or name[:1] in "\t\r\n" else name
