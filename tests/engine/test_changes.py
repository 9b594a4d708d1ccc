"""The options that differ from the config file, of which rows hold those that matter."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from gersp_mm.checkpoints.read import UNREAD, config_values
from gersp_mm.engine.changes import changes_of_run
from gersp_mm.engine.config import read_config
from tests.support.smoke import CONFIGS

DIOR = CONFIGS / "downstream/dior/faster-rcnn_r50_fpn_24e_dior.py"
EUROSAT = CONFIGS / "downstream/eurosat/finetune_r50_eurosat.py"
KNN = CONFIGS / "downstream/eurosat/knn_r50_eurosat.py"


def changed(path, *options):
    return read_config(path, options)[0]


def meta_of(cfg: Config, **meta):
    return dict(cfg=cfg.pretty_text, **meta)


@pytest.mark.parametrize(
    "path, option, changes",
    [
        (KNN, "test_cfg.knn.k=200", {"test_cfg.knn.k": 200}),
        (KNN, "model.backbone.depth=18", {"model.backbone.depth": 18}),
        (EUROSAT, "train_cfg.max_epochs=10", {"train_cfg.max_epochs": 10}),
        (EUROSAT, "frozen=all", {"model.backbone.frozen_stages": 4}),
        (EUROSAT, "optim_wrapper.optimizer.lr=0.5", {"optim_wrapper.optimizer.lr": 0.5}),
        (EUROSAT, "optim_wrapper.accumulative_counts=2", {"optim_wrapper.accumulative_counts": 2}),
        (
            EUROSAT,
            "train_dataloader.dataset.pipeline.1.scale=32",
            {"train_dataloader.dataset.pipeline.1.scale": 32},
        ),
        (
            EUROSAT,
            "test_dataloader.dataset.ann_file=other.txt",
            {"test_dataloader.dataset.ann_file": "other.txt"},
        ),
        (EUROSAT, "custom_hooks=[dict(type=EMAHook)]", {"custom_hooks.0.type": "EMAHook"}),
    ],
)
def test_what_matters_is_said_of_the_tested_config_and_of_the_checkpoints(path, option, changes):
    shipped, other = changed(path), changed(path, option)
    assert changes_of_run(shipped, other) == changes
    if path == EUROSAT and not option.startswith("test"):
        trained = meta_of(other, epoch=other.train_cfg.max_epochs)
        assert changes_of_run(shipped, shipped, trained) == changes


@pytest.mark.parametrize(
    "option",
    [
        "train_dataloader.num_workers=0",
        "test_dataloader.pin_memory=False",
        "train_dataloader.dataset.data_root=/elsewhere/eurosat",
        "work_dir=/x",
        "pretrained=/x.pth",
        "randomness.seed=3",  # a field of the row
        "log_level=ERROR",
        "default_hooks.logger.interval=1",
        "train_cfg.val_interval=1",
        "evaluation.model=mine",
    ],
)
def test_what_does_not_matter_is_not_said(option):
    shipped, other = changed(EUROSAT), changed(EUROSAT, option)
    assert changes_of_run(shipped, other, meta_of(other, epoch=50)) == {}
    assert changes_of_run(shipped, shipped, meta_of(other, epoch=50)) == {}


DOWNSTREAM = sorted((CONFIGS / "downstream").rglob("*.py"))


@pytest.mark.parametrize("path", DOWNSTREAM, ids=lambda path: path.stem)
def test_an_unchanged_run_has_the_protocol_of_its_config(path):
    cfg = Config.fromfile(path)
    if "_base_" in path.parts or not cfg.get("train_cfg"):
        return
    length = cfg.train_cfg.get("max_epochs") or 0, cfg.train_cfg.get("max_iters") or 0
    meta = meta_of(cfg, epoch=length[0], iter=length[1])
    assert changes_of_run(cfg, cfg, meta) == {}
    moved = Config.fromfile(path)
    text = moved.pretty_text.replace("data/", "/elsewhere/data/")
    assert changes_of_run(cfg, cfg, dict(meta, cfg=text)) == {}


def test_what_was_trained_counts_more_than_what_is_said_at_the_test():
    shipped = changed(EUROSAT)
    said = changed(EUROSAT, "train_cfg.max_epochs=10")
    trained = meta_of(changed(EUROSAT, "train_cfg.max_epochs=5"), epoch=5)
    assert changes_of_run(shipped, said, trained) == {"train_cfg.max_epochs": 5}


def test_a_checkpoint_before_the_end_is_said():
    cfg = changed(EUROSAT)
    assert changes_of_run(cfg, cfg, meta_of(cfg, epoch=10)) == {"checkpoint": "epoch 10 of 50"}


def test_a_removed_value_is_said():
    shipped = changed(EUROSAT)
    other = changed(EUROSAT)
    other.optim_wrapper.optimizer.pop("momentum")
    assert changes_of_run(shipped, other) == {"optim_wrapper.optimizer.momentum": None}


def test_the_text_of_a_config_is_read_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    text = (
        "a = dict(b=[1, (2, 3)], c={'x/y': dict(d=None)})\n"
        f"bad = open({str(marker)!r}, 'w')\n"
        "both = dict(e=print, f=1)\nimport os\n"
    )
    values = config_values(text)
    assert values["a"] == dict(b=[1, (2, 3)], c={"x/y": dict(d=None)})
    assert values["bad"] is UNREAD and values["both"] == dict(e=UNREAD, f=1)
    assert not marker.exists()
    assert config_values("not (python") == config_values(None) == {}


def test_a_path_below_another_folder_of_the_data_is_the_same_file():
    moved = changed(
        DIOR,
        "test_dataloader.dataset.data_root=/elsewhere/dior",
        "test_evaluator.ann_file=/elsewhere/dior/coco/test.json",
    )
    assert changes_of_run(changed(DIOR), moved) == {}
    other = changed(DIOR, "test_evaluator.ann_file=/elsewhere/dior/coco/test.json")
    assert "test_evaluator.ann_file" in changes_of_run(changed(DIOR), other)
