"""The hosts' values: their names, their scale, and the rows that are made of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mmengine.config import Config

from gersp_mm.evaluation import measurement, metrics
from gersp_mm.evaluation.measurement import Measurement
from gersp_mm.resources import list_configs, resource
from gersp_mm.results import Pretraining, SplitRef, append_rows, read_rows
from gersp_mm.results.protocol import Detection, Unparsed
from gersp_mm.utils.errors import UserError
from tests.support.smoke import ROOT

DIOR = dict(
    dataset="DIOR",
    split=dict(name="official split", train="trainval"),
    measured_by=dict(kind="detection", boxes="horizontal", recipe="released"),
    metrics={"coco/bbox_mAP_50": "AP50", "coco/bbox_mAP": "AP50:95"},
)
PROTOCOL = "Horizontal boxes, released protocol, 24 epochs, official split, trainval to test"
CONFIG = "configs/downstream/dior/retinanet_r50_fpn_24e_dior.py"
HOST = {"coco/bbox_mAP": 0.38, "coco/bbox_mAP_50": 0.612, "coco/bbox_mAP_s": -1.0}


def evaluation(**metrics) -> dict:
    return dict(DIOR, metrics=metrics)


def measured(evaluation: dict = DIOR, **cfg) -> Measurement:
    whole = dict(
        evaluation=evaluation,
        model=dict(type="RetinaNet", backbone=dict(frozen_stages=-1)),
        train_cfg=dict(max_epochs=24),
        test_cfg=dict(knn=dict(k=20), fewshot=dict(shots=(5, 10))),
    )
    return Measurement({**whole, **cfg}, CONFIG)


def in_per_cent(evaluation: dict, values: dict) -> dict:
    wanted = metrics.wanted_metrics(evaluation)
    found = metrics.in_per_cent(wanted, values)
    return {metric.name: found[metric.key] for metric in wanted}


def test_summary_names_data_protocol_split_and_metrics():
    assert measured().summary(HOST) == f"DIOR, {PROTOCOL}: AP50 61.2, AP50:95 38.0"


@pytest.mark.parametrize(
    "key, value, per_cent, text",
    [
        ("coco/bbox_mAP_75", 0.123, 12.3, "12.3"),
        ("coco/storage-tank_precision", 0.5, 50.0, "50.0"),
        ("dota/mAP", 0.70512, 70.512, "70.5"),
        ("dota/AP50", 0.705, 70.5, "70.5"),
        ("accuracy/top1", 97.875, 97.875, "97.88"),
        ("knn/accuracy/top1", 52.2, 52.2, "52.20"),
        ("fewshot_10/accuracy/top1_std", 1.25, 1.25, "1.25"),
        ("mIoU", 48.39, 48.39, "48.39"),
    ],
)
def test_values_are_per_cent_whichever_host_gave_them(key, value, per_cent, text):
    one = evaluation(**{key: "name"})
    assert in_per_cent(one, {key: value, "other": 3}) == {"name": pytest.approx(per_cent)}
    assert measured(one).summary({key: value}).endswith(f"name {text}")


def test_an_unknown_metric_needs_its_scale():
    with pytest.raises(UserError, match=r"'f1' is a fraction or per cent is not known. Write"):
        metrics.wanted_metrics(evaluation(f1="F1"))
    known = evaluation(f1=dict(name="F1", scale=100))
    assert in_per_cent(known, dict(f1=0.25)) == {"F1": 25.0}


def test_a_metric_that_was_not_measured_is_an_error_and_an_undefined_one_no_row():
    with pytest.raises(UserError, match="gave no coco/bbox_mAP_50, only dota/mAP"):
        in_per_cent(DIOR, {"dota/mAP": 0.5})
    small = evaluation(**{"coco/bbox_mAP_s": "AP small", "mIoU": "mIoU"})
    values = dict(HOST, mIoU=math.nan)
    assert in_per_cent(small, values) == {"AP small": None, "mIoU": None}
    assert measured(small).summary(values).endswith(": AP small undefined, mIoU undefined")
    assert measured(small).rows(values, **SOURCE) == []


def test_a_detector_that_finds_nothing_has_an_ap_of_zero(tmp_path):
    coco_metric = pytest.importorskip("mmdet.evaluation.metrics").CocoMetric
    boxes = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], area=25, iscrowd=0)]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", width=20, height=20)],
        annotations=boxes, categories=[dict(id=1, name="ship")],
    )  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    host = coco_metric(ann_file=str(tmp_path / "coco.json"), metric="bbox")
    host.dataset_meta = dict(classes=("ship",))
    nothing = dict(
        bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long)
    )
    host.process({}, [dict(img_id=1, ori_shape=(20, 20), pred_instances=nothing)])
    values = host.evaluate(1)
    assert values == {}
    sizes = dict(DIOR["metrics"], **{"coco/bbox_mAP_s": "AP small"})
    found = in_per_cent(dict(DIOR, metrics=sizes), values)
    assert found == {"AP50": 0.0, "AP50:95": 0.0, "AP small": None}
    assert measured().summary(values).endswith(": AP50 0.0, AP50:95 0.0")
    assert [row.value for row in measured().rows(values, **SOURCE)] == [0.0, 0.0]


def test_nothing_measured_is_no_zero_elsewhere():
    for key in ("dota/mAP", "accuracy/top1", "mIoU"):
        with pytest.raises(UserError, match=f"gave no {key}, only nothing"):
            in_per_cent(evaluation(**{key: "name"}), {})
    with pytest.raises(UserError, match="gave no coco/bbox_mAP_50, only coco/AR"):
        in_per_cent(DIOR, {"coco/AR@100": 0.5})


def test_evaluation_without_split_is_refused():
    with pytest.raises(UserError, match="evaluation has no split, measured_by"):
        metrics.wanted_metrics(dict(dataset="DIOR", metrics={}))


def test_the_metrics_of_every_shipped_config_are_known():
    measured = 0
    for name in (name for name in list_configs() if name.startswith("downstream/")):
        cfg = Config.fromfile(resource("configs", name))
        measured += len(metrics.wanted_metrics(cfg.evaluation))
        assert measurement.model_name(cfg, name)
    assert measured > 20


SOURCE = dict(
    config=CONFIG,
    seed=3,
    pretrained=dict(path="/a/b.pth", sha256="ab12", method="GeRSP", arch="ResNet-50", epoch=100),
    seconds=12.345,
)


def test_rows_say_what_was_measured_and_where_it_comes_from(tmp_path):
    first, second = made = measured().rows(HOST, **SOURCE)
    assert (first.metric, first.value) == ("AP50", 61.2)
    assert (second.metric, second.value) == ("AP50:95", 38.0)
    assert first.dataset == "DIOR" and first.model == "retinanet_r50_fpn"
    assert first.measured_by == Detection(
        boxes="horizontal", recipe="released", epochs=24, frozen="none"
    )
    assert first.split == SplitRef(name="official split", train="trainval", part="test")
    assert first.pretraining == "GeRSP, 100 epochs" and first.checkpoint_sha256 == "ab12"
    assert first.settings == Pretraining(method="GeRSP", epochs=100)
    assert first.seed == 3 and first.seconds == 12.345
    assert first.threads == torch.get_num_threads() and first.hardware
    line = first.as_dict()
    assert line["protocol"] == PROTOCOL and "/a/b.pth" not in json.dumps(line)
    today = [
        *("dataset", "protocol", "model", "metric", "value", "seed", "pretraining"),
        *("checkpoint_sha256", "config", "commit", "hardware", "versions", "seconds"),
    ]
    assert [name for name in line if name in today] == today
    append_rows(tmp_path / "new" / "r.jsonl", made)
    assert read_rows(tmp_path / "new" / "r.jsonl") == made


def test_each_metric_may_have_fields_of_its_own():
    shots = {f"fewshot_{n}/accuracy/top1": dict(name="top-1", shots=n) for n in (1, 5)}
    evaluation = dict(dataset="EuroSAT", split="eurosat-gersp-1", metrics=shots)
    evaluation["measured_by"] = dict(kind="fewshot", image=dict(size=64))
    one = measured(evaluation, test_cfg=dict(fewshot=dict(shots=(1, 5), draws=3)))
    values = {key: 10.0 * number for number, key in enumerate(shots, 1)}
    rows = one.rows(values, **SOURCE)
    assert [(row.measured_by.shots, row.value) for row in rows] == [(1, 10.0), (5, 20.0)]
    assert {row.measured_by.draws for row in rows} == {3} and rows[0].split.part == "test"
    start = "EuroSAT, Frozen features, logistic regression on"
    assert one.summary(values).splitlines() == [
        f"{start} 1 image per class (mean of 3 draws), 64 px, eurosat-gersp-1, train to test: "
        "top-1 10.00",
        f"{start} 5 images per class (mean of 3 draws), 64 px, eurosat-gersp-1, train to test: "
        "top-1 20.00",
    ]


def test_the_old_form_with_a_sentence_is_read():
    old = dict(DIOR, protocol="my protocol", split="my split")
    del old["measured_by"]
    column = measured(old).columns["coco/bbox_mAP"]
    assert column.measured_by == Unparsed(text="my protocol")
    assert column.sentence == "my protocol, my split" and column.short == "AP50:95"
    assert measured(dict(DIOR, protocol="mine")).columns["coco/bbox_mAP"].measured_by.text == "mine"


@pytest.mark.parametrize(
    "pretrained, text",
    [
        (dict(method="from scratch", path=None, sha256=None), "random"),
        (dict(method=None, path="/home/me/resnet50.pth", sha256="1", epoch=None), "resnet50.pth"),
        (None, None),
    ],
)
def test_pretraining_in_words(pretrained, text):
    (one, _) = measured().rows(HOST, **dict(SOURCE, pretrained=pretrained))
    assert one.pretraining == text
    assert (one.settings.method == "random") == (text == "random")


def test_names_of_models():
    classifier = dict(type="ImageClassifier", backbone=dict(type="mmpretrain.ResNet", depth=50))
    assert measurement.model_name(dict(model=classifier), "finetune_r50_eurosat.py") == "ResNet-50"
    detector = dict(model=dict(type="RetinaNet"))
    for name in ("retinanet_r50_fpn_24e_dior", "retinanet_r50_fpn_1x_dior-r"):
        assert measurement.model_name(detector, f"a/{name}.py") == "retinanet_r50_fpn"
    assert measurement.model_name(dict(detector, evaluation=dict(model="Mine")), "x.py") == "Mine"


def test_config_names_hold_no_path_of_the_machine(tmp_path):
    relative = "configs/downstream/dior/retinanet_r50_fpn_24e_dior.py"
    assert measurement.config_name(ROOT / relative) == relative
    assert measurement.config_name(tmp_path / "mine.py") == "mine.py"
