"""Evaluations on the images that are trained on are said before the first step."""

import pytest
from mmengine.config import Config

from gersp_mm.engine.preflight.parts import check_parts
from tests.support.smoke import CONFIGS


def config(name: str) -> Config:
    return Config.fromfile(CONFIGS / "downstream" / name)


def test_the_same_list_in_both_parts():
    cfg = config("eurosat/finetune_r18_eurosat.py")
    assert not list(check_parts(cfg))
    train = cfg.train_dataloader.dataset
    cfg.val_dataloader.dataset.update(ann_file=train.ann_file, data_root=train.data_root)
    found = list(check_parts(cfg))
    assert [(one.field, one.severity) for one in found if one.field.startswith("val_")] == [
        ("val_dataloader.dataset.ann_file", "warning")
    ]
    assert train.ann_file in found[0].text


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_same_folder_behind_a_wrapper(wrapped):
    cfg = config("loveda/psanet_r50-d8_80k_loveda.py")
    assert not list(check_parts(cfg))
    cfg.val_dataloader.dataset.data_prefix = dict(cfg.train_dataloader.dataset.data_prefix)
    if wrapped:
        cfg.train_dataloader.dataset = dict(
            type="RepeatDataset", times=2, dataset=cfg.train_dataloader.dataset
        )
    assert len([one for one in check_parts(cfg) if one.field.startswith("val_")]) == 1


def test_another_root_is_another_list():
    cfg = config("eurosat/finetune_r18_eurosat.py")
    cfg.val_dataloader.dataset.ann_file = cfg.train_dataloader.dataset.ann_file
    cfg.val_dataloader.dataset.data_root = "elsewhere"
    assert not [one for one in check_parts(cfg) if one.field.startswith("val_")]
