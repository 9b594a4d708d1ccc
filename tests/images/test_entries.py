"""Lists none of whose entries is there, and why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from gersp_mm.datasets.annotations import check_data
from gersp_mm.datasets.sources import MillionAID
from gersp_mm.utils.errors import UserError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for number in range(40):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


REASONS = {
    "named twice": ("train/{}.png", "data/train", "The folder train appears twice"),
    "left out": ("{}.png", "data", "The images lie in .*/data/train: correct"),
    "of another machine": ("/home/me/{}.png", "data/train", "Its paths are absolute"),
    "no folder": ("{}.png", "dat/train", "The folder .*dat/train/? does not exist"),
    "current folder": ("data/train/{}.png", "elsewhere", "relative to the current folder"),
    "windows": ("a\\b\\{}.png", "data/train", "The folder a/b is not in .*train/?: remove it"),
    "nothing like it": ("x{}.jpg", "data/train", "Correct data_root or data_prefix"),
}


@pytest.mark.parametrize("kind", REASONS)
def test_the_likely_reason_is_named_before_the_first_step(images, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    entry, folder, text = REASONS[kind]
    (tmp_path / "list.txt").write_text("".join(entry.format(n) + "\n" for n in range(40)))
    with pytest.raises(UserError, match=text) as caught:
        MillionAID(str(tmp_path / folder), ann_file=str(tmp_path / "list.txt"))
    text = f"{tmp_path}/list.txt: none of 20 sampled entries exists, such as "
    assert str(caught.value).startswith(text)


def test_some_missing_images_are_left_to_the_reader(images, tmp_path):
    names = [f"{n}.png" for n in (*range(100, 139), 3)]
    (tmp_path / "list.txt").write_text("\n".join([*names[-1:], *names[:-1]]))
    assert len(MillionAID(str(images), ann_file=str(tmp_path / "list.txt"))) == 40


def write_coco(path, names):
    content = dict(
        images=[dict(id=n, file_name=name) for n, name in enumerate(names)],
        categories=[dict(id=1, name="ship")],
        annotations=[],
    )
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["coco", "classes"])
def test_lists_of_the_hosts(images, tmp_path, kind):
    name = "list.json" if kind == "coco" else "list.txt"
    prefix = dict(img="train") if kind == "coco" else dict(img_path="train")
    dataset = dict(
        type="mmdet.CocoDataset" if kind == "coco" else "CustomDataset",
        data_root=str(tmp_path / "data"), ann_file=name, data_prefix=prefix,
        metainfo=dict(classes=("ship",)),
    )  # fmt: skip
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))

    def write(entries):
        path = tmp_path / "data" / name
        if kind == "coco":
            write_coco(path, entries)
        else:
            path.write_text("".join(f"{entry} 0\n" for entry in entries))

    write([f"train/{n}.png" for n in range(5)])
    with pytest.raises(UserError, match="none of 5 .*train/train/0.png. The folder train appears"):
        check_data(cfg)
    write([f"{n}.png" for n in range(5)])
    check_data(cfg)
