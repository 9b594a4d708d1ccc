"""Cutting scenes into tiles: values, georeference, what is left out, resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from gersp_mm.datasets import MillionAID
from gersp_mm.images import rasters
from gersp_mm.preparation import pack
from gersp_mm.preparation import tiles as tool
from gersp_mm.preparation.common import read_reasons
from gersp_mm.utils.errors import UserError
from tests.support.commands import parse
from tests.support.rasters import surface, write

rasterio = pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A scene of four named bands with a corner without data, a float scene, and a broken one."""
    root = tmp_path_factory.mktemp("scenes")
    (root / "north").mkdir()
    values = (surface(4, 1, (150, 200)) * 3000 + 1).astype(np.uint16)
    values[:, :64, :64] = 0
    path = write(root / "north" / "a.tif", values, metres=10, nodata=0, tiled=True)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("blue", "green", "red", "nir")
    write(root / "b.tif", surface(1, 2, (40, 90)).astype(np.float32))
    (root / "cut.tif").write_bytes((root / "b.tif").read_bytes()[:5000])
    return root


def lines(target):
    return [json.loads(line) for line in (target / "tiles.jsonl").read_text().splitlines()]


def test_tiles_hold_values_names_and_place_of_their_windows(source, tmp_path):
    cuts = tool.tile(source, tmp_path, size=64, workers=2)
    assert {name: (len(cut.tiles), cut.left_out) for name, cut in cuts.items()} == {
        "b.tif": (2, 0), "cut.tif": (0, 0), "north/a.tif": (11, 1),
    }  # fmt: skip
    assert list(read_reasons(tmp_path / "bad_images.txt")) == ["cut.tif"]
    found = lines(tmp_path)
    paths = [line["path"] for line in found]
    assert (tmp_path / "images.txt").read_text().splitlines() == paths
    assert paths[:3] == ["images/b_0_0.tif", "images/b_0_26.tif", "images/north/a_0_64.tif"]
    covered = np.zeros((150, 200), bool)
    with rasterio.open(source / "north" / "a.tif") as scene:
        whole = scene.read()
        for line in found[2:]:
            top, left, height, width = line["window"]
            covered[top : top + height, left : left + width] = True
            with rasterio.open(tmp_path / line["path"]) as tile:
                expected = whole[:, top : top + height, left : left + width]
                assert tile.dtypes == ("uint16",) * 4 and np.array_equal(tile.read(), expected)
                assert tile.descriptions == scene.descriptions and tile.nodata == 0
                assert tile.crs == scene.crs and list(tile.bounds) == line["bounds"]
                assert list(tile.transform)[:6] == line["transform"]
                assert tile.xy(0, 0) == scene.xy(top, left)
            assert line["scene"] == "north/a.tif" and line["crs"] == "EPSG:32633"
            assert line["nodata"] == round((expected == 0).all(axis=0).mean(), 4) <= 0.1
    assert covered[whole[0] > 0].all()
    dataset = MillionAID(str(tmp_path), ann_file="images.txt", bands=(3, 2, 1))
    assert len(dataset) == 13


def test_masks_and_suspected_nodata_travel(tmp_path):
    (tmp_path / "s").mkdir()
    values = (surface(3, 3, (80, 80)) * 200 + 9).astype(np.uint8)
    path = write(tmp_path / "s" / "masked.tif", values)
    mask = np.full((80, 80), 255, np.uint8)
    mask[:, :4] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    values = (surface(2, 4, (80, 80)) * 900 + 5).astype(np.uint16)
    values[:, :, :60] = 0
    write(tmp_path / "s" / "undeclared.tif", values)
    tool.tile(tmp_path / "s", tmp_path / "t", size=80, max_nodata=0.8)
    with rasters.opened(str(tmp_path / "t/images/masked_0_0.tif")) as tile:
        assert np.array_equal(rasters.read(tile, (1, 2, 3)).valid, mask > 0)
    with rasterio.open(tmp_path / "t/images/undeclared_0_0.tif") as tile:
        assert tile.nodata == 0 and tile.crs is None


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_pictures_go_through_one_pixel_scale(source, tmp_path, kind):
    tool.tile(source / "north", tmp_path, size=64, kind=kind, bands=("red", "green", "blue"))
    scale = json.loads((tmp_path / "pixel_scale.json").read_text())
    low, high = np.array(scale["limits"]["4 bands x uint16"]).T
    line = next(line for line in lines(tmp_path) if line["nodata"] == 0)
    top, left, height, width = line["window"]
    with rasterio.open(source / "north" / "a.tif") as scene:
        values = scene.read([3, 2, 1])[:, top : top + height, left : left + width]
    grey = (values.transpose(1, 2, 0) - low) / (high - low) * 255
    with Image.open(tmp_path / line["path"]) as image:
        error = np.abs(np.asarray(image) - grey.clip(0, 255))
    assert error.max() <= 1 if kind == "png" else error.mean() < 3
    assert line["crs"] == "EPSG:32633"


def test_an_interrupted_run_resumes_at_its_scene(source, tmp_path, monkeypatch):
    tool.tile(source, tmp_path / "whole", size=64)
    cut = tool.Cutter.__getitem__
    seen = []

    def killed(self, name):
        seen.append(name)
        if name == "north/a.tif":
            raise KeyboardInterrupt
        return cut(self, name)

    monkeypatch.setattr(tool.Cutter, "__getitem__", killed)
    with pytest.raises(KeyboardInterrupt):
        tool.tile(source, tmp_path / "again", size=64)
    assert not (tmp_path / "again" / "images.txt").exists()
    monkeypatch.setattr(tool.Cutter, "__getitem__", lambda self, n: seen.append(n) or cut(self, n))
    seen.clear()
    tool.tile(source, tmp_path / "again", size=64)
    assert seen == ["cut.tif", "north/a.tif"]  # a bad one is tried again
    for name in ("tiles.jsonl", "images.txt"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "whole" / name).read_text()
    with pytest.raises(UserError, match="size 64 instead of 32"):
        tool.tile(source, tmp_path / "again", size=32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(size=64, overlap=64), "--overlap is at least 0 and smaller"),
        (dict(bands=(1,)), "--bands and --scale are for PNG and JPEG"),
        (dict(kind="png"), "choose the bands"),
        (dict(max_nodata=0.0, size=150), "None of the 1 scenes gave a tile, a.tif"),
    ],
)
def test_wrong_settings_are_refused(source, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        tool.tile(source / "north", tmp_path, **options)
    with pytest.raises(UserError, match="is inside"):
        tool.tile(source, source / "north" / "t")


def test_packing_names_the_tiler_for_scenes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pack, "WHOLE_SIDE", 100)
    folder = tmp_path / "s"
    folder.mkdir()
    write(folder / "a.tif", (surface(1, 1, (60, 120)) * 900).astype(np.uint16))
    Image.new("RGB", (120, 120), "red").save(folder / "photo.tif")
    Image.new("RGB", (120, 120), "red").save(folder / "photo.jpg")
    pack.run(parse(pack, [str(folder), str(tmp_path / "t"), "--workers", "1"]))
    assert "a.tif: 120 x 60 px) and would be decoded whole" in capsys.readouterr().out
    bad = read_reasons(tmp_path / "t" / "bad_images.txt")
    assert list(bad) == ["photo.tif"] and "gersp prepare tiles" in bad["photo.tif"]
