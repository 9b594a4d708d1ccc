"""Unlabelled images from folders and lists."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from gersp_mm.datasets import LabelledImages, MillionAID
from gersp_mm.utils.errors import UserError
from tests.support.smoke import write_images


def names(dataset: MillionAID, root: Path) -> list[str]:
    paths = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_flat_folder_is_sorted_whatever_the_order_of_creation(tmp_path):
    files = [f"P{number:07d}.jpg" for number in (5, 2, 9, 1, 7, 3)]
    one, other = touch(tmp_path / "one", *files), touch(tmp_path / "other", *reversed(files))
    assert names(MillionAID(str(one)), one) == sorted(files)
    assert names(MillionAID(str(other)), other) == sorted(files)


def test_nested_folders_upper_case_endings_and_other_files(tmp_path):
    touch(
        tmp_path,
        "b/deep/er/1.JPG",
        "a/2.TiF",
        "a/ä ö/3.jpeg",
        "0.webp",
        "z.tiff",
        "readme.txt",
        "a/2.tfw",
        "noending",
        "a/._2.jpg",
    )
    expected = ["0.webp", "a/2.TiF", "a/ä ö/3.jpeg", "b/deep/er/1.JPG", "z.tiff"]
    assert names(MillionAID(str(tmp_path)), tmp_path) == expected
    tiffs = MillionAID(str(tmp_path), extensions=(".tif", ".TIFF"))
    assert names(tiffs, tmp_path) == ["a/2.TiF", "z.tiff"]


def test_list_is_taken_as_it_is_written(tmp_path):
    files = ["x/2.jpg", "1 with spaces.jpg", "Zürich/влтава.png", "x/0.any"]
    listing = "\r\n".join([files[0], "", files[1], "   ", files[2], files[3], "", ""])
    (tmp_path / "list.txt").write_bytes(listing.encode())
    touch(tmp_path, *files)
    assert names(MillionAID(str(tmp_path), ann_file="list.txt"), tmp_path) == files
    # as some editors begin a file
    (tmp_path / "list.txt").write_bytes(listing.encode("utf-8-sig"))
    assert names(MillionAID(str(tmp_path), ann_file="list.txt"), tmp_path) == files


def test_list_elsewhere_and_prefix(tmp_path):
    touch(tmp_path / "data/test", "a.jpg", "b.jpg")
    (tmp_path / "mine.txt").write_text("b.jpg\n")
    root = str(tmp_path / "data")
    absolute = MillionAID(root, ann_file=str(tmp_path / "mine.txt"), data_prefix="test")
    assert names(absolute, tmp_path) == ["data/test/b.jpg"]
    assert names(MillionAID(root, data_prefix="test"), tmp_path) == [
        "data/test/a.jpg",
        "data/test/b.jpg",
    ]


def test_absolute_paths_in_a_list_stay(tmp_path):
    path = touch(tmp_path / "archive", "a.jpg") / "a.jpg"
    (tmp_path / "list.txt").write_text(f"{path}\n")
    dataset = MillionAID(str(tmp_path), ann_file="list.txt")
    assert dataset.get_data_info(0)["img_path"] == str(path)


def test_missing_folder_names_it_and_the_fix(tmp_path):
    missing = tmp_path / "nowhere"
    with pytest.raises(
        UserError, match=r"nowhere.* is not a folder\. Set train_dataloader\.\S+\.data_root"
    ):
        MillionAID(str(missing))
    file = touch(tmp_path, "images.zip") / "images.zip"
    with pytest.raises(
        UserError, match=r"images.zip.* is not a folder\. Set train_dataloader\.\S+\.data_root"
    ):
        MillionAID(str(file))


def test_missing_list_names_it_and_the_fix(tmp_path):
    with pytest.raises(UserError, match=r"train\.txt is not a list\. Set .*ann_file to a list"):
        MillionAID(str(touch(tmp_path, "a.jpg")), ann_file="train.txt")


def test_folder_without_images_names_the_endings_looked_for(tmp_path):
    touch(tmp_path, "a.txt")
    with pytest.raises(UserError, match=r"holds no image \(looked for: .*\.png"):
        MillionAID(str(tmp_path))
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"holds no image \(looked for: one path per line\)"):
        MillionAID(str(tmp_path), ann_file="list.txt")


def test_built_by_name_serialised_and_cut(tmp_path):
    touch(tmp_path, *(f"{number}.png" for number in range(6)))
    cfg = dict(type="gersp_mm.MillionAID", data_root=str(tmp_path), indices=4)
    dataset = DATASETS.build(cfg)
    assert isinstance(dataset, MillionAID)
    assert len(dataset) == 4
    assert dataset.data_list == [] and len(dataset.data_bytes) > 0  # one array, not 10^6 dicts
    assert names(pickle.loads(pickle.dumps(dataset)), tmp_path) == [f"{n}.png" for n in range(4)]
    assert "gt_label" not in dataset.get_data_info(0)
    assert len(MillionAID(str(tmp_path), serialize_data=False).data_list) == 6


def rows(dataset) -> list[tuple[str, int]]:
    infos = map(dataset.get_data_info, range(len(dataset)))
    return [(info["img_path"], info["gt_label"]) for info in infos]


@pytest.mark.parametrize("indices", [None, 5, [7, 2, 3]])
@pytest.mark.parametrize("serialize", [True, False])
def test_labelled_images_are_custom_datasets(pair_data, tmp_path, indices, serialize):
    options = dict(indices=indices, serialize_data=serialize)
    folder = str(pair_data / "natural")
    theirs, ours = CustomDataset(folder, **options), LabelledImages(folder, **options)
    assert rows(ours) == rows(theirs)
    assert ours.metainfo["classes"] == theirs.metainfo["classes"]
    assert ours.get_gt_labels().tolist() == list(theirs.get_gt_labels())
    assert ours.get_cat_ids(1) == theirs.get_cat_ids(1)
    listing = tmp_path / "list.txt"
    lines = [f"{Path(path).relative_to(folder)} {label + 3}" for path, label in rows(theirs)]
    listing.write_text("\n".join([*lines, "class_0/with space.jpg 7", ""]))
    listed = dict(ann_file=str(listing), serialize_data=serialize)
    assert rows(LabelledImages(folder, **listed)) == rows(CustomDataset(folder, **listed))


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg cat", "a.jpg -1", "7"])
def test_a_line_without_a_label_is_named(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"b.jpg 0\n{line}\n")
    with pytest.raises(UserError, match=f"list.txt, line 2: expected `path label`, found '{line}'"):
        LabelledImages(str(tmp_path), ann_file="list.txt")


def test_hidden_folders_are_not_counted_as_classes(tmp_path):
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / "b", 1)
    write_images(tmp_path / ".ipynb_checkpoints", 1)
    write_images(tmp_path / "@eaDir", 1)
    images = LabelledImages(data_root=str(tmp_path))
    unread = LabelledImages(data_root=str(tmp_path), lazy_init=True)
    assert unread.count_classes() == 2 == len(set(images.get_gt_labels()))
