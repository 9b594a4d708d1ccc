"""The rooms of the package import downwards only, as pyproject.toml says."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.smoke import ROOT

RUN = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]


def lint(folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [*RUN, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_contract_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    "module, line",
    [
        ("images/decode.py", "from gersp_mm.datasets import paired"),
        ("backbones/build.py", "def f():\n    import gersp_mm.engine.launch"),  # a lazy one too
        ("models/gersp.py", "import gersp_mm.datasets.collate"),  # of one floor
        ("commands/options.py", "import torch"),
        ("datasets/dota.py", "import mmrotate"),
        ("ops/nms.py", "import mmengine"),
    ],
)
def test_planted_import_is_found(tmp_path, module, line):
    shutil.copytree(
        ROOT / "gersp_mm", tmp_path / "gersp_mm", ignore=shutil.ignore_patterns(".mim", "__pyc*")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "gersp_mm" / module, "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout


def test_old_paths_of_the_docs():
    for module, name in [
        ("gersp_mm.evaluation.rows", "read_rows"),
        ("gersp_mm.resources", "resource_root"),
        ("gersp_mm.datasets.splits", "few_shot"),
        ("gersp_mm.datasets.dior", "DIOR_CLASSES"),
        ("gersp_mm", "export_backbone"),
    ]:
        assert callable(getattr(import_module(module), name)) or name.isupper()
