"""Runs in processes of their own: how far they are, how they end, and what their folder says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from gersp_mm.engine.runs import TRAINING_LOG, ChildRun, RunFolder
from gersp_mm.engine.schedule import Length
from gersp_mm.utils import console
from gersp_mm.utils.errors import UserError

TRAINING = """
import json, pathlib, sys, time
log = pathlib.Path(sys.argv[1], "20260101_000001", "vis_data", "scalars.json")
log.parent.mkdir(parents=True)
print("10:00:00 - mmengine - WARNING - one image is damaged", flush=True)
print("10:00:00 - mmengine - INFO - resumed from epoch 1", flush=True)
with open(log, "w") as file:
    for line in ({"loss": 2.5, "epoch": 2, "iter": 7}, {"knn/top1": 40.0, "step": 2}):
        file.write(json.dumps(line) + "\\n")
    file.write('{"loss": 1.')
"""


def child(folder: Path, code: str, **options) -> ChildRun:
    command = [sys.executable, "-c", code, folder]
    return ChildRun("a training", command, folder / TRAINING_LOG, **options)


def test_progress_is_read_from_the_scalars_of_this_start(tmp_path, capsys):
    older = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    older.parent.mkdir(parents=True)
    older.write_text(json.dumps(dict(loss=9.0, epoch=1, iter=3)) + "\n")
    run = child(tmp_path, TRAINING, length=Length(4, "epochs", "train_cfg.max_epochs"))
    run.follow(values=["loss"], notable=["resumed"])
    assert capsys.readouterr().out.splitlines() == [
        "10:00:00 - mmengine - WARNING - one image is damaged",
        "   resumed from epoch 1",
        "   epoch 2, iteration 7   loss 2.50",
    ]
    assert [entry.get("iter") for entry in RunFolder(tmp_path).scalars()] == [3, 7, None]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('error: no such data'); print('bye'); sys.exit(2)", "no such data"),
        ("import sys; print('Segmentation fault'); sys.exit(3)", "Segmentation fault"),
        ("import sys; sys.exit(4)", "exit code 4"),
    ],
)
def test_a_failure_has_the_error_of_this_start(tmp_path, code, reason):
    (tmp_path / TRAINING_LOG).write_text("error: of yesterday\n")
    with pytest.raises(UserError, match=rf"^a training failed: {reason}; see .*train\.log$"):
        child(tmp_path, code).follow()


def test_a_child_ends_with_the_block(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), child(tmp_path, "import time; time.sleep(60)") as run:
        time.sleep(0.1)
        run.stop()  # Only the first call sends a signal and says so.
        raise KeyboardInterrupt
    assert not run.running
    assert capsys.readouterr().out == "\nstopping a training ...\n"


def test_iterations_before_a_resume_do_not_count_as_work_of_this_start(tmp_path, monkeypatch):
    made = []

    class Recorded(console.Bar):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(console, "Bar", Recorded)
    line = "10:00:00 - mmengine - INFO - Epoch(train)   [9][ 5/100]  lr: 1.0"
    code = TRAINING.replace("one image is damaged", line).replace('"iter": 7', '"iter": 805')
    child(tmp_path, code, length=Length(10, "epochs", "train_cfg.max_epochs")).follow()
    (bar,) = made
    assert (bar.first, bar.done, bar.total) == (805, 805, 1000)


def test_a_folder_of_other_settings(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.read("settings.json") is None and folder.checkpoint(2) is None
    folder.write("settings.json", dict(epochs=2, seed=0))
    known = folder.read("settings.json")
    folder.require_settings(known, dict(epochs=2), "remove it")
    with pytest.raises(UserError, match=r"run holds a run with epochs 2 instead of 3: remove it"):
        folder.require_settings(known, dict(epochs=3, seed=0), "remove it")
