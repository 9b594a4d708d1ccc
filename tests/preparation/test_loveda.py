"""tools/dataset_converters/loveda.py: pairs, labels, links and what is refused."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gersp_mm.datasets.known import LOVEDA
from gersp_mm.utils.errors import UserError
from tests.preparation.test_scene_converters import convert, load_converter
from tests.support.smoke import ROOT

tool = load_converter("loveda")
SIDE = 16


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, labels: list[int], mode: str = "L") -> None:
    """Write a mask with one row of each label, the rest the last label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIDE, SIDE), labels[-1], np.uint8)
    pixels[: len(labels)] = np.array(labels, np.uint8)[:, None]
    mask = Image.fromarray(pixels)
    if mode == "P":
        mask.putpalette([value for n in range(256) for value in (n, 255 - n, 7)])
        assert mask.mode == "P"
    elif mode != "L":
        mask = mask.convert(mode)
    mask.save(path)


def write_pair(area: Path, number: int, labels: list[int] | None, mode: str = "L") -> None:
    write_image(area / "images_png" / f"{number}.png", number)
    if labels is not None:
        write_mask(area / "masks_png" / f"{number}.png", labels, mode)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of train and val, Rural and Urban, and two of test."""
    monkeypatch.setattr(tool, "SIDE", SIDE)
    monkeypatch.setattr(tool, "OFFICIAL", dict(Train=2, Val=2, Test=2))
    root = tmp_path / "loveda"
    write_pair(root / "Train" / "Rural", 0, [0, 1, 2, 3])
    write_pair(root / "Train" / "Urban", 1366, [4, 5, 6, 7], "P")
    write_pair(root / "Val" / "Rural", 2522, [1, 2, 3, 4, 5, 6, 7])
    write_pair(root / "Val" / "Urban", 3514, [7])
    write_pair(root / "Test" / "Rural", 4191, None)
    write_pair(root / "Test" / "Urban", 5167, None)
    return root


def tree(data: Path) -> dict[str, bytes]:
    folders = (data / "img_dir", data / "ann_dir")
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(data).as_posix(): file.read_bytes() for file in files}


def expected_tree(data: Path) -> dict[str, bytes]:
    raw = {}
    for file in data.glob("*/*/*_png/*.png"):
        part, _, kind, name = file.relative_to(data).parts
        folder = "img_dir" if kind == "images_png" else "ann_dir"
        raw[f"{folder}/{part.lower()}/{name}"] = file.read_bytes()
    return raw


def test_both_areas_are_linked_into_one_folder(data, capsys):
    convert(tool, data)
    assert tree(data) == expected_tree(data)
    assert set(tree(data)) == {
        "img_dir/train/0.png", "img_dir/train/1366.png", "ann_dir/train/0.png",
        "ann_dir/train/1366.png", "img_dir/val/2522.png", "img_dir/val/3514.png",
        "ann_dir/val/2522.png", "ann_dir/val/3514.png", "img_dir/test/4191.png",
        "img_dir/test/5167.png",
    }  # fmt: skip
    raw = data / "Train" / "Urban" / "masks_png" / "1366.png"
    assert (data / "ann_dir" / "train" / "1366.png").samefile(raw)
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    lines = printed.splitlines()
    assert lines[2:5] == [
        "train      1      1       2         2",
        "val        1      1       2         2",
        "test       1      1       2         2",
    ]
    start = lines.index("label           train pixels    share  val pixels    share")
    assert lines[start + 2] == "0 no data                 16   3.12 %           0   0.00 %"
    assert lines[start + 5] == "3 road                   208  40.62 %          16   3.12 %"
    assert lines[start + 9] == "7 agricultural           208  40.62 %         416  81.25 %"
    assert lines[-1].endswith(
        "deeplabv3plus_r50-d8_80k_loveda.py --cfg-options pretrained=BACKBONE.pth"
    )


def test_again_after_an_interruption(data, monkeypatch):
    link = os.link
    calls = []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tool, data)
    assert len(tree(data)) == 3
    (data / "img_dir" / "train" / ".0.png.tmp").write_bytes(b"half")
    convert(tool, data)
    assert tree(data) == expected_tree(data)
    assert len(calls) == 4 + 7  # what was there is not linked again


def test_copies_where_links_are_not_possible(data, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    convert(tool, data)
    assert tree(data) == expected_tree(data)
    target = data / "img_dir" / "train" / "0.png"
    assert not target.samefile(data / "Train" / "Rural" / "images_png" / "0.png")
    before = target.stat()
    raw = data / "Train" / "Rural" / "images_png" / "0.png"
    assert before.st_mtime_ns == raw.stat().st_mtime_ns  # spares comparing the bytes next time
    convert(tool, data)
    assert target.stat().st_ino == before.st_ino  # not copied again
    write_image(data / "Train" / "Rural" / "images_png" / "0.png", 77)
    convert(tool, data)
    assert tree(data) == expected_tree(data)


def test_mmseg_reads_the_folders(data):
    from mmseg.datasets import LoveDADataset
    from mmseg.datasets.transforms import LoadAnnotations

    convert(tool, data)
    prefix = dict(img_path="img_dir/train", seg_map_path="ann_dir/train")
    dataset = LoveDADataset(data_root=str(data), data_prefix=prefix, pipeline=[])
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [Path(info["img_path"]).name for info in infos] == ["0.png", "1366.png"]
    assert all(Path(info["seg_map_path"]).is_file() for info in infos)
    assert dataset.reduce_zero_label
    for info, labels in zip(infos, ({255, 0, 1, 2}, {3, 4, 5, 6})):  # the second has a palette
        loaded = LoadAnnotations().transform(dict(info))
        assert set(np.unique(loaded["gt_seg_map"])) == labels
    assert tuple(LOVEDA.classes) == tuple(LoveDADataset.METAINFO["classes"])


# -------------------------------------------------------------------- one number in both areas


def test_one_number_in_both_areas_gets_the_area_in_front(data):
    write_pair(data / "Train" / "Urban", 0, [7])
    write_image(data / "Train" / "Urban" / "images_png" / "0.png", 99)
    convert(tool, data, "--allow-incomplete")  # of three train images
    names = {name for name in tree(data) if "train" in name}
    assert names == {
        f"{folder}/train/{name}.png"
        for folder in ("img_dir", "ann_dir")
        for name in ("rural_0", "urban_0", "1366")
    }
    content = (data / "Train" / "Urban" / "masks_png" / "0.png").read_bytes()
    assert tree(data)["ann_dir/train/urban_0.png"] == content


def test_same_image_in_both_areas_is_taken_once(data):
    for kind in ("images_png", "masks_png"):
        source = data / "Train" / "Rural" / kind / "0.png"
        shutil.copy(source, data / "Train" / "Urban" / kind)
    shutil.copy(
        data / "Test" / "Rural" / "images_png" / "4191.png", data / "Test" / "Urban" / "images_png"
    )
    convert(tool, data)
    assert sorted(p.name for p in (data / "img_dir" / "train").iterdir()) == ["0.png", "1366.png"]
    assert sorted(p.name for p in (data / "img_dir" / "test").iterdir()) == ["4191.png", "5167.png"]


def test_one_number_in_both_areas_of_test_is_refused(data):
    write_image(data / "Test" / "Urban" / "images_png" / "4191.png", 99)
    with pytest.raises(
        UserError, match=r"Rural.*4191.png and .*Urban.*different images of one num"
    ):
        convert(tool, data)
    assert not (data / "img_dir").exists()


# ------------------------------------------------------------------------------- what is refused


def break_mask(data: Path, **change) -> Path:
    path = data / "Train" / "Rural" / "masks_png" / "0.png"
    if "size" in change:
        Image.new("L", change["size"]).save(path)
    elif "truncate" in change:
        path.write_bytes(path.read_bytes()[:40])
    else:
        write_mask(path, change["labels"], change.get("mode", "L"))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels=[1, 8]), "label 8, but LoveDA has 0 to 7 .EarthVQA, its successor"),
        (dict(labels=[255]), "label 255, but LoveDA has 0 to 7"),
        (dict(labels=[1, 2], mode="RGB"), "mode RGB, but label numbers of one channel"),
        (dict(labels=[1, 2], mode="RGBA"), "mode RGBA, but label numbers of one channel"),
        (dict(labels=[1], mode="1"), "mode 1, but label numbers of one channel with 8 bit"),
        (dict(labels=[1], mode="LA"), "mode LA, but label numbers of one channel with 8 bit"),
        (dict(size=(16, 8)), "16x8, its image is 16x16"),
        (dict(truncate=True), "(OSError|UnidentifiedImageError|SyntaxError|ValueError)"),
    ],
)
def test_masks_that_are_refused(data, change, message):
    path = break_mask(data, **change)
    with pytest.raises(
        UserError, match=f"1 of 2 pairs of Train are unusable:\n  {path}: {message}"
    ):
        convert(tool, data)
    assert not (data / "img_dir").exists() and not (data / "ann_dir").exists()


def test_damaged_image_is_refused(data):
    (data / "Test" / "Urban" / "images_png" / "5167.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"1 of 2 pairs of Test .*\n.*5167.png: not an image"):
        convert(tool, data)


@pytest.mark.parametrize("kind", ["images_png", "masks_png"])
def test_what_stands_alone_is_refused(data, kind):
    (data / "Val" / "Rural" / kind / "2522.png").unlink()
    with pytest.raises(UserError, match=r"1 files of .*Val.Rural have no counterpart .*2522.png"):
        convert(tool, data)


def test_files_of_an_earlier_conversion_are_refused(data):
    convert(tool, data)
    write_image(data / "img_dir" / "val" / "rural_3.png", 3)
    with pytest.raises(UserError, match=r"img_dir.val holds files that Val does not .*rural_3.png"):
        convert(tool, data)


def test_area_that_is_there_twice_is_refused(data):
    shutil.copytree(data / "Val", data / "copy" / "Val")
    with pytest.raises(UserError, match="Val/Rural appears twice, as"):
        convert(tool, data)


def test_folder_without_any_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no Train/Rural/images_png"):
        convert(tool, tmp_path)


def test_capital_endings_are_read(data):
    expected = expected_tree(data)
    for file in list(data.glob("Train/*/*/*.png")):
        file.rename(file.with_suffix(".PNG"))
    convert(tool, data)
    assert tree(data) == expected


def test_other_formats_are_refused_with_what_was_found(data):
    for file in list((data / "Train" / "Rural" / "images_png").iterdir()):
        file.rename(file.with_suffix(".tif"))
    with pytest.raises(UserError, match="Rural/images_png holds no PNG files but 0.tif. Fetch the"):
        convert(tool, data)


def test_label_255_is_refused_and_7_is_not(data):
    write_mask(data / "Train" / "Rural" / "masks_png" / "0.png", [0, 1, 7, 255])
    with pytest.raises(UserError, match="0.png: label 255, but LoveDA has 0 to 7"):
        convert(tool, data)


# --------------------------------------------------------------------------------------- warnings


def test_counts_sizes_and_absent_labels_are_warned_about(data, monkeypatch, capsys):
    monkeypatch.setattr(tool, "SIDE", 1024)
    monkeypatch.setattr(tool, "OFFICIAL", dict(Train=2522, Val=1669, Test=1796))
    shutil.rmtree(data / "Test")
    for area, number in (("Rural", 2522), ("Urban", 3514)):
        write_mask(data / "Val" / area / "masks_png" / f"{number}.png", [0, 1, 2, 3, 4, 5, 6])
    with pytest.raises(UserError, match="not the complete LoveDA:\n  Train has 2 images, the off"):
        convert(tool, data)
    assert not (data / "img_dir").exists()
    capsys.readouterr()
    convert(tool, data, "--allow-incomplete")
    printed, warned = capsys.readouterr()
    warnings = [line for line in printed.splitlines() if "WARNING" in line]
    assert warnings[0].startswith("WARNING: 2 images are not 1024x1024: ")
    assert warnings[2] == (
        "WARNING: no mask of Val has 7 agricultural: were the labels shifted to 0 to 6, as for the "
        "test server?"
    )
    assert [line for line in warned.splitlines() if "WARNING" in line] == [
        "WARNING: Train has 2 images, the official one has 2,522",
        "WARNING: Val has 2 images, the official one has 1,669",
    ]  # Test is not there at all, which only a submission needs
    assert not (data / "img_dir" / "test").exists()


# --------------------------------------------------------------------------------------- archives


def test_archives_are_unpacked_once(data, tmp_path):
    archives = []
    for part in ("Train", "Val", "Test"):
        archives.append(tmp_path / f"{part}.zip")
        with zipfile.ZipFile(archives[-1], "w") as content:
            for file in (data / part).rglob("*.png"):
                content.write(file, file.relative_to(data))
    target = tmp_path / "new"
    convert(tool, target, "--archives", *archives)
    assert tree(target) == expected_tree(data)
    assert (target / "Train" / "Train" / "Rural").is_dir()
    convert(tool, target, "--archives", *archives)
    assert tree(target) == expected_tree(data)
    with pytest.raises(UserError, match="would both be unpacked into .*Val: rename one"):
        convert(tool, target, "--archives", tmp_path / "a" / "Val.zip", tmp_path / "b" / "Val.zip")


def zipped(data: Path, path: Path, windows: bool = False, macos: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(data.rglob("*.png")):
            name = file.relative_to(data).as_posix()
            info = zipfile.ZipInfo(name)
            info.filename = name.replace("/", "\\") if windows else name
            archive.writestr(info, file.read_bytes())
            if macos:
                archive.writestr(f"__MACOSX/{name}", b"\0\5\x16\7 of a Mac")
                archive.writestr(f"{file.parent.relative_to(data)}/._{file.name}", b"of a Mac")
    return path


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_archives_of_other_systems(data, tmp_path, system):
    archive = zipped(data, tmp_path / "LoveDA.zip", **{system: True})
    target = tmp_path / "new"
    convert(tool, target, "--archives", archive)
    assert tree(target) == expected_tree(data)
    unpacked = [p.relative_to(target / "LoveDA") for p in (target / "LoveDA").rglob("*.png")]
    assert sorted(unpacked) == sorted(p.relative_to(data) for p in data.rglob("*.png"))


def test_real_samples(tmp_path, capsys):
    source = ROOT / "data" / "LoveDA"
    if not source.is_dir():
        pytest.skip("no LoveDA in data/")
    shutil.copytree(source, tmp_path / "loveda")
    convert(tool, tmp_path / "loveda")
    printed = capsys.readouterr().out
    assert "7 agricultural     1,494,224  47.50 %" in printed
    assert "0 no data                  0   0.00 %" in printed
    assert len(tree(tmp_path / "loveda")) == 6
