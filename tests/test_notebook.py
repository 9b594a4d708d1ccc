"""The notebook runs from its first cell to its last, with tiny images and a small network.

The lines that start with ``!`` run as in IPython: values in braces, then a process of its own.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support import forked
from tests.support.downstream import write_trees
from tests.support.smoke import write_pair

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "own_imagery.ipynb"
SHELL = re.compile(r"^!(.*)$", re.MULTILINE)
SMALLER = """
IMAGES, NATURAL = "rs", "natural"
DETECTOR_OPTIONS = "train_cfg.max_epochs=1 train_dataloader.num_workers=0 "
DETECTOR_OPTIONS += "train_dataloader.persistent_workers=False"
"""


def cells() -> list[dict[str, Any]]:
    """Return the code cells that need no network, in order."""
    found = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    return [cell for cell in code if "download" not in cell["metadata"].get("tags", ())]


def test_the_notebook_is_committed_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())


def test_the_notebook_goes_from_a_folder_of_images_to_boxes(tmp_path, monkeypatch) -> None:
    write_pair(tmp_path)
    write_trees(tmp_path / "data" / "demo")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "gersp.py"
    script.write_text("from gersp_mm.commands.main import cli\n\ncli()\n")
    known: dict[str, Any] = {}

    def shell(line: str) -> None:
        program, *words = shlex.split(line)
        assert program == "gersp"
        done = forked.run(script, *words, output=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    known["shell"] = shell
    for cell in cells():
        source = SHELL.sub(r'shell(rf"""\1""")', "".join(cell["source"]))
        exec(source, known)
        if "parameters" in cell["metadata"].get("tags", ()):
            exec(SMALLER, known)
    out = tmp_path / known["OUT"]
    weights = list(known["backbone"].state_dict())
    assert known["features"].shape[1] == 512 and "layer4.1.conv2.weight" in weights
    log = next((out / "trees").rglob("*.log")).read_text("utf-8")
    assert "tensors of model.backbone are" in log  # the detector started from the backbone
    sizes = {name: Image.open(out / name).size for name in ("pairs.png", "curves.png")}
    assert min(min(size) for size in sizes.values()) > 100
    assert len(known["pictures"]) == 2  # one a test tile
