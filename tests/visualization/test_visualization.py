"""Curves and pairs: what is drawn, and what is said when there is nothing to draw."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmpretrain.structures import DataSample
from PIL import Image

from gersp_mm.utils.errors import UserError
from gersp_mm.visualization import curves
from gersp_mm.visualization import pairs as browse_pairs
from gersp_mm.visualization.features import save_figure
from tests.support.commands import parse
from tests.support.forked import run
from tests.support.smoke import ROOT, smoke_twin

FOLDER = ROOT / "tools" / "visualization"


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(f"gersp_tool_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_scalars(work_dir: Path, start: str, lines: list[dict], tail: str = "") -> Path:
    path = work_dir / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def train_line(iteration: int, loss: float, **more: float) -> dict:
    return dict(loss_ct=loss, iter=iteration, step=iteration, epoch=1, time=0.1, memory=5, **more)


def test_a_resumed_run_is_one_curve(tmp_path: Path):
    write_scalars(
        tmp_path,
        "20260101_000000",
        [
            train_line(10, 7.0),
            {"knn/top1": 40.0, "step": 1},
            train_line(20, 6.0),
            train_line(30, 9.0),
        ],
        tail='{"loss_ct": 5.',  # killed while writing
    )
    write_scalars(tmp_path, "20260101_000100", [train_line(30, 5.0), train_line(40, 4.0)])
    assert curves.read_curves(tmp_path) == {
        "loss_ct": [(10.0, 7.0), (20.0, 6.0), (30.0, 5.0), (40.0, 4.0)],
        "knn/top1": [(10.0, 40.0)],
    }


def test_every_run_has_a_look_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, out: figures.append(figure))
    runs = {f"run {n}": {"loss_ct": [(1.0, 7.0), (2.0, 6.0 - n)]} for n in range(20)}
    curves.draw(runs, tmp_path / "x.png")
    (axis,) = figures[0].axes
    drawn = [(line.get_color(), line.get_linestyle()) for line in axis.get_lines()]
    told = [(line.get_color(), line.get_linestyle()) for line in figures[0].legends[0].get_lines()]
    assert drawn == told and len(set(drawn)) == 20


def test_order_and_smoothing():
    names = {"lr", "acc_ct", "other", "loss_extra", "loss_ce", "loss"}
    assert curves.order(names) == ["loss", "loss_ce", "loss_extra", "acc_ct", "lr", "other"]
    line = [(0, 1.0), (1, math.nan), (2, 4.0), (3, 7.0)]
    assert curves.moving_average(line, 3) == [(0, 2.5), (2, 4.0), (3, 5.5)]


def test_one_png_of_several_runs(tmp_path: Path, capsys):
    for name in ("a", "b"):
        lines = [train_line(i, 7 - i / 50, lr=0.1, **{"val/x": 1.0}) for i in range(1, 60)]
        write_scalars(tmp_path / name, "20260101_000000", lines)
    out = tmp_path / "both.png"
    runs = [str(tmp_path / name) for name in ("a", "b")]
    curves.run(parse(curves, [*runs, "--labels", "first", "second", "--out", str(out)]))
    image = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert min(image.shape[:2]) > 200
    spread = image.max(2) - image.min(2)
    assert (spread > 60).sum() > 500  # coloured lines, not just axes
    assert str(out) in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "both.png"]


def test_chance_and_setting_come_from_the_config_of_the_run(tmp_path: Path):
    listing = tmp_path / "train.txt"
    listing.write_text("".join(f"{number}.png {number % 4}\n" for number in range(8)))
    log = write_scalars(tmp_path, "20260101_000000", [train_line(10, 7.0)])
    log.with_name("config.py").write_text(
        "model = dict(queue_len=512, head=dict(temperature=0.1), natural_head=dict(num_classes=20))"
        f"\ndefault_hooks = dict(knn_eval=dict(train={str(listing)!r}))\n"
    )
    setting = curves.read_setting(tmp_path)
    assert setting.note == "T = 0.1, queue 512"
    assert setting.chance == dict(
        loss_ct=math.log(512), acc_ct=100 / 513, loss_ce=math.log(20),
        acc_ce_top1=5.0, acc_ce_top5=25.0, knn_top1=25.0,
    )  # fmt: skip
    (tmp_path / "natural.txt").write_text("a.jpg 3\nb.jpg 900\n")
    natural = f"dict(type='LabelledImages', data_root='{tmp_path}', ann_file='natural.txt')"
    with open(log.with_name("config.py"), "a") as file:
        file.write(f"\ntrain_dataloader = dict(dataset=dict(natural={natural}))\n")
    chance = curves.read_setting(tmp_path).chance
    assert chance["acc_ce_top1"] == 50.0
    log.with_name("config.py").unlink()
    assert curves.read_setting(tmp_path) == ("", {})


def test_totals_of_other_terms_are_not_compared():
    both = dict(loss=[(1, 8.0)], loss_ct=[(1, 5.0)], loss_ce=[(1, 3.0)])
    alone = dict(loss=[(1, 5.0)], loss_ct=[(1, 5.0)])
    assert "loss" in curves.comparable(dict(a=both, b=both))
    assert curves.comparable(dict(a=both, b=alone)) == {"loss_ct", "loss_ce"}


def test_curves_errors(tmp_path: Path):
    with pytest.raises(UserError, match="there is no run .*nowhere"):
        curves.run(parse(curves, [str(tmp_path / "nowhere")]))
    with pytest.raises(UserError, match="give the work directory of a run"):
        curves.run(parse(curves, [str(tmp_path)]))
    write_scalars(tmp_path, "20260101_000000", [])
    with pytest.raises(UserError, match="holds no values yet"):
        curves.run(parse(curves, [str(tmp_path)]))
    with pytest.raises(UserError, match="--labels names 2 runs, but 1 are given"):
        curves.run(parse(curves, [str(tmp_path), "--labels", "a", "b"]))


def test_pairs_are_what_the_model_gets(pair_data: Path, tmp_path: Path):
    cfg = smoke_twin("gersp_r18_demo.py", pair_data, tmp_path)
    # Nothing random but the order, so that the file's own pixels must come back.
    dataset = cfg.train_dataloader.dataset
    for pipeline in (dataset.rs_pipeline, dataset.natural_pipeline):
        pipeline[:] = [dict(type="torchvision/Resize", size=(32, 32))]
    cfg.model.data_preprocessor = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0])
    images, labels = browse_pairs.seen_by_model(cfg, rows=6)
    assert {view: part.shape for view, part in images.items()} == dict.fromkeys(
        ("rs_query", "rs_key", "natural"), (6, 32, 32, 3)
    )
    assert np.array_equal(images["rs_query"], images["rs_key"])
    assert len(labels) == 6 and set(labels) <= {f"class {i}" for i in range(3)}
    means = images["natural"].reshape(6, -1, 3).mean(1)
    for mean, label in zip(means, labels):
        folder = pair_data / "natural" / label.replace(" ", "_")
        of_files = [np.asarray(Image.open(p)).reshape(-1, 3).mean(0) for p in folder.glob("*.jpg")]
        assert np.abs(np.stack(of_files) - mean).max(1).min() < 2


@pytest.mark.parametrize(
    ("paths", "classes", "names"),
    [
        (("d/0853/imagenet_0_853.jpg", "d/0455/imagenet_1_455.jpg"), None, "thatch,bottlecap"),
        (("d/0853/a.jpg", "d/0455/b.jpg"), None, "class 853,class 455"),
        (("d/GreenRoof/a.jpg", "d/cork/b.jpg"), None, "green roof,cork"),
        (("d/all/a.jpg", "d/all/b.jpg"), None, "class 853,class 455"),
        (("d/x/a.jpg", "d/y/b.jpg"), ["Zero"] * 456, "class 853,zero"),
    ],
)
def test_natural_labels_are_names_where_names_are_known(paths, classes, names):
    samples = [
        DataSample(natural_path=path).set_gt_label(label) for path, label in zip(paths, (853, 455))
    ]
    assert browse_pairs.label_texts(samples, classes) == names.split(",")


def test_restore_undoes_the_normalisation():
    class Preprocessor:
        mean = torch.tensor([100.0, 50.0, 0.0]).view(3, 1, 1)
        std = torch.tensor([2.0, 4.0, 5.0]).view(3, 1, 1)

    normalised = torch.tensor([1.0, -2.0, 60.0]).view(1, 3, 1, 1)
    assert browse_pairs.restore(normalised, Preprocessor).tolist() == [[[[102, 42, 255]]]]


def test_browse_pairs_writes_a_grid(pair_data: Path, tmp_path: Path):
    cfg = smoke_twin("gersp_r18_demo.py", pair_data, tmp_path)
    images, labels = browse_pairs.seen_by_model(cfg, rows=3)
    assert not np.array_equal(images["rs_query"], images["rs_key"])  # two views
    out = browse_pairs.draw(images, labels, tmp_path / "new folder" / "pairs.png")
    width, height = Image.open(out).size
    assert height > width * 0.8 and width > 300


def test_browse_pairs_without_a_batch(pair_data: Path, tmp_path: Path):
    cfg = smoke_twin("gersp_r18_demo.py", pair_data, tmp_path)
    cfg.train_dataloader.batch_size = 1000
    with pytest.raises(UserError, match=r"lower train_dataloader\.batch_size"):
        browse_pairs.seen_by_model(cfg, rows=3)


@pytest.mark.parametrize("name", ["curves", "browse_pairs"])
def test_help_has_examples(name: str, tmp_path: Path):
    done = run(FOLDER / f"{name}.py", "--help", output=tmp_path)
    assert done.returncode == 0 and "Examples:" in done.stdout


def test_a_picture_removes_what_a_killed_one_of_its_name_left(tmp_path: Path):
    for name in (".a[1].png.x7_q.tmp", ".b.png.k3.tmp", ".a[1].png.keep"):
        (tmp_path / name).write_bytes(b"half")
    save_figure(Figure((1, 1)), tmp_path / "a[1].png")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".a[1].png.keep", ".b.png.k3.tmp", "a[1].png"]
