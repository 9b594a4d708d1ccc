"""Tables of result rows: mean and spread over seeds, differences, noise, the paper beside."""

from __future__ import annotations

import csv
import html
import io
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gersp_mm.utils.errors import UserError

LEVEL = 0.05  # of significance
LEAST_PAIRS = 3
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # what spreadsheets begin formulas with
MARKDOWN = re.compile(r"[\\`*_{}\[\]|~$#]")  # what may be markup within a line
PAPER_FIELDS = (
    "table", "dataset", "model", "metric", "pretraining", "pretraining_data", "value", "std",
)  # fmt: skip
# The paper's detection tables were made by the released protocol; its mAP is AP at IoU 0.5, which
# follows from its size alone. Split, schedule and image size of its other tables are unknown.
PAPER_DATASETS = {"DIOR": "DIOR", "DOTA v1.0": "DOTA"}
PAPER_MODELS = {
    "faster-rcnn_r50_fpn": "Faster R-CNN",
    "retinanet_r50_fpn": "RetinaNet",
    "dyhead_r50_fpn": "DyHead",
}
PAPER_PROTOCOLS = (
    "horizontal boxes, released protocol, trainval to test",
    "horizontal boxes, released protocol (800 px tiles, not merged), train to val",
)


class Column(NamedTuple):
    """What values have to share to be compared."""

    dataset: str
    model: str
    protocol: str
    metric: str


class Comparison(NamedTuple):
    """A pre-training against another.

    Attributes:
        difference: of the means.
        words: what the seeds say about it.
        p: of the paired t-test, None without one.
    """

    difference: float
    words: str
    p: float | None


@dataclass(frozen=True)
class Cell:
    """The values of one pre-training in one column, by seed."""

    values: Mapping[int | None, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation, None for one value."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """Mean ± standard deviation."""
        return fixed(self.mean) + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclass(frozen=True)
class PaperRow:
    """One value of the paper."""

    dataset: str
    model: str
    metric: str
    pretraining: str
    value: float
    std: float | None

    @property
    def text(self) -> str:
        """Value ± standard deviation, where the paper has one."""
        return f"{self.value:g}" + ("" if self.std is None else f" ± {self.std:g}")


@dataclass
class Tables:
    """All columns, and what is compared with what.

    Attributes:
        cells: by column and pre-training.
        baseline: pre-training to compare with, usually random weights.
        reference: another one, usually supervised on ImageNet.
        paper: rows of the paper.
        notes: what was found odd about the rows.
    """

    cells: Mapping[Column, Mapping[str, Cell]]
    baseline: str
    reference: str
    paper: Sequence[PaperRow] = ()
    notes: Sequence[str] = field(default_factory=list)

    def best(self, column: Column) -> set[str]:
        """Names of the pre-trainings with the highest printed mean; none if there is but one."""
        shown = {name: fixed(cell.mean) for name, cell in self.cells[column].items()}
        top = max(shown.values(), key=float)
        return {name for name, text in shown.items() if text == top} if len(shown) > 1 else set()

    def compared(self, column: Column, name: str, other: str) -> Comparison | None:
        """Compare two pre-trainings; None where one is not there or they are the same."""
        cells = self.cells[column]
        if name == other or name not in cells or other not in cells:
            return None
        return compare(cells[name], cells[other])

    def of_paper(self, column: Column, name: str) -> PaperRow | None:
        """Return the paper's value where the protocol is the paper's."""
        wanted = paper_key(column)
        found = (p for p in self.paper if (p.dataset, p.model) == wanted and p.pretraining == name)
        return next(found, None)

    def apart(self) -> dict[tuple[str, str, str], list[PaperRow]]:
        """Return the paper's tables of our data sets that no column of ours is comparable with."""
        comparable = {paper_key(column) for column in self.cells}
        ours = {PAPER_DATASETS.get(column.dataset, column.dataset) for column in self.cells}
        found: dict[tuple[str, str, str], list[PaperRow]] = {}
        for row in self.paper:
            if row.dataset in ours and (row.dataset, row.model) not in comparable:
                found.setdefault((row.dataset, row.model, row.metric), []).append(row)
        return found


# ------------------------------------------------------------------------------------ from rows


def collect(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict, list[str]]:
    """Sort rows into columns and cells.

    Args:
        rows: (where it is, row).

    Returns:
        The cells by column and pre-training, and notes on rows that are there twice.

    Raises:
        UserError: two rows of one column, pre-training and seed differ.
    """
    cells: dict[Column, dict[str, dict[int | None, float]]] = {}
    first: dict[tuple[Any, ...], tuple[str, Mapping[str, Any]]] = {}
    notes = []
    for where, row in rows:
        column = Column(row["dataset"], row["model"], row["protocol"], row["metric"])
        name = str(row["pretraining"] or "unknown")
        key = (*column, name, row["seed"])
        if key in first:
            other, known = first[key]
            differing = [
                f"{part} {known[part]!r} and {row[part]!r}"
                for part in ("value", "checkpoint_sha256", "config")
                if known[part] != row[part]
            ]
            what = f"{name} on {', '.join(column)}, seed {row['seed']}"
            if differing:
                raise UserError(
                    f"{other} and {where} are both {what}, with {'; '.join(differing)}: they "
                    "cannot stand in one column; remove one, or give it another pretraining"
                )
            notes.append(f"{where} repeats {other} ({what}): counted once")
            continue
        first[key] = (where, row)
        cells.setdefault(column, {}).setdefault(name, {})[row["seed"]] = row["value"]
    built = {c: {n: Cell(values) for n, values in named.items()} for c, named in cells.items()}
    return built, notes


def compare(one: Cell, other: Cell) -> Comparison:
    """Say whether the difference of two cells is more than noise, by a paired t-test over seeds."""
    from scipy.stats import ttest_rel

    difference = one.mean - other.mean
    seeds = sorted(seed for seed in set(one.values) & set(other.values) if seed is not None)
    if len(seeds) < LEAST_PAIRS:
        return Comparison(difference, f"too few seeds ({len(seeds)} in common)", None)
    pairs = [(one.values[seed], other.values[seed]) for seed in seeds]
    gaps = [a - b for a, b in pairs]
    paired = statistics.fmean(gaps)
    if max(gaps) - min(gaps) < 1e-9:  # no spread: the test divides by it
        p = 1.0 if abs(paired) < 1e-9 else 0.0
    else:
        p = float(ttest_rel(*zip(*pairs)).pvalue)
    shown = "p<0.001" if p < 0.001 else f"p={p:.2g}" if p < 0.1 else f"p={p:.2f}"
    where = f"{shown}, {len(seeds)} paired seeds"
    if p >= LEVEL:
        return Comparison(difference, f"inside the noise ({where})", p)
    side = "better" if paired > 0 else "worse"
    return Comparison(difference, f"{side} beyond the noise, {where}", p)


def read_paper(path: str | os.PathLike) -> list[PaperRow]:
    """Read ``results/paper.csv``.

    Raises:
        UserError: it is not there, or a line is wrong.
    """
    if not os.path.isfile(path):
        raise UserError(f"--paper: there is no file {path}")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != PAPER_FIELDS:
            raise UserError(f"{path}: the first line must be {','.join(PAPER_FIELDS)}")
        found = []
        for number, row in enumerate(reader, 2):
            try:
                value, std = float(row["value"]), float(row["std"]) if row["std"] else None
            except (TypeError, ValueError):
                raise UserError(f"{path}, line {number}: value and std must be numbers") from None
            words = {name: row[name] for name in ("dataset", "model", "metric", "pretraining")}
            found.append(PaperRow(**words, value=value, std=std))
    return found


def paper_key(column: Column) -> tuple[str, str] | None:
    """Return data set and model of the paper's values that a column is comparable with."""
    dataset, model = PAPER_DATASETS.get(column.dataset), PAPER_MODELS.get(column.model)
    if not dataset or not model or column.metric != "AP50":
        return None
    return (dataset, model) if column.protocol in PAPER_PROTOCOLS else None


# ------------------------------------------------------------------------------------ what is said


PAPER_BESIDE = (
    "The paper prints mAP without a definition; that it is AP at IoU 0.5 follows from its size."
)
PAPER_APART = (
    "Split, schedule or image size of these are not known or not ours. They are not comparable "
    "with the tables above, and no difference is formed."
)


def _facts(tables: Tables) -> list[str]:
    tests = sum(
        1
        for column, cells in tables.cells.items()
        for name in cells
        for other in dict.fromkeys((tables.baseline, tables.reference))
        if (found := tables.compared(column, name, other)) and found.p is not None
    )
    return [
        "Mean ± sample standard deviation over the seeds, in per cent; the best mean of a column "
        "is bold. n is the number of seeds; n = 1 has no spread. Of a single checkpoint, seeds "
        "vary which images are chosen, not its pre-training.",
        f"Significance: two-sided paired t-test over common seeds, level {LEVEL}, at least "
        f"{LEAST_PAIRS} of them. {tests} tests were made here, and p is not corrected for that.",
    ]


class Detail(NamedTuple):
    """One pre-training in one column, as texts."""

    name: str
    cell: Cell | None  # None where only the paper has a value
    best: bool
    comparisons: list[Comparison | None]
    paper: PaperRow | None


def _others(tables: Tables) -> list[str]:
    present = {name for cells in tables.cells.values() for name in cells}
    return [o for o in dict.fromkeys((tables.baseline, tables.reference)) if o in present]


def _details(tables: Tables, column: Column) -> list[Detail]:
    best, others = tables.best(column), _others(tables)
    details = [
        Detail(
            name,
            cell,
            name in best,
            [tables.compared(column, name, other) for other in others],
            tables.of_paper(column, name),
        )
        for name, cell in tables.cells[column].items()
    ]
    details.sort(key=lambda detail: -detail.cell.mean if detail.cell else 0)
    key = paper_key(column)
    only = [p for p in tables.paper if (p.dataset, p.model) == key]
    return details + [
        Detail(p.pretraining, None, False, [None] * len(others), p)
        for p in only
        if p.pretraining not in tables.cells[column]
    ]


def _by_model(tables: Tables) -> dict[str, list[Column]]:
    models: dict[str, list[Column]] = {}
    for column in tables.cells:
        models.setdefault(column.model, []).append(column)
    return models


def _overview_rows(tables: Tables, columns: Sequence[Column]) -> list[str]:
    """Names of the pre-trainings, the best mean rank first."""
    names = dict.fromkeys(name for column in columns for name in tables.cells[column])

    def rank(name: str) -> float:
        places = []
        for column in columns:
            cells = tables.cells[column]
            if name in cells:
                places.append(sum(cell.mean > cells[name].mean for cell in cells.values()))
        return statistics.fmean(places)

    return sorted(names, key=rank)


def fixed(value: float, decimals: int = 2, sign: bool = False) -> str:
    """Write a number with a fixed number of decimals, and zero never as ``-0.00``."""
    rounded = round(value, decimals) + 0.0  # of -0.0, the sum is 0.0
    return f"{rounded:+.{decimals}f}" if sign else f"{rounded:.{decimals}f}"


# ------------------------------------------------------------------------------------------- CSV


def to_csv(tables: Tables) -> str:
    """One line for each column and pre-training; spreadsheets take no name for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    others = _others(tables)
    header = [*Column._fields, "pretraining", "mean", "std", "seeds", "best"]
    for other in others:
        header += [f"difference to {other}", f"p against {other}", f"against {other}"]
    writer.writerow([_cell(name) for name in [*header, "paper", "paper_std"]])
    for column in tables.cells:
        for detail in _details(tables, column):
            names = [_cell(name) for name in (*column, detail.name)]
            line: list[Any] = [*names, "", "", 0, int(detail.best)]
            if detail.cell:
                std = "" if detail.cell.std is None else f"{detail.cell.std:.4f}"
                line[5:8] = fixed(detail.cell.mean, 4), std, len(detail.cell.values)
            for found in detail.comparisons:
                p = "" if found is None or found.p is None else f"{found.p:.4g}"
                line += [fixed(found.difference, 4), p, found.words] if found else ["", "", ""]
            paper = detail.paper
            line += [paper.value, "" if paper.std is None else paper.std] if paper else ["", ""]
            writer.writerow(line)
    return out.getvalue()


def _cell(name: str) -> str:
    """Mark a name as text where a spreadsheet would run it as a formula."""
    return f"'{name}" if name.lstrip().startswith(FORMULA) or name[:1] in "\t\r\n" else name


# -------------------------------------------------------------------------------------- Markdown


def to_markdown(tables: Tables) -> str:
    """An overview for each model, one table for each column, and the paper's numbers apart."""
    lines = ["# Benchmark tables", "", *(f"{fact}\n" for fact in _facts(tables))]
    lines += [f"Note: {_md(note)}\n" for note in tables.notes]
    number = 0
    for model, columns in _by_model(tables).items():
        numbers = {column: number + i for i, column in enumerate(columns, 1)}
        number += len(columns)
        lines += [f"## {_md(model)}", ""]
        heads = [f"[{numbers[c]}] {_md(c.dataset)}, {_md(_short(c))}" for c in columns]
        body = []
        for name in _overview_rows(tables, columns):
            cells = [tables.cells[column].get(name) for column in columns]
            texts = [
                "" if cell is None else _md_cell(cell, name in tables.best(column))
                for column, cell in zip(columns, cells)
            ]
            body.append([_md(name), *texts])
        lines += _md_table(["pre-training", *heads], body)
        for column in columns:
            lines += [f"### [{numbers[column]}] {_md(column.dataset)}, {_md(_short(column))}", ""]
            lines += [f"{_md(column.model)}; {_md(column.protocol)}", ""]
            beside = any(detail.paper for detail in _details(tables, column))
            head = ["pre-training", "mean ± std", "n"]
            for other in _others(tables):
                head += [f"to {_md(other)}", f"against {_md(other)}"]
            body = []
            for detail in _details(tables, column):
                line = [_md(detail.name), "", ""]
                if detail.cell:
                    text = f"**{detail.cell.text}**" if detail.best else detail.cell.text
                    line[1:] = text, str(len(detail.cell.values))
                for found in detail.comparisons:
                    line += [fixed(found.difference, sign=True), found.words] if found else ["", ""]
                body.append(line + [detail.paper.text if detail.paper else ""] * beside)
            lines += _md_table(head + ["paper"] * beside, body)
            if beside:
                lines += [PAPER_BESIDE, ""]
    apart = tables.apart()
    if apart:
        lines += ["## The paper's numbers, by another protocol", "", PAPER_APART, ""]
        for (dataset, model, metric), values in apart.items():
            lines += [f"### {_md(dataset)}, {_md(model)}, {_md(metric)} (paper)", ""]
            lines += _md_table(
                ["pre-training", "paper"], [[_md(r.pretraining), r.text] for r in values]
            )
    return "\n".join(lines).rstrip() + "\n"


def _md(text: str) -> str:
    """Escape a name so that Markdown shows it as it is, in one line."""
    return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def _md_cell(cell: Cell, best: bool) -> str:
    text = f"{cell.text} (n={len(cell.values)})"
    return f"**{text}**" if best else text


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (head, marks, *body)] + [""]


# ------------------------------------------------------------------------------------------ HTML

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1200px}
body{padding:0 1em;color:#1c2430}
table{border-collapse:collapse;margin:.6em 0 1.6em}th,td{padding:.3em .8em;text-align:right}
th:first-child,td:first-child,td.words,th.words{text-align:left}
td{white-space:nowrap;border-top:1px solid #dde3ea}
th{background:#eef2f6;vertical-align:bottom;cursor:pointer;font-weight:600}
th:hover{background:#dfe7ef}th[aria-sort=ascending]::after{content:" \\25b2"}
th[aria-sort=descending]::after{content:" \\25bc"}.wide{overflow-x:auto}
.n,.protocol,p{color:#4a5666}.paper{border:2px dashed #b8860b;padding:0 1em;background:#fffaf0}
h3{margin-bottom:0}.protocol{margin:.1em 0}td b{color:#0b5d2a}
"""
SCRIPT = """
document.addEventListener('click',function(e){
var h=e.target.closest('th');if(!h)return;var r=h.parentNode,i=r.cells.length,t=h.closest('table');
for(i=0;r.cells[i]!==h;i++);var up=h.getAttribute('aria-sort')==='descending';
for(var k=0;k<r.cells.length;k++)r.cells[k].removeAttribute('aria-sort');
h.setAttribute('aria-sort',up?'ascending':'descending');
function v(x){var d=x.cells[i].dataset.v;return d===undefined?null:d===''?null:isNaN(d)?d:+d}
Array.from(t.tBodies[0].rows).sort(function(a,b){a=v(a);b=v(b);if(a===b)return 0;
if(a===null)return 1;if(b===null)return -1;return (a<b?-1:1)*(up?1:-1)})
.forEach(function(x){t.tBodies[0].appendChild(x)})});
"""


def to_html(tables: Tables, title: str = "Benchmark tables") -> str:
    """Return one page that needs no other file; a click on a head sorts by it."""
    e = html.escape
    out = [f"<h1>{e(title)}</h1>", *(f"<p>{e(fact)}</p>" for fact in _facts(tables))]
    out += ["<p>A click on the head of a column sorts by it.</p>"]
    out += [f"<p><b>Note:</b> {e(note)}</p>" for note in tables.notes]
    number = 0
    for model, columns in _by_model(tables).items():
        numbers = {column: number + i for i, column in enumerate(columns, 1)}
        number += len(columns)
        out.append(f"<h2>{e(model)}</h2>")
        heads = ["<th>pre-training</th>"]
        heads += [
            f'<th title="{e(c.protocol)}">{e(c.dataset)}<br>{e(_short(c))}<br>[{numbers[c]}]</th>'
            for c in columns
        ]
        body = []
        for name in _overview_rows(tables, columns):
            line = [_td(name)]
            for column in columns:
                cell = tables.cells[column].get(name)
                line.append(
                    "<td></td>" if cell is None else _mean(cell, name in tables.best(column))
                )
            body.append("".join(line))
        out.append(_table(heads, body))
        for column in columns:
            details = _details(tables, column)
            beside = any(detail.paper for detail in details)
            out.append(f"<h3>[{numbers[column]}] {e(column.dataset)}, {e(_short(column))}</h3>")
            out.append(f'<p class="protocol">{e(column.model)}; {e(column.protocol)}</p>')
            heads = ["<th>pre-training</th><th>mean ± std</th><th>n</th>"]
            for other in _others(tables):
                heads.append(f'<th>to {e(other)}</th><th class="words">against {e(other)}</th>')
            heads += ["<th>paper</th>"] * beside
            body = []
            for detail in details:
                line = [_td(detail.name), "<td></td><td></td>"]
                if detail.cell:
                    count = str(len(detail.cell.values))
                    line[1:] = _mean(detail.cell, detail.best, False), _td(count)
                for found in detail.comparisons:
                    if found is None:
                        line.append('<td></td><td class="words"></td>')
                        continue
                    p = "" if found.p is None else f"{found.p:.6g}"
                    line.append(_td(fixed(found.difference, sign=True), f"{found.difference:.6f}"))
                    line.append(_td(found.words, p, "words"))
                if beside:
                    paper = detail.paper
                    line.append(_td(paper.text, str(paper.value)) if paper else "<td></td>")
                body.append("".join(line))
            out.append(_table(heads, body))
            out += [f"<p>{e(PAPER_BESIDE)}</p>"] * beside
    apart = tables.apart()
    if apart:
        out.append('<div class="paper"><h2>The paper\'s numbers, by another protocol</h2>')
        out.append(f"<p>{e(PAPER_APART)}</p>")
        for (dataset, model, metric), values in apart.items():
            out.append(f"<h3>{e(dataset)}, {e(model)}, {e(metric)} (paper)</h3>")
            body = [_td(row.pretraining) + _td(row.text, str(row.value)) for row in values]
            out.append(_table(["<th>pre-training</th><th>paper</th>"], body))
        out.append("</div>")
    head = f'<meta charset="utf-8"><title>{e(title)}</title><style>{STYLE}</style>'
    content = "\n".join(out)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{content}\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _short(column: Column) -> str:
    kinds = (("kNN", "kNN"), ("few images", "few-shot"), ("logistic", "linear probe"),
             ("fine-tuning", "fine-tuning"))  # fmt: skip
    kind = next((short for text, short in kinds if text in column.protocol), "")
    return f"{kind} {column.metric}".strip()


def _td(text: str, value: str | None = None, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    value = text if value is None else value
    return f'<td{kind} data-v="{html.escape(value)}">{html.escape(text)}</td>'


def _mean(cell: Cell, best: bool, count: bool = True) -> str:
    text = f"<b>{html.escape(cell.text)}</b>" if best else html.escape(cell.text)
    number = f' <span class="n">n={len(cell.values)}</span>' if count else ""
    return f'<td data-v="{cell.mean:.6f}">{text}{number}</td>'


def _table(heads: Sequence[str], body: Sequence[str]) -> str:
    lines = "\n".join(f"<tr>{line}</tr>" for line in body)
    return (
        f'<div class="wide"><table><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )
