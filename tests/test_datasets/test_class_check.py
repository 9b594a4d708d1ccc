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


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_check, "_checked", set())


def coco(path: Path, names: tuple[str, ...]) -> Path:
    categories = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
    path.write_text(json.dumps(dict(images=[], annotations=[], categories=categories)))
    return path


def config(root: Path, ann_file: str, **changes: Any) -> Config:
    dataset = dict(data_root=str(root), ann_file=ann_file, metainfo=dict(classes=CLASSES))
    return Config(
        dict(
            data_preparation="python tools/dataset_converters/dior.py data/dior",
            train_dataloader=dict(dataset={**dataset, **changes}),
        )
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Airplane", "ship", "vehicle"), "the file has Airplane; only the config has airplane"),
        (("ship", "vehicle"), "only the config has airplane"),
        ((*CLASSES, "bridge"), "only the file has bridge"),
        (("ship", "airplane", "vehicle"), "in another order: ship, airplane, vehicle"),
    ],
)  # fmt: skip
def test_coco_categories_have_to_be_the_classes(names, message, tmp_path):
    path = coco(tmp_path / "train.json", names)
    with pytest.raises(UserError, match=message) as error:
        check_data(config(tmp_path, "train.json"))
    assert str(path) in str(error.value) and "labels would be shifted" in str(error.value)


def test_the_same_classes_pass_and_are_read_once(tmp_path):
    path = coco(tmp_path / "train.json", CLASSES)
    cfg = config(tmp_path, "train.json")
    check_data(cfg)
    path.write_text("no json any more")
    check_data(cfg)
    class_check._checked.clear()
    with pytest.raises(UserError, match="train.json is no COCO annotation file"):
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
    class_check._checked.clear()
    (folder / "b.txt").write_text("1 1 9 1 9 9 1 9 Ship 0\n")
    with pytest.raises(UserError, match=r"b\.txt, line 1: the class 'Ship' is not in the config's"):
        check_data(config(tmp_path, "annfiles"))


def test_lists_of_labels(tmp_path):
    (tmp_path / "train.txt").write_text("a b/1.jpg 0\nb/2.jpg 2\n")
    check_data(config(tmp_path, "train.txt"))
    class_check._checked.clear()
    (tmp_path / "train.txt").write_text("a/1.jpg 0\nb/2.jpg 3\n")
    with pytest.raises(
        UserError, match=r"train\.txt: 'b/2.jpg' has the label 3, not one from 0 to 2"
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


def test_data_that_are_not_there_name_the_converter(tmp_path):
    with pytest.raises(
        UserError, match=r"train\.json does not exist.*converters/dior\.py"
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
