"""What each host makes of a part of the classes, by the labels that it gives."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from gersp_mm.datasets.annotations import check_data
from gersp_mm.engine.config import apply_switches
from gersp_mm.utils.errors import UserError
from tests.support.downstream import downstream_twin
from tests.support.runs import build

DIOR = "dior/retinanet_r50_fpn_24e_dior.py"
SHIPS = ("airplane", "ship")  # the data of the tests have expressway-service-area besides
PARTS = ("train", "val", "test")


def twin(name: str, data: Path, work_dir: Path, classes: tuple[str, ...]) -> Config:
    cfg = downstream_twin(name, data, work_dir)
    for part in PARTS:
        if loader := cfg.get(f"{part}_dataloader"):
            loader.dataset.metainfo = dict(classes=classes)
    for head in ("bbox_head", "decode_head", "auxiliary_head"):
        if head in cfg.model:
            cfg.model[head].num_classes = len(classes)
    cfg.pretrained = None
    apply_switches(cfg)
    return cfg


def data_set(cfg: Config, part: str = "train", **changes: Any) -> Any:
    import_module(f"{cfg.default_scope}.datasets")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build({**cfg[f"{part}_dataloader"].dataset, **changes})


def labels_by_name(dataset: Any) -> dict[tuple, str]:
    """Names of boxes by image and corner, as a data set's labels say them."""
    names = dataset.metainfo["classes"]
    return {
        (info["img_id"], *np.round(box["bbox"][:2])): names[box["bbox_label"]]
        for info in map(dataset.get_data_info, range(len(dataset)))
        for box in info["instances"]
    }


def test_mmdet_by_a_coco_file(downstream_data, tmp_path):
    whole = twin(DIOR, downstream_data, tmp_path, ())
    whole.train_dataloader.dataset.metainfo = dict(classes=Config.fromfile(whole.filename).classes)
    cfg = twin(DIOR, downstream_data, tmp_path, SHIPS)
    (train, test) = check_data(cfg)
    assert "leaves out 18 of 20 classes with 6 of 12 boxes" in train
    assert "expressway-service-area (6 boxes)" in train and "coco/test.json" in test
    everything = labels_by_name(data_set(whole))
    kept = {box: name for box, name in everything.items() if name in SHIPS}
    assert labels_by_name(data_set(cfg)) == kept and set(kept.values()) == set(SHIPS)
    # The other order: the host's labels stay those of the file, and its names are wrong.
    cfg = twin(DIOR, downstream_data, tmp_path, SHIPS[::-1])
    assert labels_by_name(data_set(cfg)) != kept
    with pytest.raises(UserError, match="in another order: airplane, ship"):
        check_data(cfg)


def test_a_subset_trains_and_is_evaluated_and_says_what_it_leaves_out(downstream_data, tmp_path):
    cfg = twin(DIOR, downstream_data, tmp_path, SHIPS)
    runner = build(cfg)
    runner.train()
    assert runner.iter == 2 and runner.model.bbox_head.num_classes == 2
    metric = runner.val_evaluator.metrics[0]
    found = [metric._coco_api.cats[number]["name"] for number in metric.cat_ids]
    assert tuple(found) == SHIPS
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert "metainfo.classes leaves out 18 of 20 classes" in log


def test_validation_by_other_classes_is_refused(downstream_data, tmp_path):
    cfg = twin(DIOR, downstream_data, tmp_path, SHIPS)
    cfg.val_dataloader.dataset.metainfo.classes = ("airplane", "vehicle")
    with pytest.raises(UserError, match="label 1 is 'ship' in training and 'vehicle' here"):
        build(cfg).train()


@pytest.mark.parametrize("order", [SHIPS, SHIPS[::-1]])
def test_mmdet_by_xml_files_takes_names_in_any_order(downstream_data, tmp_path, order):
    cfg = twin(DIOR, downstream_data, tmp_path, order)
    cfg.train_dataloader.dataset.update(
        type="XMLDataset", ann_file="ImageSets/Main/train.txt", img_subdir="JPEGImages-trainval",
        ann_subdir="Annotations/Horizontal Bounding Boxes", data_prefix=dict(sub_data_root=""),
        pipeline=[],
    )  # fmt: skip
    check_data(cfg, ["train"])
    names = labels_by_name(data_set(cfg))
    assert set(names.values()) == set(SHIPS) and len(names) == 4


def test_mmrotate_leaves_no_class_out_and_says_so(downstream_data, tmp_path):
    name = "dior/rotated-retinanet_le90_r50_fpn_1x_dior-r.py"
    cfg = twin(name, downstream_data, tmp_path, SHIPS)
    with pytest.raises(KeyError):
        data_set(cfg)
    with pytest.raises(UserError, match="'expressway-service-area' is not in.*mmrotate cannot"):
        check_data(cfg)
    # All classes that occur, in an order of one's own: labels follow the names.
    classes = ("ship", "expressway-service-area", "airplane")
    cfg = twin(name, downstream_data, tmp_path, classes)
    assert check_data(cfg) == []
    whole = twin(name, downstream_data, tmp_path, Config.fromfile(cfg.filename).classes)
    assert labels_by_name(data_set(cfg)) == labels_by_name(data_set(whole))


@pytest.mark.parametrize("order", [("water", "road"), ("road", "water")])
def test_mmseg_by_names_in_any_order(downstream_data, tmp_path, order):
    cfg = twin("loveda/psanet_r50-d8_80k_loveda.py", downstream_data, tmp_path, order)
    notes = check_data(cfg)
    assert notes == [
        "metainfo.classes leaves out 5 of 7 classes of LoveDADataset: background, building, "
        "barren, forest, agricultural. Their pixels are ignored."
    ]
    steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)]
    labels = data_set(cfg, pipeline=steps)[0]["gt_seg_map"]
    columns = np.arange(1, 8).repeat(18)[:120]  # labels of the file: 3 is road, 4 is water
    expected = np.full((128, 128), 255)
    expected[:, 8:][:, columns == 3] = order.index("road")
    expected[:, 8:][:, columns == 4] = order.index("water")
    assert np.array_equal(labels, expected)


def test_unknown_names_in_mmseg_are_refused(downstream_data, tmp_path):
    cfg = twin("loveda/psanet_r50-d8_80k_loveda.py", downstream_data, tmp_path, ("watre", "road"))
    with pytest.raises(UserError, match="names watre, which LoveDADataset does not have. Write "
                                        "'water' in place of 'watre'"):  # fmt: skip
        check_data(cfg)
