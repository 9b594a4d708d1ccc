"""tools/benchmarks/table.py: numbers computed by hand, noise in words, the paper, the page."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest

from gersp_mm.commands import table as tool
from gersp_mm.results import Pretraining, Row, SplitRef, statistics, store, tables
from gersp_mm.results.paper import FIELDS, PaperValue, read_paper
from gersp_mm.results.protocol import Detection, FrozenKNN, ImageInput
from gersp_mm.utils.errors import UserError
from tests.support.forked import run
from tests.support.smoke import ROOT

TOOL = ROOT / "tools" / "benchmarks" / "table.py"
RELEASED = Detection(boxes="horizontal", recipe="released", epochs=24, frozen="none")
TRAINVAL = SplitRef(name="official split", train="trainval")
KNN = FrozenKNN(image=ImageInput(size=64), k=20, temperature=0.07)
DIOR = dict(dataset="DIOR", model="retinanet_r50_fpn", measured_by=RELEASED, split=TRAINVAL,
            metric="AP50")  # fmt: skip


def row(pretraining: str, seed: int | None, value: float, **changes) -> Row:
    whole = dict(
        dataset="A & <B>", measured_by=KNN, model="ResNet-18", metric="top-1", value=value,
        seed=seed, pretraining=pretraining, versions={}, checkpoint_sha256=None, config="c.yml",
        commit=None, hardware=None, seconds=None,
    )  # fmt: skip
    return Row(**{**whole, **changes})


ROWS = [
    *(row("random", seed, value) for seed, value in enumerate((10.0, 12.0, 14.0))),
    *(row("IMP", seed, value) for seed, value in enumerate((11.0, 11.5, 15.5))),
    *(row("GeRSP", seed, value) for seed, value in enumerate((20.0, 22.5, 23.5))),
    row("one|more", None, 21.0),
]


def made(*given: Row, **options) -> tables.Tables:
    cells, repeats = tables.collect((f"row {n}", r) for n, r in enumerate(given, 1))
    return tables.Tables(cells, repeats=repeats, **options)


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
    cells = [statistics.Cell(dict(enumerate(v))) for v in ((1.0, 2.0, 3.0), (2.0, 3.0, 4.0))]
    assert (
        statistics.compare(cells[0], cells[0]).words == "inside the noise (p=1.00, 3 paired seeds)"
    )
    assert statistics.compare(*cells).words == "worse beyond the noise, p<0.001, 3 paired seeds"


@pytest.mark.parametrize(
    "change",
    [dict(dataset="another"), dict(model="another"), dict(metric="another"),
     dict(measured_by=KNN.model_copy(update=dict(k=200))), dict(split=TRAINVAL),
     dict(overrides={"model.backbone.depth": 34})],
)  # fmt: skip
def test_what_differs_in_protocol_is_never_in_one_column(change):
    table = made(row("a", 0, 1.0), row("b", 0, 2.0, **change))
    assert [list(cells) for cells in table.cells.values()] == [["a"], ["b"]]


def test_a_repeated_seed_is_shown_with_its_difference_and_counts_once():
    same, other = dict(checkpoint_sha256="ab"), dict(config="other.yml")
    given = [row("IMP", 0, 1.0), row("IMP", 1, 3.0)]
    table = made(*given, row("IMP", 0, 1.0, **same), row("IMP", 1, 3.5, **other))
    assert table.cells == made(*given).cells
    first, second = table.repeats
    assert (first.where, first.of, first.difference) == ("row 3", "row 1", 0.0)
    assert (second.seed, second.first, second.value, second.difference) == (1, 3.0, 3.5, 0.5)
    assert tables.notes(table.repeats) == [
        "2 repeated rows, part of no mean: 1 with the same value, the "
        "largest difference +0.50 (IMP, A & <B>, kNN top-1)",
        "2 repeats of other weights or by another config, such as row 3 against row 1. Give other "
        "weights another name",
    ]
    text = tables.to_markdown(table)
    assert "| IMP | 1 | A &amp; &lt;B&gt;, kNN top-1 | 3.00 | 3.50 | +0.50 | row 4 |" in text
    page = Page(tables.to_html(table))
    assert ["IMP", "1", "A & <B>, kNN top-1", "3.00", "3.50", "+0.50", "row 4"] in page.tables[-1]


def test_random_weights_have_one_name():
    names = ("random", "From Scratch", "from scratch", "random initialisation")
    table = made(*(row(name, seed, 1.0 + seed) for seed, name in enumerate(names)),
                 row("mine", 7, 2.0, settings=Pretraining(method="random")),
                 baseline="from scratch")  # fmt: skip
    ((column, cells),) = table.cells.items()
    assert list(cells) == ["random"] and sorted(cells["random"].values) == [0, 1, 2, 3, 7]
    assert table.others == ["random"]


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


def test_heads_of_columns_differ_by_what_their_protocols_do_not_share():
    short, long = (
        row("A", 0, 70, **{**DIOR, "measured_by": RELEASED.model_copy(update=dict(epochs=epochs))})
        for epochs in (12, 24)
    )
    few = row("A", 0, 70, measured_by=KNN.model_copy(update=dict(k=5)))
    found = made(short, long, few, row("A", 0, 70), row("A", 0, 70, dataset="Alone"))
    heads = [found.head(column) for column in found.cells]
    knn = "A & <B>, kNN top-1, weighted kNN (k = {}, T = 0.07)"
    assert heads == [
        "DIOR, AP50, 12 epochs", "DIOR, AP50, 24 epochs", knn.format(5), knn.format(20),
        "Alone, kNN top-1",
    ]  # fmt: skip
    assert "[2] DIOR, AP50, 24 epochs |" in tables.to_markdown(found)
    page = Page(tables.to_html(found))
    assert page.tables[0][0][1:] == ["DIORAP5012 epochs[1]", "DIORAP5024 epochs[2]"]


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
    names_of_column = dict(dataset=head, model="#m_x", metric="-m")
    given = made(*(r.model_copy(update=names_of_column) for r in rows),
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
    assert statistics.fixed(value, sign=sign) == text


def test_a_difference_that_rounds_to_zero_has_no_minus_anywhere():
    given = made(row("random", 0, 10.00001), row("IMP", 0, 10.0), row("GeRSP", 0, -0.00001))
    for text in (tables.to_csv(given), tables.to_markdown(given), tables.to_html(given)):
        assert not re.search(r"-0\.0+(?![0-9])", text)


def paper() -> list[PaperValue]:
    return read_paper(ROOT / "results" / "paper.csv")


def test_the_paper_stands_beside_its_own_protocol_and_apart_from_others():
    eurosat = dict(dataset="EuroSAT", model="ResNet-50")
    table = made(row("GeRSP", 0, 66.0, **DIOR), row("GeRSP", 0, 97.0, **eurosat), paper=paper())
    page = Page(tables.to_html(table))
    detail = next(t for t in page.tables if t[0][-1] == "paper" and len(t[0]) > 2)
    assert detail[1][:3] + detail[1][-1:] == ["GeRSP", "66.00", "1", "67.5"]
    assert ["TOV", "", "", "66.3"] in [line[:3] + line[-1:] for line in detail]
    assert not any(line[0] == "IMP" for line in detail)  # had frozen layers
    apart = [page.tables[number] for number in page.paper]
    assert len(apart) == 4 and all(len(t[0]) == 2 for t in apart)  # EuroSAT, three detectors
    assert ["GeRSP", "97.87 ± 0.15"] in apart[0]
    assert [line for t in apart for line in t if line[1] == "66.5"] == [["IMP", "66.5"]]
    assert not any("97.87" in cell for t in page.tables if t not in apart for r in t for cell in r)
    text = tables.to_markdown(table)
    assert text.index("The paper's numbers, by another protocol") < text.index("97.87 ± 0.15")


def values_beside(**changes) -> set[str]:
    column = row("GeRSP", 0, 66.0, **{**DIOR, **changes}).column
    return {value.pretraining for value in paper() if value.matches(column)}


@pytest.mark.parametrize(
    "change",
    [dict(metric="AP50:95"), dict(model="mine"), dict(split=SplitRef(name="own split")),
     dict(overrides={"model.rpn_head.x": 1}), dict(dataset="DOTA v1.0"),
     dict(measured_by=RELEASED.model_copy(update=dict(epochs=12))),
     dict(measured_by=RELEASED.model_copy(update=dict(recipe="field")))],
)  # fmt: skip
def test_another_metric_schedule_or_model_is_not_the_papers(change):
    assert values_beside(**change) == set()


def test_the_papers_values_stand_beside_their_own_frozen_layers():
    others = {"From Scratch", "MoCo-MAID", "MoCo-IN-MAID", "MoCov2", "SeCo", "Geo-Aware", "CACO",
              "TOV"}  # fmt: skip
    assert values_beside() == others | {"GeRSP", "GeRSP-200"}
    frozen = RELEASED.model_copy(update=dict(frozen="stem_and_stage1"))
    assert values_beside(measured_by=frozen) == others | {"IMP", "MoCo-IN"}
    dota = RELEASED.model_copy(update=dict(tile=800))
    val = SplitRef(name="official split", part="val")
    assert values_beside(dataset="DOTA v1.0", measured_by=dota, split=val) >= {"GeRSP"}
    assert values_beside(dataset="DOTA v1.0", split=val) == set()


@pytest.mark.parametrize(
    "given, text",
    [
        ([], "give ROWS.jsonl, or pages with --write or --check"),
        (["a.jsonl", "--check", "p.md"], "ROWS.jsonl does not go with --write or --check"),
        (["--out", "t", "--write", "p.md"], "--out does not go with --write or --check"),
        (["--title", "T", "--write", "p.md"], "--title does not go with --write or --check"),
    ],
)
def test_the_tool_refuses_what_it_would_ignore(given, text, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(given)
    assert text in capsys.readouterr().err


def test_the_tool_writes_three_files(tmp_path):
    store.append_rows(tmp_path / "a.jsonl", ROWS[:5])
    store.append_rows(tmp_path / "b.jsonl", ROWS[5:])
    done = run(TOOL, "a.jsonl", "b.jsonl", "--out", "t", cwd=tmp_path, output=tmp_path)
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
        read_paper(tmp_path / "none.csv")
    path = tmp_path / "p.csv"
    path.write_text("a,b\n")
    with pytest.raises(UserError, match="the first line must be table,dataset"):
        read_paper(path)
    path.write_text(",".join(FIELDS) + "\nI,EuroSAT,R,top1,IMP,IN,high,\n")
    with pytest.raises(UserError, match="line 2: value must be a valid number, .* got 'high'"):
        read_paper(path)


def test_recorded_rows_and_paper_fit():
    assert len(paper()) == 116
    found = sorted((ROOT / "results").glob("*.jsonl"))
    given = [(f"{p.stem}:{n}", r) for p in found for n, r in enumerate(store.read_rows(p), 1)]
    cells, repeats = tables.collect(given)
    assert len(cells) == 6 + 2 + 10 + 10 + 4 - 4  # kNN and 5-shot of two files on two sets are one
    # random weights are in two files, with the same values; the trees were repeated on two threads
    # and from another backbone
    names = ("mini", "trees")
    by_file = {name: [r for r in repeats if r.where.startswith(name)] for name in names}
    assert {tables.fixed(r.difference) for r in by_file["mini"]} == {"0.00"}
    assert [round(r.difference, 1) for r in by_file["trees"]] == [
        0.8, -0.5, -4.0, -0.6, 1.2, 0.0, -4.2, -1.4,
    ]  # fmt: skip
    assert len(repeats) == sum(map(len, by_file.values()))
