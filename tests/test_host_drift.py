"""Our downstream models are the hosts' own, but for the differences listed here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from tests.support.smoke import CONFIGS
from tests.test_configs import flat

INIT_CFG = {"backbone.init_cfg.checkpoint": "not-given", "backbone.init_cfg.prefix": "backbone."}
UNFROZEN = {**INIT_CFG, "backbone.frozen_stages": -1}
RELEASED_RCNN = {
    **UNFROZEN,
    "test_cfg.rcnn.nms.iou_threshold": 0.3,
    "test_cfg.rcnn.max_per_img": 600,
}
RELEASED_ONE_STAGE = {
    **UNFROZEN,
    "test_cfg.nms.iou_threshold": 0.3,
    "test_cfg.max_per_img": 600,
}
SEGMENTATION = {
    **UNFROZEN,
    "pretrained": "(absent)",
    "backbone.type": "ResNet",
    "backbone.init_cfg.type": "Pretrained",
    "decode_head.num_classes": 7,
    "auxiliary_head.num_classes": 7,
    "data_preprocessor.size": (512, 512),
}
CLASSIFIER = {
    **UNFROZEN,
    "backbone.init_cfg.type": "Pretrained",
    "data_preprocessor.mean": [123.675, 116.28, 103.53],
    "data_preprocessor.std": [58.395, 57.12, 57.375],
    "data_preprocessor.to_rgb": True,
    "head.num_classes": "(absent)",
    "head.topk": (1,),
}
# ours -> (host, its config, what is ours)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet50_classifier": ("mmpretrain", "_base_/models/resnet50.py", CLASSIFIER),
    "faster-rcnn_r50_fpn": ("mmdet", "_base_/models/faster-rcnn_r50_fpn.py", RELEASED_RCNN),
    "retinanet_r50_fpn": ("mmdet", "_base_/models/retinanet_r50_fpn.py", RELEASED_ONE_STAGE),
    "dyhead_r50_fpn": ("mmdet", "dyhead/atss_r50_fpn_dyhead_1x_coco.py", RELEASED_ONE_STAGE),
    "rotated-faster-rcnn_le90_r50_fpn": (
        "mmrotate", "rotated_faster_rcnn/rotated-faster-rcnn-le90_r50_fpn_1x_dota.py", UNFROZEN,
    ),
    "oriented-rcnn_le90_r50_fpn": (
        "mmrotate", "oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py", UNFROZEN,
    ),
    "rotated-retinanet_le90_r50_fpn": (
        "mmrotate", "rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py", UNFROZEN,
    ),
    "deeplabv3plus_r50-d8": ("mmseg", "_base_/models/deeplabv3plus_r50-d8.py", SEGMENTATION),
    "psanet_r50-d8": (
        "mmseg", "_base_/models/psanet_r50-d8.py",
        {**SEGMENTATION, "decode_head.mask_size": (66, 66)},
    ),
}  # fmt: skip
# configs of the hosts whose schedule ours has, but for what is listed
SCHEDULES: dict[str, tuple[str, str]] = {
    "rotated_1x": ("mmrotate", "_base_/schedules/schedule_1x.py"),
    "segmentation_80k": ("mmseg", "_base_/schedules/schedule_80k.py"),
}


def host_config(host: str, name: str) -> Config:
    root = Path(import_module(host).__file__).parent / ".mim" / "configs"
    return Config.fromfile(root / name)


def differences(ours: dict, theirs: dict) -> dict[str, str]:
    mine, other = flat(ours), flat(theirs)
    return {
        key: mine.get(key, "'(absent)'")
        for key in mine.keys() | other.keys()
        if mine.get(key) != other.get(key)
    }


def test_every_model_base_is_compared():
    names = {path.stem for path in (CONFIGS / "downstream/_base_/models").glob("*.py")}
    assert names - {"rotated_rpn"} == set(MODELS)  # which two of them share


@pytest.mark.parametrize("name", MODELS)
def test_model_differs_from_the_hosts_in_the_listed_points_alone(name):
    host, config, listed = MODELS[name]
    ours = Config.fromfile(CONFIGS / f"downstream/_base_/models/{name}.py").model.to_dict()
    found = differences(ours, host_config(host, config).model.to_dict())
    assert found == {key: repr(value) for key, value in listed.items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_hosts(name):
    host, config = SCHEDULES[name]
    ours = Config.fromfile(CONFIGS / f"downstream/_base_/schedules/{name}.py").to_dict()
    theirs = host_config(host, config).to_dict()
    for part in ("optim_wrapper", "param_scheduler"):
        assert ours[part] == theirs[part]
    for key in ("max_epochs", "max_iters", "val_interval"):
        assert ours["train_cfg"].get(key) == theirs["train_cfg"].get(key)
