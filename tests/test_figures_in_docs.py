"""Every number in running text has a row, a setting, a sum or a named source."""

from __future__ import annotations

import math
import re

import pytest
import yaml

from tests.support.figures import figures
from tests.support.smoke import ROOT
from tests.test_numbers_in_docs import SENTENCES

FOLDERS = ("docs", "benchmarks", "demo", "results")
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for folder in FOLDERS
                        for page in sorted((ROOT / folder).rglob("*.md")))]  # fmt: skip


def sources() -> list[tuple[list[str], list[str], str]]:
    """Return pages, numbers and source of each entry of ``docs/figures.yml``."""
    groups = yaml.safe_load((ROOT / "docs/figures.yml").read_text(encoding="utf-8"))
    return [
        (group["pages"], [one.strip() for one in str(numbers).split(";")], source)
        for group in groups
        for numbers, source in group["figures"].items()
    ]


def found_in(page: str) -> dict[str, int]:
    """Return the numbers of a page that no test writes from rows, with the line of each."""
    sentences = [one for function in SENTENCES.get(page, ()) for one in function()]
    text = (ROOT / page).read_text(encoding="utf-8")
    return {text: line for line, text in figures(text, sentences)}


@pytest.mark.parametrize("page", PAGES)
def test_every_number_has_a_source(page):
    known = {number for pages, numbers, _ in sources() if page in pages for number in numbers}
    missing = [f"{page}:{line}: {number}" for number, line in found_in(page).items()
               if number not in known]  # fmt: skip
    assert missing == [], "write them from rows (SENTENCES), or name the source in docs/figures.yml"


def test_no_source_is_left_over():
    on_pages = {page: found_in(page) for page in PAGES}
    unused = [(number, source) for pages, numbers, source in sources() for number in numbers
              if not any(number in on_pages[page] for page in pages)]  # fmt: skip
    assert unused == []


def value(number: str) -> tuple[float, int]:
    """Return the value of a number as pages write it, and its decimals."""
    digits = number.replace(",", "").replace("−", "-").lstrip("± ").split()[0]
    return float(digits), len(digits.partition(".")[2])


@pytest.mark.parametrize(
    "numbers, files", [(n, s.split()[1:]) for _, n, s in sources() if s.startswith("code ")]
)
def test_settings_stand_in_the_code(numbers, files):
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    found = re.findall(r"-?\d[\d_,]*(?:\.\d+)?(?:e-?\d+)?(?<![,_])", text)
    written = {float(one.replace("_", "").replace(",", "")) for one in found}
    missing = []
    for number in numbers:
        size, _ = value(number)
        wanted = {size, round(size / 100, 6)} if number.endswith("%") else {size}
        missing += [] if wanted & written else [number]
    assert missing == [], f"not in {', '.join(files)}"


@pytest.mark.parametrize(
    "numbers, sums", [(n, s.removeprefix("sum ")) for _, n, s in sources() if s.startswith("sum ")]
)
def test_sums_give_the_number(numbers, sums):
    results = eval(f"[{sums}]", {"math": math})
    assert [value(one)[0] for one in numbers] == [
        round(result, value(one)[1]) for one, result in zip(numbers, results, strict=True)
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It takes 0.3 s on Python 3.11.", ["0.3 s"]),
        ("Of 27,000 images 5 %\nare bad.", ["27,000", "5 %"]),
        ("`0.5` and\n```\n7 %\n```\n[text](a/0.7)", []),
        ("two views of 224 px, 12 images, since 2024, version 2.11.0", []),
        ("kNN 73.2 ± 0.7, p = 0.03, −2.4", ["73.2", "± 0.7", "0.03", "−2.4"]),
        ("| 797 | 66 times | 1e-5 |", ["797", "66 times", "1e-5"]),
    ],
)
def test_which_numbers_need_a_source(text, expected):
    assert [one.text for one in figures(text)] == expected


def test_a_sentence_from_rows_needs_no_other_source():
    page = "It gains 2.4\npoints, and 3.1 elsewhere."
    assert [one.text for one in figures(page, ["gains 2.4 points"])] == ["3.1"]
