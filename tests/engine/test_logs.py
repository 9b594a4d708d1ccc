"""The logs of runs that were killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

from gersp_mm.engine.logs import cut_back
from gersp_mm.engine.runs import RunFolder
from gersp_mm.visualization.curves import read_curves

KILLED = '{"loss": 3.'


def start(work_dir: Path, name: str, losses: dict[int, float], *more: dict, tail: str = "") -> Path:
    """Write the two files of one start, and return its folder."""
    folder = work_dir / name / "vis_data"
    folder.mkdir(parents=True)
    lines = [dict(loss=loss, iter=number, step=number) for number, loss in losses.items()]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *more])
    for file in ("scalars.json", f"{name}.json"):
        (folder / file).write_text(text + tail)
    return folder


def iterations(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_what_was_logged_after_the_checkpoint_is_moved_aside_and_nothing_is_lost(tmp_path):
    losses = {10: 5.0, 20: 4.0, 30: 3.5}
    first = start(tmp_path, "1", losses, dict(knn_top1=70.0, step=35), tail=KILLED)
    second = start(tmp_path, "2", {30: 3.25, 40: 3.0, 50: 2.5})
    third = start(tmp_path, "3", {50: 2.25})
    before = [first.joinpath(name).read_text() for name in ("scalars.json", "1.json")]
    assert len(cut_back(tmp_path, 45, third)) == 4
    assert iterations(second / "scalars.json") == iterations(second / "2.json") == [30, 40]
    assert iterations(second / "scalars.superseded.json") == [50]
    # The first start was left as it was by a version that cut nothing.
    for name, text in zip(("scalars", "1"), before):
        kept = (first / f"{name}.json").read_text()
        assert kept + (first / f"{name}.superseded.json").read_text() == text + "\n"
    assert cut_back(tmp_path, 45, third) == []
    expected = [(10, 5.0), (20, 4.0), (30, 3.25), (40, 3.0), (50, 2.25)]
    assert read_curves(tmp_path)["loss"] == expected
    assert [entry["loss"] for entry in RunFolder(tmp_path).scalars()] == [y for _, y in expected]


def test_an_evaluation_after_the_checkpoint_is_cut_with_or_without_an_iteration(tmp_path):
    by_iteration = start(tmp_path / "a", "1", {10: 5.0}, dict(knn_top1=70.0, step=15))
    by_epoch = {"accuracy/top1": 70.0, "step": 2}
    after = start(tmp_path / "b", "1", {10: 5.0, 20: 4.0}, by_epoch)
    for run, folder in (("a", by_iteration), ("b", after)):
        cut_back(tmp_path / run, 14, tmp_path)
        assert iterations(folder / "scalars.json") == [10]


def test_the_logs_of_an_older_run_in_the_folder_stay(tmp_path):
    older = start(tmp_path, "1", {10: 9.0, 20: 8.0, 30: 7.0})
    start(tmp_path, "2", {10: 5.0, 20: 4.0})
    cut_back(tmp_path, 10, start(tmp_path, "3", {20: 3.0}))
    assert iterations(older / "scalars.json") == [10, 20, 30]
    assert read_curves(tmp_path)["loss"] == [(10, 5.0), (20, 3.0)]


def test_an_evaluation_that_a_resumed_run_begins_with_stands_at_its_iteration(tmp_path):
    start(tmp_path, "1", {10: 5.0, 20: 4.0})
    late = {"accuracy/top1": 70.0, "step": 1}
    folder = start(tmp_path, "2", {}, late)
    with open(folder / "scalars.json", "a") as file:
        file.write('{"loss": 3.0, "iter": 30, "step": 30}\n')
    assert read_curves(tmp_path)["accuracy/top1"] == [(20, 70.0)]
