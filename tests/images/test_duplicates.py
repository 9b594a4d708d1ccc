"""The same pictures in two parts are found, and ones that are merely alike are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gersp_mm.images import duplicates
from gersp_mm.images.duplicates import check_parts, refuse_second_copies, shared_images
from gersp_mm.utils.errors import UserError


def picture(seed: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray, **options: object) -> tuple[str, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return str(path), 0


@pytest.fixture
def train(tmp_path):
    return [save(tmp_path / f"train/a/{n}.jpg", picture(n), quality=90) for n in range(6)]


def test_copies_are_found_whatever_their_folder_format_or_name(train, tmp_path):
    decoded = [np.asarray(Image.open(path)) for path, _ in train]
    test = [
        save(tmp_path / "test/a/0.png", decoded[0]),
        save(tmp_path / "test/a/1.webp", picture(1), quality=80),  # lossy
        save(tmp_path / "test/a/2.TIF", decoded[2]),
        (shutil.copy(train[3][0], tmp_path / "test/renamed.jpg"), 0),
        train[4],  # the file itself
        save(tmp_path / "test/a/5.jpg", picture(100), quality=90),  # another picture of this name
    ]
    test[3] = (str(test[3][0]), 0)
    expected = [(train[number][0], test[number][0]) for number in range(5)]
    assert shared_images(train, test) == expected
    assert shared_images([], test) == shared_images(train, []) == []


def test_a_copy_of_one_name_and_format_is_found(train, tmp_path):
    test = [
        save(tmp_path / f"test/a/{n}.jpg", picture(n if n < 3 else 50 + n), quality=80)
        for n in range(6)
    ]
    assert [pair[1] for pair in shared_images(train, test)] == [path for path, _ in test[:3]]


def test_pictures_that_are_merely_alike_are_no_copies(tmp_path):
    tile = picture(0)
    water = np.clip(np.random.default_rng(1).normal(60, 2, (2, 64, 64, 3)), 0, 255).astype(np.uint8)
    train = [
        save(tmp_path / "train/tile.png", tile),
        save(tmp_path / "train/shifted.png", picture(1)[:, :-4]),
        save(tmp_path / "train/black.png", np.zeros((64, 64, 3), np.uint8)),
        save(tmp_path / "train/water.png", water[0]),
    ]
    test = [
        save(tmp_path / "test/tile.tif", np.clip(tile * 0.95, 0, 255).astype(np.uint8)),
        save(tmp_path / "test/shifted.tif", picture(1)[:, 4:]),
        save(tmp_path / "test/black.png", np.zeros((64, 64, 3), np.uint8)),  # of one colour
        save(tmp_path / "test/water.tif", water[1]),
    ]
    assert shared_images(train, test) == []
    # of another class, a picture of the same name is only compared by its bytes
    other = [(save(tmp_path / "test/tile.webp", tile, lossless=True)[0], 1)]
    assert shared_images(train, other) == []


def test_files_that_cannot_be_read_are_left_out(train, tmp_path):
    bad = tmp_path / "train/a/0.png"
    bad.write_bytes(b"no image")
    missing = str(tmp_path / "missing.jpg")
    assert shared_images([*train, (missing, 0)], [(str(bad), 0), (missing + "x", 0)]) == []


def test_a_few_are_said_and_many_are_refused(train, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(duplicates, "print_log", lambda text, **_: said.append(text))
    test = [save(tmp_path / f"test/a/n{n}.jpg", picture(100 + n)) for n in range(40)]
    check_parts(dict(train=train, test=test), "mine")
    assert said == []
    copies = [(shutil.copy(path, tmp_path / f"test/copy{i}.jpg"), 0) for i, (path, _) in
              enumerate(train[:3])]  # fmt: skip
    few = dict(train=train, test=[*test, *((str(path), 0) for path, _ in copies[:2])])
    check_parts(few, "mine")
    assert len(said) == 1 and said[0].startswith("mine: 2 of 42 test images are also in train, in")
    many = dict(train=train, test=[*test, *((str(path), 0) for path, _ in copies)])
    with pytest.raises(UserError, match="3 of 43 test images are also in train"):
        check_parts(many, "mine")
    check_parts(many, "mine", refuse=False)
    assert said[1].startswith("mine: 3 of 43")


def test_a_data_set_with_a_second_copy_of_its_images_is_refused():
    names = [f"c/{number}" for number in range(4)]
    refuse_second_copies([f"{name}.tif" for name in names] + ["d/0.png"], "here")
    with pytest.raises(UserError, match=r"In here, every image is there twice, as .png and .tif"):
        refuse_second_copies([f"{n}{e}" for n in names for e in (".tif", ".png")], "here")
    with pytest.raises(UserError, match=r"1 of 4 images are there twice, .*c/1.jpg and"):
        refuse_second_copies([f"{name}.tif" for name in names] + ["c/1.jpg"], "here")
