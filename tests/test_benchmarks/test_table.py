"""tools/benchmarks/table.py: numbers computed by hand, noise in words, the paper, the page."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gersp_mm.results import store, tables
from gersp_mm.utils.errors import UserError
from tests.smoke import ROOT

TOOL = ROOT / "tools" / "benchmarks" / "table.py"
RELEASED = "horizontal boxes, released protocol, trainval to test"


def row(pretraining: str, seed: int | None, value: float, **changes) -> dict:
    whole = dict.fromkeys(store.FIELDS)
    whole.update(
        dataset="A & <B>", protocol="frozen features, weighted kNN", model="ResNet-18",
        metric="top-1", value=value, seed=seed, pretraining=pretraining, versions={},
    )  # fmt: skip
    return {**whole, **changes}


ROWS = [
    *(row("random", seed, value) for seed, value in enumerate((10.0, 12.0, 14.0))),
    *(row("IMP", seed, value) for seed, value in enumerate((11.0, 11.5, 15.5))),
    *(row("GeRSP", seed, value) for seed, value in enumerate((20.0, 22.5, 23.5))),
    row("one|more", None, 21.0),
]


def made(*given: dict, paper=(), **options) -> tables.Tables:
    cells, notes = tables.collect((f"row {n}", r) for n, r in enumerate(given, 1))
    return tables.Tables(cells, **{**dict(baseline="random", reference="IMP"), **options},
                         paper=paper, notes=notes)  # fmt: skip


def test_mean_spread_difference_and_noise_by_hand():
    (column,) = made(*ROWS).cells
    table = made(*ROWS)
    gersp = table.cells[column]["GeRSP"]
    assert gersp.mean == pytest.approx(22.0)
    assert gersp.std == pytest.approx((3.25 / 1) ** 0.5)  # ((-2)² + 0.5² + 1.5²) / 2
    assert gersp.text == "22.00 ± 1.80"
    assert table.best(column) == {"GeRSP"}
    against = table.compared(column, "GeRSP", "random")
    # differences 10, 10.5, 9.5: mean 10, standard error 0.5/√3, t = 34.64, 2 degrees of freedom
    assert against.difference == pytest.approx(10.0)
    assert against.p == pytest.approx(0.00083, abs=2e-5)
    assert against.words == "better beyond the noise, p<0.001, 3 paired seeds"
    # 1, -0.5, 1.5: t = 0.667/(1.041/√3) = 1.109
    imp = table.compared(column, "IMP", "random")
    assert imp.words == "inside the noise (p=0.38, 3 paired seeds)"
    assert table.compared(column, "random", "GeRSP").words.startswith("worse beyond the noise")
    assert table.compared(column, "one|more", "random").words == "too few seeds (0 in common)"
    assert table.compared(column, "random", "random") is None


def test_equal_and_constant_differences_need_no_spread():
    cells = [tables.Cell(dict(enumerate(v))) for v in ((1.0, 2.0, 3.0), (2.0, 3.0, 4.0))]
    assert tables.compare(cells[0], cells[0]).words == "inside the noise (p=1.00, 3 paired seeds)"
    assert tables.compare(*cells).words == "worse beyond the noise, p<0.001, 3 paired seeds"


@pytest.mark.parametrize("field", ["dataset", "protocol", "model", "metric"])
def test_what_differs_in_protocol_is_never_in_one_column(field):
    table = made(row("a", 0, 1.0), row("b", 0, 2.0, **{field: "another"}))
    assert [list(cells) for cells in table.cells.values()] == [["a"], ["b"]]


def test_a_repeated_row_counts_once_and_a_contradiction_is_refused():
    table = made(row("a", 0, 1.0), row("a", 0, 1.0))
    ((column, cells),) = table.cells.items()
    assert cells["a"].values == {0: 1.0}
    assert table.notes[0].startswith("row 2 repeats row 1 (a on A & <B>")
    assert "row 2 repeats row 1" in tables.to_markdown(table)
    for change in (dict(value=2.0), dict(checkpoint_sha256="ab"), dict(config="x.yml")):
        (name, value) = next(iter(change.items()))
        with pytest.raises(UserError, match=rf"row 1 and row 2 are both a on .*{name}.*{value}"):
            made(row("a", 0, 1.0), row("a", 0, **{"value": 1.0, **change}))


class Page(HTMLParser):
    """Cells of all tables, what is bold, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self.links: list[str] = []
        self.paper: list[int] = []  # numbers of the tables in the paper's block
        self.inside = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag in ("meta", "br"):
            return
        self.open.append(tag)
        if dict(attrs).get("class") == "paper":
            self.inside = len(self.open)
        if tag == "table":
            self.paper += [len(self.tables)] * bool(self.inside)
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open[-1] == tag
        if len(self.open) == self.inside:
            self.inside = 0
        self.open.pop()

    def handle_data(self, data):
        if self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "b":
            self.bold.append(data)


def test_page_has_the_numbers_the_best_in_bold_and_needs_no_other_file():
    text = tables.to_html(made(*ROWS))
    page = Page(text)
    assert not page.open and not page.links and "http" not in text
    overview, detail = page.tables
    assert overview[0] == ["pre-training", "A & <B>kNN top-1[1]"]
    assert overview[1] == ["GeRSP", "22.00 ± 1.80 n=3"]
    assert detail[0] == ["pre-training", "mean ± std", "n", "to random", "against random",
                         "to IMP", "against IMP"]  # fmt: skip
    assert detail[1][:5] == ["GeRSP", "22.00 ± 1.80", "3", "+10.00",
                             "better beyond the noise, p<0.001, 3 paired seeds"]  # fmt: skip
    assert [line[0] for line in detail[1:]] == ["GeRSP", "one|more", "IMP", "random"]
    assert page.bold == ["22.00 ± 1.80"] * 2
    assert "A &amp; &lt;B&gt;" in text and "<B>" not in text
    assert 'data-v="22.000000"' in text and 'data-v="10.000000"' in text  # what is sorted by


def test_markdown_escapes_and_marks_the_best():
    text = tables.to_markdown(made(*ROWS))
    assert "| GeRSP | **22.00 ± 1.80** | 3 | +10.00 | better beyond the noise" in text
    assert "one\\|more" in text and "A &amp; &lt;B&gt;" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if "one" in line}
    assert widths == {3, 8}


def test_names_are_text_in_every_output():
    names = ("=1+1", "@SUM(A1)", "+2", "-3", "\t=4", "a|b*c_d`e[f]<g>\nh")
    rows = [row(name, 0, 10.0 + n) for n, name in enumerate(names)]
    head = '=HYPERLINK("x")|*bold*'
    given = made(*(dict(r, dataset=head, model="#m_x", metric="-m") for r in rows),
                 baseline="=1+1", reference="a|b*c_d`e[f]<g>\nh")  # fmt: skip
    page = list(csv.reader(io.StringIO(tables.to_csv(given))))
    cells = [cell for line in page for cell in line]
    assert {"'=1+1", "'@SUM(A1)", "'+2", "'-3", "'\t=4", f"'{head}", "'-m"} <= set(cells)
    numbers = re.compile(r"-?\d+(\.\d+)?(e-\d+)?")
    assert not [c for c in cells if c.strip()[:1] in tuple("=+-@") and not numbers.fullmatch(c)]
    text = tables.to_markdown(given)
    assert "a\\|b\\*c\\_d\\`e\\[f\\]&lt;g&gt; h" in text and "## \\#m\\_x" in text
    heads = [line for line in text.splitlines() if line.startswith("| pre-training")]
    assert any('=HYPERLINK("x")\\|\\*bold\\*' in line for line in heads)
    for line in (x for x in text.splitlines() if x.startswith("|")):
        assert "*bold*" not in line.replace("\\*", "") and "<g>" not in line
    lengths = {len(re.split(r"(?<!\\)\|", h)) for h in heads}
    assert lengths == {4, 9}  # the overview, and one table with two comparisons


@pytest.mark.parametrize(
    "value, sign, text",
    [(-0.001, False, "0.00"), (-0.001, True, "+0.00"), (-0.006, True, "-0.01"),
     (0.0, True, "+0.00"), (-0.0, False, "0.00"), (12.346, False, "12.35"), (-3, True, "-3.00")],
)  # fmt: skip
def test_zero_has_no_minus(value, sign, text):
    assert tables.fixed(value, sign=sign) == text


def test_a_difference_that_rounds_to_zero_has_no_minus_anywhere():
    given = made(row("random", 0, 10.00001), row("IMP", 0, 10.0), row("GeRSP", 0, -0.00001))
    for text in (tables.to_csv(given), tables.to_markdown(given), tables.to_html(given)):
        assert not re.search(r"-0\.0+(?![0-9])", text)


def paper() -> list[tables.PaperRow]:
    return tables.read_paper(ROOT / "results" / "paper.csv")


def test_the_paper_stands_beside_its_own_protocol_and_apart_from_others():
    dior = dict(dataset="DIOR", model="retinanet_r50_fpn", protocol=RELEASED, metric="AP50")
    eurosat = dict(dataset="EuroSAT", model="ResNet-50", protocol="fine-tuning, 3 epochs")
    table = made(row("GeRSP", 0, 66.0, **dior), row("GeRSP", 0, 97.0, **eurosat), paper=paper())
    page = Page(tables.to_html(table))
    detail = next(t for t in page.tables if t[0][-1] == "paper" and len(t[0]) > 2)
    assert detail[1][:3] + detail[1][-1:] == ["GeRSP", "66.00", "1", "67.5"]
    assert ["IMP", "", "", "66.5"] in [line[:3] + line[-1:] for line in detail]
    apart = [page.tables[number] for number in page.paper]
    assert len(apart) == 3 and all(len(t[0]) == 2 for t in apart)  # EuroSAT, two other detectors
    assert ["GeRSP", "97.87 ± 0.15"] in apart[0]
    assert not any("97.87" in cell for t in page.tables if t not in apart for r in t for cell in r)
    text = tables.to_markdown(table)
    assert text.index("The paper's numbers, by another protocol") < text.index("97.87 ± 0.15")


@pytest.mark.parametrize(
    "change", [dict(metric="AP50:95"), dict(protocol=RELEASED + ", frozen=none"),
               dict(model="mine")],
)  # fmt: skip
def test_another_metric_layer_or_model_is_not_the_papers(change):
    one = dict(dataset="DIOR", model="retinanet_r50_fpn", protocol=RELEASED, metric="AP50")
    table = made(row("GeRSP", 0, 66.0, **{**one, **change}), paper=paper())
    (column,) = table.cells
    assert table.of_paper(column, "GeRSP") is None
    assert ("DIOR", "RetinaNet", "mAP") in table.apart()


def test_the_tool_writes_three_files(tmp_path):
    store.append_rows(tmp_path / "a.jsonl", ROWS[:5])
    store.append_rows(tmp_path / "b.jsonl", ROWS[5:])
    command = [sys.executable, "-W", "ignore", str(TOOL), "a.jsonl", "b.jsonl", "--out", "t"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "10 rows, 1 columns, 4 pre-trainings" in done.stdout
    lines = list(csv.DictReader((tmp_path / "t" / "table.csv").open()))
    first = lines[0]
    assert (first["pretraining"], first["mean"], first["seeds"], first["best"]) == (
        "GeRSP", "22.0000", "3", "1",
    )  # fmt: skip
    assert first["difference to random"] == "10.0000"
    assert (tmp_path / "t" / "table.md").is_file()
    assert not Page((tmp_path / "t" / "table.html").read_text()).open


def test_wrong_paper_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--paper: there is no file .*none\.csv"):
        tables.read_paper(tmp_path / "none.csv")
    path = tmp_path / "p.csv"
    path.write_text("a,b\n")
    with pytest.raises(UserError, match="the first line must be table,dataset"):
        tables.read_paper(path)
    path.write_text(",".join(tables.PAPER_FIELDS) + "\nI,EuroSAT,R,top1,IMP,IN,high,\n")
    with pytest.raises(UserError, match="line 2: value and std must be numbers"):
        tables.read_paper(path)


def test_recorded_rows_and_paper_fit():
    assert len(paper()) == 116
    found = [Path(path) for path in (ROOT / "results").glob("*.jsonl")]
    given = [(f"{p}:{n}", r) for p in found for n, r in enumerate(store.read_rows(p), 1)]
    cells, notes = tables.collect(given)
    assert cells and not notes
    assert json.dumps(sorted(re.sub(r"\s", "", c.dataset) for c in cells))
