"""Every ``gersp_mm.Name`` of a config, a docstring or a page is an attribute of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gersp_mm
from gersp_mm import registry
from tests.support.smoke import ROOT

PLACES = ("gersp_mm/**/*.py", "configs/**/*.py", "benchmarks/**/*.py", "tools/**/*.py",
          "docs/**/*.md", "README.md")  # fmt: skip
NAME = re.compile(r"\bgersp_mm\.([A-Z]\w+|collate_pairs|export_backbone)")
EXAMPLES = {"Name", "GERSP"}  # any name, and a misspelled one
FILES = sorted(path for place in PLACES for path in ROOT.glob(place))


def names() -> dict[str, Path]:
    texts = ((path, path.read_text(encoding="utf-8")) for path in FILES)
    found = {name: path for path, text in texts for name in NAME.findall(text)}
    return {name: path for name, path in found.items() if name not in EXAMPLES}


def test_the_pages_are_found():
    assert {"GeRSP", "PairedDataset", "TrainableParamsConstructor"} <= set(names())


@pytest.mark.parametrize("name", sorted(names()))
def test_is_an_attribute(name):
    assert hasattr(gersp_mm, name), names()[name]


def test_every_registered_type_is_public():
    ours = [one for one in vars(registry).values() if getattr(one, "scope", "") == "gersp_mm"]
    types = {name: kind for one in ours for name, kind in one.module_dict.items()}
    assert len(ours) > 5 and len(types) > 20
    for name, kind in types.items():
        assert getattr(gersp_mm, name) is kind and name in gersp_mm.__all__
    assert not hasattr(gersp_mm, "GeRPS")
