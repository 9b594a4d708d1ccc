"""Every name that a config, a page or a docstring calls ``gersp_mm.Name`` can be imported."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from mmengine.registry import Registry

import gersp_mm
from gersp_mm import registry

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"\bgersp_mm\.([A-Z][a-z]\w+|[A-Z]{2,}[a-z]\w+)\b")
NO_NAMES = {"Name"}  # stands for any


def test_every_registered_type_is_an_attribute() -> None:
    for one in vars(registry).values():
        if isinstance(one, Registry) and one.scope == "gersp_mm":
            for location in one._locations:
                importlib.import_module(location)
            for name, registered in one.module_dict.items():
                assert getattr(gersp_mm, name) is registered


def test_written_names_resolve() -> None:
    folders = ("configs", "docs", "gersp_mm", "tools", "benchmarks", "demo")
    files = [ROOT / "README.md", *(f for d in folders for f in (ROOT / d).rglob("*"))]
    for file in files:
        if file.suffix in (".py", ".md") and ".mim" not in file.parts:
            for name in set(NAME.findall(file.read_text(encoding="utf-8"))) - NO_NAMES:
                assert hasattr(gersp_mm, name), f"{file}: gersp_mm.{name}"
