"""The quickstart on small own images: from images to report, and what a second call does."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from mmengine.config import Config

from gersp_mm.commands import options
from gersp_mm.commands import quickstart as tool
from gersp_mm.engine.runs import TRAINING_LOG, RunFolder
from gersp_mm.results import append_new_rows, read_rows
from gersp_mm.results.statistics import further_run
from gersp_mm.utils.errors import UserError
from tests.support.forked import run
from tests.support.smoke import ROOT, write_classes

SCRIPT = ROOT / "tools" / "quickstart.py"


def start(folder: Path, *options: object) -> subprocess.CompletedProcess:
    return run(SCRIPT, *options, output=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
def test_own_images_from_start_to_report(tmp_path: Path):
    rs = write_classes(tmp_path / "rs", classes=2, per_class=20)
    natural = write_classes(tmp_path / "natural", classes=3, per_class=4)
    work_dir = tmp_path / "work"
    options = ("--remote-sensing", rs, "--natural", natural, "--work-dir", work_dir)
    first = start(tmp_path, *options, "--epochs", 1)
    assert first.returncode == 0, first.stdout + first.stderr
    report = json.loads((work_dir / "quickstart.json").read_text())
    assert report["settings"]["epochs"] == 1 and report["settings"]["seed"] == 0
    assert report["counts"] == dict(remote_sensing=40, natural=12, train=28, test=12)
    assert len(report["results"]["random"]) == 3 and len(report["results"]["gersp"]) == 1
    for row in (*report["results"]["random"], *report["results"]["gersp"]):
        assert 0 <= row["knn"] <= 100 and 0 <= row["linear_probe"] <= 100
    assert report["versions"]["torch"] == torch.__version__
    assert report["seconds"]["pre-training"] > 0
    for name, path in report["files"].items():
        assert Path(path).stat().st_size > 1000, name
        assert path in first.stdout
    content = torch.load(report["files"]["backbone"], weights_only=True)
    assert "backbone.conv1.weight" in content["state_dict"]
    assert report["init_cfg"] in first.stdout
    assert report["recorded"] is None and report["rows"] is None  # these are other images
    assert not (work_dir / tool.ROWS).exists()
    assert "not compared with the recorded runs" in first.stdout
    assert "epoch 1, iteration" in first.stdout
    assert "Lower model.queue_len" not in (work_dir / TRAINING_LOG).read_text()

    trained = Path(report["files"]["backbone"]).stat().st_mtime_ns
    second = start(tmp_path, *options, "--epochs", 1)
    assert second.returncode == 0 and "holds the finished run" in second.stdout
    again = json.loads((work_dir / "quickstart.json").read_text())
    assert again["results"] == report["results"]
    assert Path(report["files"]["backbone"]).stat().st_mtime_ns == trained

    other = start(tmp_path, *options, "--epochs", 2)
    assert other.returncode == 2 and "images" not in other.stdout
    assert "a run with epochs 1 instead of 2: add --force" in other.stderr


@pytest.mark.parametrize(
    ("images", "batch", "queue"),
    [(2000, 32, 512), (512, 32, 512), (511, 32, 480), (40, 32, 32), (24, 24, 24), (2, 2, 2)],
)
def test_batches_and_queue_fit_the_number_of_images(images, batch, queue):
    cfg = Config.fromfile(ROOT / tool.CONFIG)
    manifest = dict(counts=dict(remote_sensing=images))
    fitted = tool.fitted_to_images(cfg, manifest)
    if images >= 512:
        assert fitted == {}
    cfg.merge_from_dict(fitted)
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.model.queue_len == queue


def test_one_image_is_too_few():
    manifest = dict(counts=dict(remote_sensing=1), request=dict(remote_sensing="/my/tiles"))
    cfg = Config.fromfile(ROOT / tool.CONFIG)
    with pytest.raises(UserError) as caught:
        tool.fitted_to_images(cfg, manifest)
    assert str(caught.value) == (
        "--remote-sensing /my/tiles has one image, and pre-training contrasts at least two. "
        "Add images."
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--epochs", 0), "--epochs must be at least 1, got 0"),
        (("--natural", "/no/such/place"), "--natural /no/such/place: there is no such folder"),
        (("--seed", -1), "--seed must not be negative"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(options, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.parse_args([*map(str, options)])
    assert ended.value.code == 2 and expected in capsys.readouterr().err
    alone = [sys.executable, "-I", tool.__file__, *map(str, options)]  # as quickstart.sh, bare
    done = subprocess.run(alone, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr


def test_the_work_directory_of_something_else(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="holds files of another tool"):
        tool.claim(RunFolder(tmp_path), dict(epochs=1), force=True)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_force_removes_the_run_and_nothing_else(tmp_path: Path):
    tool.claim(RunFolder(tmp_path), dict(epochs=1), force=False)
    (tmp_path / "20260101_000000" / "vis_data").mkdir(parents=True)
    for name in ("epoch_1.pth", "gersp_r18_demo_backbone.pth", "notes.txt"):
        (tmp_path / name).write_text("x")
    tool.claim(RunFolder(tmp_path), dict(epochs=2), force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", tool.SETTINGS]
    assert json.loads((tmp_path / tool.SETTINGS).read_text()) == dict(epochs=2)


def test_result_table():
    rows = dict(
        random=[dict(knn=40.0, linear_probe=70.0), dict(knn=44.0, linear_probe=71.0)],
        gersp=[dict(knn=70.25, linear_probe=80.0)],
    )
    lines = tool.result_table(rows, 10, 20.0).splitlines()
    assert [line.split() for line in lines[2:3]] == [["chance", "20.0", "20.0"]]
    assert lines[3].endswith("42.0 (40.0 to 44.0)  70.5 (70.0 to 71.0)")
    assert lines[4].startswith("GeRSP, 10 epochs") and lines[4].split()[-2:] == ["70.2", "80.0"]


@pytest.mark.parametrize(
    ("knn", "linear", "inside"),
    [
        ("mean", "mean", (True, True)),
        ("low", "mean", (False, True)),
        ("mean", "high", (True, False)),
    ],
)
def test_a_result_is_compared_with_the_recorded_runs(knn, linear, inside):
    recorded = [
        [row.value for row in read_rows(ROOT / "results/demo.jsonl")
         if row.settings.method == "GeRSP" and row.measured_by.kind == kind]
        for kind in ("knn", "linear")
    ]  # fmt: skip
    places = dict(low=lambda v: min(v) - 30, mean=fmean, high=lambda v: max(v) + 30)
    values = [places[place](found) for place, found in zip((knn, linear), recorded)]
    compared = tool.beside_recorded(dict(knn=values[0], linear_probe=values[1]), epochs=6)
    assert (compared["knn"]["inside"], compared["linear_probe"]["inside"]) == inside
    for one, found in zip(compared.values(), recorded):
        assert one["low"] < min(found) and max(found) < one["high"]
    text = tool.said(compared)
    words = [("inside" if good else "OUTSIDE") for good in inside]
    assert f"and {values[0]:.1f} % is {words[0]}" in text
    assert f"and {values[1]:.1f} % is {words[1]}" in text
    assert ("Another processor" in text) == (not all(inside))


def test_a_run_of_another_length_is_compared_with_none():
    assert tool.beside_recorded(dict(knn=70.0, linear_probe=80.0), epochs=1) is None
    assert tool.said(None).startswith("not compared with the recorded runs")


def test_rows_of_a_run_are_those_of_the_results_file(tmp_path: Path):
    """But for where they were measured, and values."""
    exported = tmp_path / "backbone.pth"
    exported.write_bytes(b"weights")
    one = dict(knn=69.0, linear_probe=80.60000000000001)
    results = dict(random=[dict(one, draw=1000)], gersp=[dict(one, draw=0)])
    rows = tool.as_rows(results, exported, 6, 400.0)
    assert [row.value for row in rows] == [69.0, 80.6] * 2
    known = {(r.metric, r.column, r.pretraining, r.seed, r.config, r.settings.model_dump_json())
             for r in read_rows(ROOT / "results/demo.jsonl")}  # fmt: skip
    for row in rows:
        assert (row.metric, row.column, row.pretraining, row.seed, row.config,
                row.settings.model_dump_json()) in known  # fmt: skip
    assert rows[-1].checkpoint_sha256 and rows[-1].seconds == 400.0 and rows[-1].threads
    for _ in range(2):  # the second time, the run was finished before
        append_new_rows(tmp_path / tool.ROWS, rows)
    assert read_rows(tmp_path / tool.ROWS) == rows
    append_new_rows(tmp_path / tool.ROWS, [rows[0].model_copy(update=dict(value=1.0)), rows[1]])
    assert [row.value for row in read_rows(tmp_path / tool.ROWS)] == [69.0, 80.6] * 2 + [1.0]


@pytest.mark.parametrize(
    ("values", "low", "high"), [([1.0, 3.0], -20.008, 24.008), ([2.0, 2.0, 2.0], 2.0, 2.0)]
)
def test_the_range_of_a_further_run(values, low, high):
    """t(0.975, 1) = 12.7062; 2 ± 12.7062 · √2 · √1.5 for the first."""
    assert further_run(values) == pytest.approx((low, high), abs=2e-3)


def test_without_the_libraries_of_its_last_steps_it_does_not_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "find_spec", lambda name: None if name == "sklearn" else name)
    with pytest.raises(SystemExit) as stop:
        tool.main(["--work-dir", str(tmp_path / "run")])
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert "needs scikit-learn: pip install scikit-learn" in capsys.readouterr().err


def test_a_missing_optional_library_is_one_line(capsys):
    def picture(_):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    with pytest.raises(SystemExit) as stop:
        options.run_tool(picture, argparse.Namespace())
    assert stop.value.code == 2
    assert "this command needs scikit-learn: pip install" in capsys.readouterr().err

    def broken(_):
        raise ModuleNotFoundError("No module named 'gersp_mm.nothing'", name="gersp_mm.nothing")

    with pytest.raises(ModuleNotFoundError):
        options.run_tool(broken, argparse.Namespace())
