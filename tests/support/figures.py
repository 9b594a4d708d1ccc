"""Figures in running text: which numbers of a page need a source, and how they are written.

Numbers that say no result need none: in code, in links and in generated tables; versions, years and
sizes in pixels; exit codes; whole numbers below 100 without a unit, and below 13 with a noun.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

HIDDEN = [
    re.compile(pattern, re.S | re.M)
    for pattern in (
        r"<!-- table:.*?<!-- end -->",
        r"<!-- (\w+): begin -->.*?<!-- \1: end -->",
        r"<!--.*?-->",
        r"^ *```.*?^ *```[^\n]*$",
        r"`[^`]*`",
        r"\]\([^)]*\)",
        r"https?://\S+",
        r"(?i)(?:CC[ -]BY[A-Z-]*|Python|torch|torchvision|SciPy|numba|mmcv|CUDA)(?: ≥| below)?"
        r" \d+\.\d+(?:\.\d+)*\b",  # versions
        r"\b\d+\.\d+\.\d+\S*",
        r"\b(?:19\d\d|20[0-3]\d)\b",  # years
        r"Zenodo \d+",
        r"(?:exit )?code \d+",
        r"\b0\d{4}\b",  # numbers of files
        r"\b[\d,]+ ?(?:px|pixels)\b",
        r"\b[\d,]+ ?[×x] ?[\d,]+(?: ?[×x] ?[\d,]+)*(?! ?images)",
        r"\b\d+ to \d+ px",
        r"§ ?\d+",
        r"#\d+",
    )
]
UNIT = r"%|s|ms|µs|ns|min|minutes|hours|h|GB|GiB|MB|MiB|KB|KiB|TB|dB|times|points|x"  # of any size
NOUN = (
    r"images|photographs|tiles|boxes|trees|crowns|runs|rows|pairs|predictions|updates|iterations"
    r"|cases|faults|moments|objects|classes|megapixels"
)
NUMBER = re.compile(
    rf"(?<![\w.,/^-])(±\s?)?([−+-]?)(\d+(?:,\d{{3}})+|\d+)(\.\d+)?(e-?\d+)?"
    rf"(?![\w-])(?:[ \n]?({UNIT}|{NOUN})(?![\w/]))?"
)


class Figure(NamedTuple):
    """A number, written as ``0.3 s`` or ``65,536``, and its line."""

    line: int
    text: str


def figures(page: str, checked: Iterable[str] = ()) -> Iterator[Figure]:
    """Yield the numbers of a page's running text that need a source.

    Args:
        page: Markdown.
        checked: Sentences that another test writes from rows; their numbers are left out.
    """
    for sentence in checked:
        page = re.sub(r"\s+".join(map(re.escape, sentence.split())), _blank, page)
    for pattern in HIDDEN:
        page = pattern.sub(_blank, page)
    for found in NUMBER.finditer(page):
        spread, sign, whole, fraction, power, unit = found.groups()
        size = int(whole.replace(",", ""))
        noun = unit and re.fullmatch(NOUN, unit)
        if not (spread or sign or fraction or power or size >= (13 if noun else 100)
                or (unit and not noun)):  # fmt: skip
            continue
        number = "".join(filter(None, (spread and "± ", sign, whole, fraction, power)))
        number = number.replace("-", "−") if sign else number
        kept = unit if unit and not noun else None
        yield Figure(page.count("\n", 0, found.start()) + 1, " ".join(filter(None, (number, kept))))


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", "\x00", match[0])
