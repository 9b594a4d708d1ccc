"""Every head of a downstream model has as many classes as the data, or nothing starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import BaseLoop
from torch import nn

from gersp_mm.engine.config import apply_switches
from gersp_mm.engine.preflight.classes import check_downstream_classes
from gersp_mm.utils.errors import UserError
from tests.support.downstream import TREES, downstream_twin
from tests.support.runs import build

DOTA = "dota/oriented-rcnn_le90_r50_fpn_1x_dota-field.py"
ROTATED = "dior/rotated-retinanet_le90_r50_fpn_1x_dior-r.py"
DYHEAD = "dior/dyhead_r50_fpn_24e_dior.py"
LOVEDA = "loveda/deeplabv3plus_r50-d8_80k_loveda.py"
EUROSAT = "eurosat/finetune_r18_eurosat.py"
ROI = "model.roi_head.bbox_head.num_classes"
WRONG = [
    (DOTA, ROI, 20, 15),
    (DOTA, ROI, 3, 15),
    (ROTATED, "model.bbox_head.num_classes", 21, 20),
    (DYHEAD, "model.bbox_head.num_classes", 15, 20),
    (TREES, ROI, 5, 1),
    (LOVEDA, "model.decode_head.num_classes", 9, 7),
    (LOVEDA, "model.auxiliary_head.num_classes", 6, 7),
    (EUROSAT, "model.head.num_classes", 14, 10),
]


def twin(name: str, data: Any, work_dir: Any, **options: Any) -> Config:
    cfg = downstream_twin(name, data, work_dir)
    cfg.merge_from_dict(dict(options, pretrained=None))
    apply_switches(cfg)
    return cfg


def make_loop(dataset: Any) -> BaseLoop:
    loop = object.__new__(type("Loop", (BaseLoop,), dict(run=None)))
    loop.dataloader = SimpleNamespace(dataset=dataset)
    return loop


@pytest.mark.parametrize(("name", "field", "given", "needed"), WRONG)
def test_another_number_of_classes_stops_a_training(
    name, field, given, needed, downstream_data, tmp_path
):
    runner = build(twin(name, downstream_data, tmp_path, **{field: given}))
    with pytest.raises(UserError) as error:
        runner.train()
    expected = f"{field}={given}, but the training data have {needed} classes. Set it to {needed}."
    assert expected in str(error.value)
    assert runner.iter == 0 and not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(("name", "field", "given", "needed"), [WRONG[0], *WRONG[4:]])
def test_another_number_of_classes_stops_a_test(
    name, field, given, needed, downstream_data, tmp_path
):
    cfg = twin(name, downstream_data, tmp_path, **{field: given})
    if "outfile_prefix" in cfg.test_evaluator:
        cfg.test_evaluator.outfile_prefix = str(tmp_path / "Task1")
    with pytest.raises(UserError) as error:
        build(cfg).test()
    assert str(error.value) == (
        f"{field}={given}, but the test data have {needed} classes. Set it to {needed}."
    )


# ----------------------------------------------------------------------- several heads, odd heads


class Named(nn.Module):
    """A head as the hosts' heads present themselves."""

    def __init__(self, num_classes: int, **more: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.__dict__.update(more)


def found(model: nn.Module, classes: int, model_cfg: Any = None) -> list[str]:
    dataset = BaseDataset(metainfo=dict(classes=[f"c{n}" for n in range(classes)]), lazy_init=True)
    runner = SimpleNamespace(
        model=model, cfg=Config(dict(model=model_cfg or {})), _train_loop=make_loop(dataset)
    )
    return [finding.field for finding in check_downstream_classes(runner)]


def cascade(*counts: int) -> nn.Module:
    model = nn.Module()
    model.roi_head = nn.Module()
    model.rpn_head = Named(1)
    model.roi_head.bbox_head = nn.ModuleList(map(Named, counts))
    model.roi_head.mask_head = nn.ModuleList(map(Named, counts))
    return model


def test_each_head_of_a_cascade_is_named():
    heads = dict(bbox_head=[dict(num_classes=4)] * 3, mask_head=dict(num_classes=4))
    assert found(cascade(4, 4, 4), 4) == []
    assert found(cascade(4, 5, 4), 4, dict(roi_head=heads)) == [
        "model.roi_head.bbox_head.1.num_classes",
        "model.roi_head.mask_head.num_classes",  # one section for all stages
    ]


def test_lists_of_segmentation_heads():
    model = nn.Module()
    model.decode_head = nn.ModuleList([Named(6), Named(5)])
    model.auxiliary_head = nn.ModuleList([Named(6), Named(7)])
    parts = dict(decode_head=[dict(num_classes=6), dict(num_classes=5)],
                 auxiliary_head=[dict(num_classes=6), dict(num_classes=7)])  # fmt: skip
    assert found(model, 6, parts) == [
        "model.decode_head.1.num_classes", "model.auxiliary_head.1.num_classes",
    ]  # fmt: skip


def test_heads_that_may_have_another_number():
    model = nn.Module()
    model.mask_head = Named(80, class_agnostic=True)
    model.rpn_head = Named(1)
    model.decode_head = Named(1, out_channels=1)  # one map: object or not
    assert found(model, 2) == []
    assert found(model, 3) == ["model.decode_head.num_classes"]
    model = nn.Module()
    model.auxiliary_head = type("STDCHead", (Named,), {})(2)  # learns edges
    assert found(model, 19) == []
    model = nn.Module()
    model.bbox_head, model.language_model = Named(256), nn.Identity()
    assert found(model, 3) == []
