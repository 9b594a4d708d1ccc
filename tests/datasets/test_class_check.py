"""Annotation files whose classes are not the config's stop a run before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import BaseLoop

from gersp_mm.datasets import annotations as class_check
from gersp_mm.datasets.annotations import check_data
from gersp_mm.engine.hooks import ClassCheckHook
from gersp_mm.utils.errors import UserError

CLASSES = ("airplane", "ship", "vehicle")


def coco(path: Path, names: tuple[str, ...]) -> Path:
    categories = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
    path.write_text(json.dumps(dict(images=[], annotations=[], categories=categories)))
    return path


def config(root: Path, ann_file: str, **changes: Any) -> Config:
    dataset = dict(data_root=str(root), ann_file=ann_file, metainfo=dict(classes=CLASSES))
    return Config(
        dict(
            data_preparation="gersp prepare dior data/dior",
            train_dataloader=dict(dataset={**dataset, **changes}),
        )
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Airplane", "ship", "vehicle"), "the file has Airplane; only the config has airplane"),
        (("ship", "vehicle"), "only the config has airplane"),
        (("ship", "airplane", "vehicle"), "in another order: ship, airplane, vehicle.*this order"),
    ],
)  # fmt: skip
def test_coco_categories_have_to_be_the_classes(names, message, tmp_path):
    path = coco(tmp_path / "train.json", names)
    with pytest.raises(UserError, match=message) as error:
        check_data(config(tmp_path, "train.json"))
    assert str(path) in str(error.value) and "labels would be shifted" in str(error.value)


def test_classes_that_are_left_out_are_counted_and_named(tmp_path):
    path = coco(tmp_path / "train.json", ("airplane", "bridge", "ship", "dam", "vehicle"))
    content = json.loads(path.read_text())
    content["annotations"] = [dict(category_id=number) for number in (1, 2, 2, 2, 5)]
    path.write_text(json.dumps(content))
    assert check_data(config(tmp_path, "train.json")) == [
        f"{path}: metainfo.classes leaves out 2 of 5 classes with 3 of 5 boxes: bridge (3 boxes), "
        "dam (0 boxes)"
    ]
    with pytest.raises(UserError, match="only the config has shipp. Write 'ship' in place of"):
        check_data(config(tmp_path, "train.json", metainfo=dict(classes=("airplane", "shipp"))))
    with pytest.raises(UserError, match=r"'ship' is a string.*Write \('ship',\)"):
        check_data(config(tmp_path, "train.json", metainfo=dict(classes="ship")))


def test_the_file_of_an_evaluator_is_looked_at(tmp_path):
    coco(tmp_path / "train.json", CLASSES)
    cfg = config(tmp_path, "train.json")
    cfg.train_evaluator = dict(
        type="CocoMetric", ann_file=str(coco(tmp_path / "a.json", CLASSES[::-1]))
    )
    with pytest.raises(UserError, match="a.json are in another order: vehicle, ship, airplane"):
        check_data(cfg)


def test_json_of_other_kinds_is_left_alone(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(dict(metainfo={}, data_list=[])))
    for scope, kind in dict(mmpretrain="CustomDataset", mmdet="BaseDetDataset").items():
        cfg = config(tmp_path, "list.json", type=kind)
        cfg.default_scope = scope
        assert check_data(cfg) == []


def test_coco_without_classes_means_those_of_the_host(tmp_path):
    coco(tmp_path / "train.json", CLASSES)
    cfg = config(tmp_path, "train.json", type="CocoDataset", metainfo=None)
    cfg.default_scope = "mmdet"
    with pytest.raises(UserError, match="has ship, vehicle; only the config has apple"):
        check_data(cfg)


def test_the_same_classes_pass_and_are_read_once(tmp_path):
    path = coco(tmp_path / "train.json", CLASSES)
    cfg = config(tmp_path, "train.json")
    check_data(cfg)
    path.write_text("no json any more")
    check_data(cfg)
    class_check._check_coco.cache_clear()
    with pytest.raises(UserError, match="train.json is not a COCO annotation file"):
        check_data(cfg)


def test_wrapped_data_sets_are_looked_into(tmp_path):
    coco(tmp_path / "train.json", CLASSES[:2])
    inner = config(tmp_path, "train.json").train_dataloader.dataset
    for wrapped in (
        dict(type="RepeatDataset", times=2, dataset=inner),
        dict(type="ConcatDataset", datasets=[inner, inner]),
    ):
        with pytest.raises(UserError, match="only the config has vehicle"):
            check_data(Config(dict(train_dataloader=dict(dataset=wrapped))))


def test_dota_text(tmp_path):
    folder = tmp_path / "annfiles"
    folder.mkdir()
    (folder / "a.txt").write_text("imagesource:x\n1 1 9 1 9 9 1 9 ship 0\n")
    (folder / "b.txt").write_text("")
    check_data(config(tmp_path, "annfiles"))
    class_check._check_dota.cache_clear()
    (folder / "b.txt").write_text("1 1 9 1 9 9 1 9 Ship 0\n")
    with pytest.raises(UserError, match=r"b\.txt, line 1: the class 'Ship' is not in the config's"):
        check_data(config(tmp_path, "annfiles"))


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_lists_of_labels(tmp_path):
    (tmp_path / "train.txt").write_text("a b/1.jpg 0\nb/2.jpg 2\n")
    with pytest.raises(UserError, match=r"none of 2 sampled entries exists, such as"):
        check_data(config(tmp_path, "train.txt"))
    write_images(tmp_path, "a b/1.jpg")
    check_data(config(tmp_path, "train.txt"))
    class_check._check_labels.cache_clear()
    (tmp_path / "train.txt").write_text("a/1.jpg 0\nb/2.jpg 3\n")
    with pytest.raises(
        UserError, match=r"train\.txt: 'b/2.jpg' has the label 3, but the 3 classes"
    ):
        check_data(config(tmp_path, "train.txt"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a/1.jpg 0\n".encode("utf-8-sig"), "a UTF-8 byte-order mark"),
        ("a/1.jpg 0\n".encode("utf-16"), "UTF-16"),
        (b"a\\1.jpg 0\r\n", "backslashes in its paths"),
    ],
)
def test_lists_that_the_host_misreads_are_refused(tmp_path, content, found):
    (tmp_path / "train.txt").write_bytes(content)
    write_images(tmp_path, "a/1.jpg")
    with pytest.raises(UserError, match=f"train.txt has {found}, which mmpretrain does not read"):
        check_data(config(tmp_path, "train.txt"))
    check_data(config(tmp_path, "train.txt", type="gersp_mm.LabelledImages"))


def test_parts_that_number_other_class_folders_are_refused(tmp_path):
    def parts(kind: str) -> Config:
        loaders = {
            f"{part}_dataloader": dict(dataset=dict(type=kind, data_root=str(tmp_path / part)))
            for part in ("train", "test")
        }
        return Config(loaders)

    for name in ("train/a", "train/b", "train/c", "test/b", "test/c"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"train and .*test differ \(only train has a\), and each"):
        check_data(parts("CustomDataset"))
    (tmp_path / "test/a").mkdir()
    check_data(parts("CustomDataset"))
    (tmp_path / "test/.ipynb_checkpoints").mkdir()
    check_data(parts("gersp_mm.LabelledImages"))  # which passes it over
    with pytest.raises(UserError, match=r"only test has .ipynb_checkpoints"):
        check_data(parts("mmpretrain.CustomDataset"))


def test_class_folders_have_the_order_of_the_host(tmp_path):
    for name in ("bridge", "dam", "ship"):
        (tmp_path / "images" / name).mkdir(parents=True)

    def with_classes(*classes: str) -> Config:
        dataset = dict(type="CustomDataset", data_root=str(tmp_path / "images"),
                       metainfo=dict(classes=classes))  # fmt: skip
        return Config(dict(train_dataloader=dict(dataset=dataset)))

    check_data(with_classes("bridge", "dam", "ship"))
    check_data(with_classes("a bridge", "a dam", "a ship"))  # names to show
    with pytest.raises(UserError, match="in another order, and CustomDataset numbers them as b"):
        check_data(with_classes("dam", "bridge", "ship"))
    with pytest.raises(UserError, match="3 class folders .* has 2 classes.*uses all folders"):
        check_data(with_classes("bridge", "ship"))


def test_labels_of_a_list_are_those_of_its_folders(tmp_path):
    (tmp_path / "train.txt").write_text("x/airplane/1.jpg 0\nx/vehicle/1.jpg 1\nother/2.jpg 1\n")
    with pytest.raises(UserError, match="'x/vehicle/1.jpg' has the label 1, which is 'ship'"):
        check_data(config(tmp_path, "train.txt"))


def test_data_that_are_not_there_name_the_converter(tmp_path):
    with pytest.raises(
        UserError, match=r"train\.json does not exist.*gersp prepare dior data/dior"
    ) as error:
        check_data(config(tmp_path, "train.json"))
    assert "GERSP_DATA" in str(error.value)
    (tmp_path / "img_dir").mkdir()
    cfg = config(tmp_path, "", data_prefix=dict(img_path="img_dir"))
    with pytest.raises(UserError, match="img_dir does not exist or is empty"):
        check_data(cfg)
    (tmp_path / "img_dir" / "0.png").write_bytes(b"")
    check_data(cfg)


def test_the_hook_looks_at_the_loops_of_the_run_alone(tmp_path):
    coco(tmp_path / "train.json", CLASSES[:2])
    cfg = config(tmp_path, "train.json")
    loop = object.__new__(type("Loop", (BaseLoop,), dict(run=None)))
    runner = SimpleNamespace(cfg=cfg, _train_loop=dict(), _val_loop=None, _test_loop=None)
    ClassCheckHook().before_run(runner)
    runner._train_loop = loop
    with pytest.raises(UserError, match="only the config has vehicle"):
        ClassCheckHook().before_run(runner)
