"""Numbers in pages: tables are those of the rows, and sentences quote them."""

from __future__ import annotations

import itertools
import json
from statistics import fmean

import pytest
from scipy.stats import ttest_rel

from gersp_mm.commands import table as tool
from gersp_mm.results import documents, read_rows
from gersp_mm.results.documents import Cells
from gersp_mm.results.statistics import compare, fixed, further_run
from gersp_mm.utils.errors import UserError
from tests.support.smoke import ROOT

RESULTS = ROOT / "results"
FOLDERS = ("benchmarks", "demo", "docs", "results")
PAGES = [*ROOT.glob("*.md"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.md"))]


def test_tables_in_pages_are_those_of_the_rows():
    assert sum(documents.check(page, RESULTS) for page in PAGES) >= 10


PAGE = """Before.
<!-- table: frozen_small rows="GeRSP, quickstart => ours; random"
columns="RESISC12 kNN; RESISC12 5-shot => five images" decimals="1" -->
<!-- end -->
After."""


def test_a_page_is_written_and_a_wrong_number_is_named(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(UserError, match=r"page\.md, line 4 is '<!-- end -->', and the rows say"):
        documents.check(page, RESULTS)
    tool.run(tool.parse_args(["--write", str(page)]))
    assert "page.md, 1 table" in capsys.readouterr().out
    page.write_bytes(page.read_bytes().replace(b"\n", b"\r\n"))
    before = page.read_bytes()
    tool.run(tool.parse_args(["--write", str(page)]))
    assert page.read_bytes() == before  # with its own line ends
    assert page.read_text().splitlines()[3:] == [
        "",
        "| pre-training | RESISC12 kNN | five images |",
        "|---|---:|---:|",
        "| ours | **47.5** | **39.1 ± 0.4** |",
        "| random | 42.2 ± 3.4 | 29.7 ± 0.3 |",
        "",
        "<!-- end -->",
        "After.",
    ]
    tool.run(tool.parse_args(["--check", str(page)]))
    page.write_text(page.read_text().replace("42.2", "42.3"))
    with pytest.raises(UserError, match="line 8 is '| random | 42.3 .* the rows say .* 42.2"):
        tool.run(tool.parse_args(["--check", str(page)]))


@pytest.mark.parametrize(
    "old, new, text",
    [
        ("RESISC12 kNN", "RESISC12 knn", "no column 'RESISC12 knn'. There are RESISC12 kNN, "),
        ("random", "radnom", "no 'radnom'. There are GeRSP, quickstart, random"),
        ("decimals", "digits", "table frozen_small: no option digits"),
        ("columns", "column", "table frozen_small: no option column"),
        ("frozen_small", "none", "there is no results file"),
        ('"1"', '"x"', 'decimals="x" is not possible'),
        ('"1"', '"1" layout="dwon"', 'layout="dwon" is not possible'),
        ("<!-- end -->", "", "begins 1 tables and ends 0"),
        ("<!-- table", "<!--table", "begins 1 tables and ends 0"),
    ],
)
def test_a_wrong_comment_is_named(old, new, text):
    with pytest.raises(UserError, match=text):
        documents.updated(PAGE.replace(old, new), RESULTS, "page.md")


# ------------------------------------------------------------------------------ sentences

MINI = Cells(RESULTS / "mini_cpu.jsonl")
EUROSAT, RESISC, NEON = (
    [f"{data} {short}" for short in ("kNN", "linear", "5-shot")]
    for data in ("EuroSAT", "RESISC12", "NEON demo sites")
)
NINE = [*EUROSAT, *RESISC, *NEON]
TUNED = "EuroSAT fine-tuned"
BASELINES = ("IMP", "MoCo-IN", "MoCo-RS", "MoCo-IN+RS")
MIXED = ("IMP", "MoCo-IN", "MoCo-IN+RS", "GeRSP")  # whose statistics are of natural images too
PLUS, SYMMETRIC, HALF = "GeRSP+", "GeRSP with symmetric loss", "GeRSP with α = 0.5"
BOTH = "GeRSP with symmetric loss and a queue of 1,024"


def long(name: str) -> str:
    return f"{name}, 2,400 updates"


def own(name: str) -> str:
    return f"{name}, own statistics"


def short_queue(name: str) -> str:
    return f"{name} with a queue of 1,024"


def gap(one: str, other: str, column: str) -> float:
    return compare(MINI.find(one, column), MINI.find(other, column)).difference


def p(one: str, other: str, column: str) -> float:
    return compare(MINI.find(one, column), MINI.find(other, column)).p


def d(*names: str) -> str:
    return fixed(gap(*names), 1, sign=True).replace("-", "−")


def size(*names: str) -> str:
    return fixed(abs(gap(*names)), 1)


def gaps(one: str, other: str, columns: list[str]) -> str:
    first, second, third = (d(one, other, column) for column in columns)
    return f"{first}, {second} and {third}"


def over_columns(one: str, other: str) -> tuple[list[float], float]:
    """Gap of the mean over the nine columns for each seed, and p of the paired test."""
    means = [
        [fmean(MINI.find(name, column).values[seed] for column in NINE) for seed in range(3)]
        for name in (one, other)
    ]
    return [a - b for a, b in zip(*means)], float(ttest_rel(*means).pvalue)


def versus_baselines(column: str, without: str = "") -> tuple[list[float], float]:
    others = [long(name) for name in BASELINES if name != without]
    found = [compare(MINI.find(long("GeRSP"), column), MINI.find(o, column)) for o in others]
    return [one.difference for one in found], max(one.p for one in found)


def sentences_of_the_study() -> list[str]:
    g = long("GeRSP")
    (linear, linear_p), (few, few_p) = map(versus_baselines, EUROSAT[1:])
    _, knn_p = versus_baselines(EUROSAT[0], without="MoCo-RS")
    rs, imp = long("MoCo-RS"), long("IMP")
    symmetric, symmetric_p = over_columns(SYMMETRIC, "GeRSP")
    queue, queue_p = over_columns(short_queue("GeRSP"), "GeRSP")
    rs_queue, rs_queue_p = over_columns(short_queue("MoCo-RS"), "MoCo-RS")
    both_queue, both_queue_p = over_columns(short_queue("MoCo-IN+RS"), "MoCo-IN+RS")
    both, both_p = over_columns(BOTH, "GeRSP")
    parts = "GeRSP without natural images (α = 0)"
    seeds = ", ".join(f"{gap:.1f}" for gap in symmetric[:2]) + f" and {symmetric[2]:.1f}"
    half = [gap(HALF, "GeRSP", column) for column in NINE]
    five = EUROSAT[2]
    on_resisc = [gap("GeRSP", "IMP", column) for column in RESISC]
    lost = [-gap(own(name), name, c) for name in MIXED for c in RESISC[:2]]
    (right,) = {round(2.4 * value) for value in MINI.find("IMP", RESISC[0]).values.values()}
    apart = [on_seeds(name, column, (0, 1)) for column in (EUROSAT[0], EUROSAT[2])
             for name in ("GeRSP with separate forwards", PLUS)]  # fmt: skip
    imp_knn = [MINI.find(name, EUROSAT[0]).mean for name in ("IMP", imp, "random")]
    to_in, to_both, to_rs = (
        (own("GeRSP"), own(name)) for name in ("MoCo-IN", "MoCo-IN+RS", "MoCo-RS")
    )
    split, shuffle = "GeRSP, key_bn=split", "GeRSP, key_bn=shuffle"
    return [
        # BatchNorm of the keys
        f"split loses {-gap(split, 'GeRSP', RESISC[0]):.1f} points of RESISC12 kNN (p = "
        f"{p(split, 'GeRSP', RESISC[0]):.3f}), where shuffle loses "
        f"{-gap(shuffle, 'GeRSP', RESISC[0]):.1f} (p = {p(shuffle, 'GeRSP', RESISC[0]):.2f})",
        f"both gain {gap(split, 'GeRSP', NEON[0]):.1f} and {gap(shuffle, 'GeRSP', NEON[0]):.1f} "
        f"(p = {p(split, 'GeRSP', NEON[0]):.2f} and {p(shuffle, 'GeRSP', NEON[0]):.2f})",
        # 2,400 updates
        f"linear probe ({min(linear):+.1f} to {max(linear):+.1f}, all p ≤ {linear_p:.3f}) and "
        f"5-shot ({min(few):+.1f} to {max(few):+.1f}, all p ≤ {few_p:.3f}), and in kNN against "
        f"all (p ≤ {knn_p:.3f}) but MoCo-RS ({d(g, rs, EUROSAT[0])}, "
        f"p = {p(g, rs, EUROSAT[0]):.2f})",
        f"(GeRSP {d(g, rs, NEON[1])}, p = {p(g, rs, NEON[1]):.2f}) and 5-shot (GeRSP "
        f"{d(g, rs, NEON[2])} in 5-shot, p = {p(g, rs, NEON[2]):.2f}), and GeRSP is behind it in "
        f"kNN ({d(g, rs, NEON[0])}, p = {p(g, rs, NEON[0]):.2f})",
        f"MoCo-IN is {size(g, long('MoCo-IN'), NEON[0])} above GeRSP in kNN "
        f"(p = {p(g, long('MoCo-IN'), NEON[0]):.2f}), MoCo-IN+RS "
        f"{size(g, long('MoCo-IN+RS'), NEON[2])} in 5-shot "
        f"(p = {p(g, long('MoCo-IN+RS'), NEON[2]):.3f})",
        f"GeRSP {gaps(g, 'GeRSP', EUROSAT)}, IMP {gaps(imp, 'IMP', EUROSAT)}; MoCo-RS "
        f"{gaps(rs, 'MoCo-RS', EUROSAT)}, MoCo-IN+RS "
        f"{gaps(long('MoCo-IN+RS'), 'MoCo-IN+RS', EUROSAT)}",
        f"MoCo-RS most ({gaps(rs, 'MoCo-RS', RESISC)}; GeRSP {gaps(g, 'GeRSP', RESISC)}, none",
        # 600 updates
        f"(kNN {d('GeRSP', 'IMP', EUROSAT[0])}, linear {d('GeRSP', 'IMP', EUROSAT[1])}, fine-tuned "
        f"{d('GeRSP', 'IMP', TUNED)})",
        f"on RESISC12 it is {min(on_resisc):.1f} to {max(on_resisc):.1f} points above, inside the "
        f"noise, and on NEON {size('GeRSP', 'IMP', NEON[2])} below in 5-shot "
        f"(p = {p('GeRSP', 'IMP', NEON[2]):.2f})",
        f"(5-shot {d('GeRSP', 'MoCo-RS', five)}, p = {p('GeRSP', 'MoCo-RS', five):.2f})",
        f"({gaps('MoCo-IN', 'GeRSP', NEON)}, p of "
        f"{min(p('MoCo-IN', 'GeRSP', c) for c in NEON):.2f} and more)",
        f"kNN {d('GeRSP', 'MoCo-RS', RESISC[0])}, p = {p('GeRSP', 'MoCo-RS', RESISC[0]):.2f}; "
        f"NEON kNN {d('GeRSP', 'MoCo-RS', NEON[0])}",
        f"(fine-tuned −{size('GeRSP', 'MoCo-IN+RS', TUNED)}, "
        f"p = {p('GeRSP', 'MoCo-IN+RS', TUNED):.2f}; none beyond the noise)",
        f"{d(PLUS, 'GeRSP', five)} against GeRSP and MoCo-IN+RS (p = {p(PLUS, 'GeRSP', five):.2f})"
        f", {d(PLUS, 'MoCo-RS', five)} against MoCo-RS (p = {p(PLUS, 'MoCo-RS', five):.2f}). NEON "
        f"kNN loses {size(PLUS, 'GeRSP', NEON[0])} against GeRSP "
        f"(p = {p(PLUS, 'GeRSP', NEON[0]):.2f}) and {size(PLUS, 'MoCo-IN', NEON[0])} against "
        f"MoCo-IN (p = {p(PLUS, 'MoCo-IN', NEON[0]):.2f}), fine-tuning "
        f"{size(PLUS, 'GeRSP', TUNED)} against GeRSP (p = {p(PLUS, 'GeRSP', TUNED):.3f}) and "
        f"{size(PLUS, 'MoCo-IN+RS', TUNED)} against MoCo-IN+RS "
        f"(p = {p(PLUS, 'MoCo-IN+RS', TUNED):.3f})",
        # without its parts: on the seeds that both have
        "RESISC12 5-shot −{} and kNN −{}, NEON kNN −{} on the same seeds".format(
            *(fixed(abs(common(parts, "GeRSP", c)), 1) for c in (RESISC[2], RESISC[0], NEON[0]))
        ),
        f"loses {-common('GeRSP with separate forwards', 'GeRSP', NEON[0]):.1f} in NEON kNN",
        # BatchNorm's statistics
        f"loses {min(lost):.1f} to {max(lost):.1f} points in kNN and linear",
        f"loses {size(own('GeRSP'), 'GeRSP', NEON[0])} in kNN "
        f"(p = {p(own('GeRSP'), 'GeRSP', NEON[0]):.2f}) and gains "
        f"{size(own('GeRSP'), 'GeRSP', NEON[2])} in 5-shot "
        f"(p = {p(own('GeRSP'), 'GeRSP', NEON[2]):.2f})",
        f"(5-shot: {d(PLUS, 'GeRSP', five)} against GeRSP, and {d(PLUS, own('GeRSP'), five)}, "
        f"p = {p(PLUS, own('GeRSP'), five):.2f}, against GeRSP with its own)",
        f"NEON kNN ({d(*to_in, NEON[0])}, p = {p(*to_in, NEON[0]):.3f}) and linear "
        f"({d(*to_in, NEON[1])}, p = {p(*to_in, NEON[1]):.2f}) and below MoCo-IN+RS in NEON kNN "
        f"({d(*to_both, NEON[0])}, p = {p(*to_both, NEON[0]):.3f})",
        f"({d(*to_rs, RESISC[0])}, p = {p(*to_rs, RESISC[0]):.2f}), the one in NEON 5-shot is "
        f"({d(*to_rs, NEON[2])}, p = {p(*to_rs, NEON[2]):.3f})",
        # the weight α
        f"0.5 against 1: −{abs(min(half)):.1f} to {max(half):+.1f}, all p above 0.1; 0.5 against "
        f"MoCo-IN+RS: {d(HALF, 'MoCo-IN+RS', EUROSAT[1])} EuroSAT linear, "
        f"p = {p(HALF, 'MoCo-IN+RS', EUROSAT[1]):.2f}",
        # what else was tried
        "(quarter turns lose {} and {} in NEON kNN and linear)".format(
            *(fixed(-common("GeRSP with quarter turns", "GeRSP", c), 1) for c in NEON[:2])
        ),
        f"(kNN {d(g, 'GeRSP', EUROSAT[0])} against {d(BOTH, 'GeRSP', EUROSAT[0])}), elsewhere not "
        f"everywhere (RESISC12 kNN {d(g, 'GeRSP', RESISC[0])} against "
        f"{d(BOTH, 'GeRSP', RESISC[0])}, 5-shot {d(g, 'GeRSP', RESISC[2])} against "
        f"{d(BOTH, 'GeRSP', RESISC[2])}; NEON kNN {d(g, 'GeRSP', NEON[0])} against "
        f"{d(BOTH, 'GeRSP', NEON[0])})",
        f"the mean over the nine columns by {fmean(symmetric):.1f} ({seeds} for the three seeds; "
        f"p = {symmetric_p:.3f})",
        f"EuroSAT kNN alone ({d(SYMMETRIC, 'GeRSP', EUROSAT[0])}, "
        f"p = {p(SYMMETRIC, 'GeRSP', EUROSAT[0]):.2f})",
        f"rises by {fmean(queue):.1f} for GeRSP (p = {queue_p:.2f}) and by {fmean(rs_queue):.1f} "
        f"for MoCo-RS (p = {rs_queue_p:.2f}), and falls by {-fmean(both_queue):.1f} for "
        f"MoCo-IN+RS (p = {both_queue_p:.3f})",
        f"(mean {fmean(both):+.1f}, p = {both_p:.3f}; three columns",
        f"55.0 ± 0.0 and 64.1 ± 0.0 are no errors: three seeds with {right:.0f} of 240 right, and "
        "{:.2f}, {:.2f} and {:.2f}.".format(*MINI.find("GeRSP", EUROSAT[0]).values.values()),
        f"EuroSAT kNN ({apart[0]} here, {apart[1]} in GeRSP+ on the same two seeds) and 5-shot "
        f"({apart[2]}, {apart[3]})",
        f"is {imp_knn[0]:.0f} % on EuroSAT ({imp_knn[1]:.0f} % after 2,400 updates), against "
        f"{imp_knn[2]:.0f} % for random weights",
        f"for all (p ≤ {max(p(BOTH, c, RESISC[2]) for c in BASELINES if c != 'MoCo-IN'):.3f})",
        "IMP and MoCo-IN {:.0f} in kNN and {} in 5-shot, MoCo-IN+RS and GeRSP {:.0f} and {}".format(
            *(
                half_points(*(gap(own(name), name, column) for name in pair))
                for pair in (("IMP", "MoCo-IN"), ("MoCo-IN+RS", "GeRSP"))
                for column in (EUROSAT[0], EUROSAT[2])
            )
        ),
        f"but MoCo-IN ({d(BOTH, 'MoCo-IN', RESISC[2])}, p = {p(BOTH, 'MoCo-IN', RESISC[2]):.2f}); "
        f"against MoCo-RS with the short queue EuroSAT 5-shot is "
        f"{size(BOTH, short_queue('MoCo-RS'), five)} lower "
        f"(p = {p(BOTH, short_queue('MoCo-RS'), five):.3f})",
    ]


def on_seeds(name: str, column: str, seeds: tuple[int, ...]) -> str:
    return fixed(fmean(MINI.find(name, column).values[seed] for seed in seeds), 1)


def half_points(*gaps: float) -> float:
    """Return the mean of the gaps, in halves of a point."""
    return round(2 * fmean(gaps)) / 2


def common(one: str, other: str, column: str) -> float:
    """Gap of the means over the seeds that both have."""
    first, second = (MINI.find(name, column).values for name in (one, other))
    seeds = sorted(set(first) & set(second))
    return fmean(first[seed] for seed in seeds) - fmean(second[seed] for seed in seeds)


def sentences_of_readme() -> list[str]:
    moco = (long("GeRSP"), long("MoCo-IN"), NEON[0])
    return [f"the lowest of the five rows, {size(*moco)} below MoCo on natural images "
            f"(p = {p(*moco):.2f})", *sentences_of_the_quickstart()]  # fmt: skip


def sentences_of_the_quickstart() -> list[str]:
    rows = read_rows(RESULTS / "demo.jsonl")

    def values(method: str, kind: str, metric: str = "top-1", window: str | None = None) -> list:
        return [row.value for row in rows
                if (row.settings.method, row.measured_by.kind, row.metric) == (method, kind, metric)
                and (window is None or row.measured_by.window == window)]  # fmt: skip

    lines = []
    for method, name in (("random", "random initialisation"),
                         ("GeRSP", "GeRSP, 6 epochs of the demo images")):  # fmt: skip
        found = [values(method, kind) for kind in ("knn", "linear")]
        assert len(found[0]) == len(found[1])
        lines.append(f"| {name} | {len(found[0])} | {' | '.join(map(with_range, found))} |")
    knn, linear = (further_run(values("GeRSP", kind)) for kind in ("knn", "linear"))
    lines.append(
        f"between {knn[0]:.1f} and {knn[1]:.1f} (kNN) and between {linear[0]:.1f} and "
        f"{linear[1]:.1f} (linear probe)"
    )
    full, last = "iterations 20 to 63 (queue full)", "the last epoch"
    (ce, ce_end), (ct, ct_end) = (
        [fmean(values("GeRSP", "training_log", loss, window)) for window in (full, last)]
        for loss in ("loss_ce", "loss_ct")
    )
    lines.append(f"L_ce falls from {ce:.2f} to {ce_end:.2f}. L_ct falls from {ct:.2f} (mean")
    return [*lines, f"once the queue is full) to {ct_end:.2f},"]


def with_range(values: list[float]) -> str:
    text = documents.Cell(dict(enumerate(values))).shown(1)
    return f"{text} ({min(values):.1f} to {max(values):.1f})"


def sentences_of_readme_on_trees() -> list[str]:
    found = {
        (row.settings.method, row.measured_by.epochs): []
        for row in read_rows(RESULTS / "trees.jsonl")
    }
    for row in read_rows(RESULTS / "trees.jsonl"):
        if row.metric == "AP50":
            found[row.settings.method, row.measured_by.epochs].append(row.value)
    text = {key: documents.Cell(dict(enumerate(values))).shown(1) for key, values in found.items()}
    assert all(len(values) == 4 for values in found.values())
    gains = [g - r for g, r in zip(found["GeRSP", 3], found["random", 3])]
    return [
        f"epochs: {text['GeRSP', 3]} from this backbone, {text['random', 3]} from random "
        f"initialisation (four runs each; the smallest gain is {min(gains):.1f}); after four: "
        f"{text['GeRSP', 4]} and {text['random', 4]} (four runs)"
    ]


def sentences_of_the_trees() -> list[str]:
    """The runs of each length, those on two threads among them."""
    rows = read_rows(RESULTS / "trees.jsonl")
    lines = []
    for epochs, start in itertools.product((3, 4), ("random", "GeRSP")):
        texts = []
        for metric in ("AP50", "AP50:95"):
            found = [row.value for row in rows if row.settings.method == start
                     and row.metric == metric and row.measured_by.epochs == epochs]  # fmt: skip
            texts.append(with_range(found))
        name = "random initialisation" if start == "random" else "GeRSP, the quickstart's backbone"
        lines.append(f"| {epochs} | {name} | {len(found)} | {' | '.join(texts)} |")
    found = {}
    for row in rows:
        if row.metric == "AP50":
            key = row.settings.method, row.measured_by.epochs
            found.setdefault(key, []).append(row)
    means = {key: fmean(row.value for row in same) for key, same in found.items()}
    gains = [means["GeRSP", epochs] - means["random", epochs] for epochs in (3, 4)]
    repeated = [row.value for row in found["GeRSP", 4] if row.seed == 0]
    pairs = zip(found["GeRSP", 3], found["random", 3], strict=True)
    least = min(trained.value - start.value for trained, start in pairs)
    return [
        *lines,
        f"{fixed(gains[0], 1)} points of AP50 after three epochs, {fixed(gains[1], 1)} after four",
        "the same seed gave {:.1f} and {:.1f}, and random".format(*repeated),
        f"nearly the same value ({max(row.value for row in found['random', 4]):.1f})",
        f"with a gain of {least:.1f}",
    ]


def sentences_of_the_rows_page() -> list[str]:
    (trained,), (start,) = (
        [row.value for row in read_rows(RESULTS / "eurosat.jsonl")
         if row.measured_by.kind == "finetune" and row.settings.method == method]
        for method in ("GeRSP", "random")
    )  # fmt: skip
    return [f"so the difference of {trained - start:.1f} says nothing about GeRSP"]


def sentences_of_its_log_lines() -> list[str]:
    """What the last log lines of the study's pre-trainings say."""
    runs = json.loads((RESULTS / "mini_cpu_pretraining.json").read_text(encoding="utf-8"))
    ranges = []
    for row in ("GeRSP, 2,400 updates", "GeRSP"):
        found = [run["last"]["acc_ce_top1"] for run in runs if run["row"] == row]
        assert len(found) == 3
        ranges.append(f"{min(found):.1f} to {max(found):.1f} %")
    long, short = ranges
    seconds = {row: [run["seconds"] for run in runs if run["row"] == row]
               for row in ("GeRSP", "GeRSP with symmetric loss")}  # fmt: skip
    times = fmean(seconds["GeRSP with symmetric loss"]) / fmean(seconds["GeRSP"])
    natural = fmean(run["last"]["loss_ce"] for run in runs if run["row"] == "GeRSP")
    other = [(run["seed"], run["updates"]) for run in runs if run["updates"] not in (600, 2400)]
    assert other == [(0, 590)]
    return [
        f"branch has {long} of them right (200 classes), against {short} after 600",
        f"learns too little** ({short} of training images right,",
        f"L_ce {natural:.2f} against",
        f"A run takes {times:.1f} times as long",
        "590 in seed 0 of IMP",
    ]


def speed_row(script: str, setting: str) -> dict:
    lines = (ROOT / "benchmarks/speed/results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["script"] == script]
    (row,) = [row for row in rows if setting in row["setting"]]
    return row


def ratio(row: dict, name: str, digits: int, low: str = "q1", high: str = "q3") -> str:
    """Return a ratio as ``median (low to high)``; as the median alone without ``low``."""
    found = row["ratios"][name]
    around = f" ({found[low]:.{digits}f} to {found[high]:.{digits}f})" if low else ""
    return f"{found['median']:.{digits}f}{around}"


def sentences_of_speed() -> list[str]:
    device, cpu = "ours, colour on the device", "ours, all on CPU"
    lines = []
    for setting, name in (("256x256", "256 px JPEG (RESISC45's own files) to 224 px"),
                          ("500x375", "500×375 JPEG to 224 px"),
                          ("64x64", "64 px JPEG to 64 px")):  # fmt: skip
        row = speed_row("input.py", setting)
        pairs = row["values"]["pairs_per_s_per_core"]
        counts = [f"{pairs[c]['median']:.0f}" for c in (device, cpu, "released", "mmpretrain cv2")]
        released = " and ".join(ratio(row, f"{c} / released", 1) for c in (device, cpu))
        other = " and ".join(ratio(row, f"{c} / mmpretrain cv2", 1, "") for c in (device, cpu))
        lines.append(f"| {name} | {' | '.join(counts)} | {released} | {other} |")
    steps = speed_row("step.py", "r50-224"), speed_row("step.py", "r18-64")
    names = "ResNet-50, 224 px, 8+8 images", "ResNet-18, 64 px, 64+64 images"
    for row, name in zip(steps, names):
        peer = "lightly / ours"
        lightly = ratio(row, peer, 2, "") if peer in row["ratios"] else "not run"
        lines.append(
            f"| {name} | {ratio(row, 'released / ours', 2)} | "
            f"{ratio(row, 'mmpretrain / ours', 2, '')} | {lightly} | "
            f"{ratio(row, 'ours / bound', 2)} |"
        )
    scenes = speed_row("scenes.py", "8192x8192x3 uint16 deflate in tiles")
    whole = scenes["ratios"]["ours / whole file"]
    lines.append(
        f"| {whole['median']:.0f} ({whole['min']:.0f} to {whole['max']:.0f}) | "
        f"{ratio(scenes, 'ours / torchgeo', 2, 'min', 'max')} | "
        f"{scenes['values']['worker_private_mb']:.0f} MB |"
    )
    mean, median = (speed_row("end_to_end.py", f"{kind} step") for kind in ("mean", "median"))
    ms = speed_row("end_to_end.py", "breakdown")["values"]["ms"]
    shares = [100 * ms[part] / sum(ms.values())
              for part in ("waiting for data", "hooks, framework, the rest")]  # fmt: skip
    memory = speed_row("memory.py", "gersp_r50")["values"]
    return [
        *lines,
        f"which is what a run takes | {ratio(mean, 'released / ours', 2)} |",
        f"without stalls | {ratio(median, 'released / ours', 2)} |",
        f"Part of the factor {ratio(mean, 'released / ours', 2, '')} comes from",
        f"hooks and framework | {shares[0]:.1f} %, {shares[1]:.1f} % |",
        f"share the two cores | {ratio(mean, 'ours, resident batch / ours', 2)}, by",
        f"lists of {memory['images'] / 1e6:.1f} million images, 8 workers: process start to first "
        f"batch; memory of all processes | {memory['seconds_to_first_batch']:.1f} s; "
        f"{memory['pss_sum_mib'] / 1024:.1f} GiB |",
    ]


def sentences_of_readme_on_speed() -> list[str]:
    row = speed_row("input.py", "256x256")
    device, cpu = (ratio(row, f"ours, {way} / released", 1, "")
                   for way in ("colour on the device", "all on CPU"))  # fmt: skip
    step = ratio(speed_row("step.py", "r50-224"), "released / ours", 2, "")
    whole = ratio(speed_row("end_to_end.py", "mean step"), "released / ours", 2, "")
    return [
        f"all on the CPU | {cpu} times as many pairs per second |",
        f"colour work left to the GPU | {device} times |",
        f"one step, ResNet-50, 224 px, fp32 | {step} times as fast,",
        f"quickstart settings | {whole} times as fast (mean step;",
    ]


def sentences_of_imagery() -> list[str]:
    """The page rounds as running text does."""
    row = speed_row("scenes.py", "8192x8192x3 uint16 deflate in tiles")
    whole, geo = row["ratios"]["ours / whole file"], row["ratios"]["ours / torchgeo"]
    return [
        f"`Scenes` gives {whole['median']:.0f} times as many pairs as reading the whole file "
        f"({whole['min']:.0f} to {whole['max']:.0f}) and {geo['median']:.1f} times as many as "
        f"torchgeo 0.8.1's random sampler ({geo['min']:.1f} to {geo['max']:.1f})",
        f"A forked worker takes {row['values']['worker_private_mb']:.0f} MB of private memory",
    ]


def sentences_of_pretraining() -> list[str]:
    found = speed_row("memory.py", "gersp_r50")["values"]
    return [
        f"{found['worker_processes']} workers, `gersp_r50.py` has its first batch "
        f"{found['seconds_to_first_batch']:.1f} s after the start. The main process and its "
        f"workers then take {found['pss_sum_mib'] / 1024:.1f} GiB together, and the main process "
        f"{found['peak_rss_main_mib'] / 1024:.1f} GiB at most"
    ]


SENTENCES = {
    "docs/results/mini.md": (sentences_of_the_study, sentences_of_its_log_lines),
    "docs/results/speed.md": (sentences_of_speed,),
    "docs/guide/imagery.md": (sentences_of_imagery,),
    "docs/guide/pretraining.md": (sentences_of_pretraining,),
    "README.md": (sentences_of_readme, sentences_of_readme_on_trees, sentences_of_readme_on_speed),
    "demo/README.md": (sentences_of_the_trees,),
    "results/README.md": (sentences_of_the_rows_page,),
}


@pytest.mark.parametrize("page, sentences", [(p, one) for p in SENTENCES for one in SENTENCES[p]])
def test_sentences_quote_the_rows(page, sentences):
    """A sentence is written here from the rows; where rows or page change, the other one is."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    missing = [sentence for sentence in sentences() if sentence not in text]
    assert missing == []


def test_the_claims_of_the_study_hold():
    """Claims that hold no number."""
    g, rs = long("GeRSP"), long("MoCo-RS")
    assert all(gap(g, long(b), c) > 0 for b in BASELINES for c in EUROSAT)
    assert all(p(g, long(b), c) >= 0.05 for b in BASELINES for c in RESISC)
    rows = [*(long(name) for name in BASELINES), g]
    knn = {name: MINI.find(name, NEON[0]).mean for name in rows}
    assert min(knn, key=knn.get) == g
    more = {n: [gap(long(n), n, c) for c in NINE] for n in (*BASELINES, "GeRSP")}
    most = [max(more, key=lambda name: more[name][i]) for i in range(3, 6)]
    assert most == ["MoCo-RS", "MoCo-RS", "MoCo-IN"]
    assert gap("GeRSP", "IMP", NEON[2]) < 0
    assert all(p(g, "GeRSP", c) >= 0.05 for c in RESISC)
    ten = [*NINE, TUNED]
    assert [c for c in ten if p("GeRSP", "IMP", c) < 0.05] == [*EUROSAT, TUNED]
    assert all(p("GeRSP", "MoCo-RS", c) >= 0.05 for c in (*EUROSAT, TUNED))
    assert all(gap("GeRSP", "MoCo-RS", c) > 0 for c in (*RESISC, *NEON))
    assert [c for c in ten if p("GeRSP", "MoCo-RS", c) < 0.05] == [RESISC[0]]
    assert all(p("GeRSP", "MoCo-IN+RS", c) >= 0.05 for c in ten)
    assert sum(gap("GeRSP", "MoCo-IN+RS", c) < 0 for c in ten) == 7
    assert all(gap(long(n), rs, c) > 0 for n in ("IMP", "MoCo-IN", "MoCo-IN+RS", "GeRSP")
               for c in NEON[1:])  # fmt: skip
    labels = sorted(("IMP", "GeRSP"))
    order = [sorted(more, key=lambda name: -more[name][i])[:2] for i in range(3)]
    assert [sorted(pair) == labels for pair in order] == [True, True, False]
    # BatchNorm's statistics
    lost = [p(own(name), name, c) for name in MIXED for c in RESISC[:2]]
    assert sum(value < 0.05 for value in lost) == 2
    assert all(abs(gap(own("MoCo-RS"), "MoCo-RS", c)) <= 0.205 for c in NINE)
    worse = [(name, c) for name in BASELINES for c in NINE if gap(own("GeRSP"), own(name), c) < 0
             and p(own("GeRSP"), own(name), c) < 0.05]  # fmt: skip
    assert worse == [("MoCo-IN", NEON[0]), ("MoCo-IN", NEON[1]), ("MoCo-IN+RS", NEON[0])]
    assert all(p("GeRSP", name, c) >= 0.05 for name, c in worse)
    # BatchNorm of the keys
    choices = [f"GeRSP, key_bn={name}" for name in ("split", "shuffle")]
    knn = (EUROSAT[0], RESISC[0], NEON[0])
    assert all(p(*choices, c) >= 0.05 for c in knn)
    assert sum(p(name, "GeRSP", c) < 0.05 for name in choices for c in knn) == 1
    # the weight α
    alphas = ("GeRSP without natural images (α = 0)", "GeRSP with α = 0.1", HALF, "GeRSP",
              "GeRSP with α = 2")  # fmt: skip
    means = [[MINI.find(name, c).mean for name in alphas] for c in NINE]
    assert sum(max(row) - row[2] < 0.15 for row in means) == 8
    assert all(row[4] < row[2] for row in means)
    assert sum(row[0] < row[2] for row in means) == 8
    # what else was tried
    assert sum(gap(SYMMETRIC, "GeRSP", c) > 0 for c in NINE) == 8
    assert [c for c in BASELINES if p(BOTH, c, RESISC[2]) >= 0.0445] == ["MoCo-IN"]
    assert all(gap(BOTH, "GeRSP", column) > 0 for column in NINE)
    assert [c for c in NINE if p(BOTH, "GeRSP", c) < 0.05] == [EUROSAT[0], RESISC[0], RESISC[2]]
    assert [c for c in NINE if p(SYMMETRIC, "GeRSP", c) < 0.05] == [EUROSAT[0]]
