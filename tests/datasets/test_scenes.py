"""Scenes: windows of rasters that are even, repeatable, valid and exact over a resume."""

import json
import shutil

import numpy as np
import pytest
import torch

from gersp_mm.datasets import PairedDataset, PairIndex, Scenes
from gersp_mm.images.decode import BadImageError
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import seed_everything
from tests.support import runs
from tests.support.rasters import surface, write

pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes of 16 bits, one with a border without data, at two ground scales."""
    root = tmp_path_factory.mktemp("scenes")
    (root / "north").mkdir()
    values = (surface(4, 1, (300, 400)) * 3000 + 1).astype(np.uint16)
    values[:, np.add.outer(np.arange(300), np.arange(400)) < 200] = 0
    tiled = dict(tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    write(root / "north" / "a.tif", values, metres=10, nodata=0, **tiled)
    values = (surface(4, 2, (500, 300)) * 3000 + 1).astype(np.uint16)
    write(root / "b.tif", values, metres=5, **tiled)
    return root


def windows(scenes: Scenes, epoch: int = 0, every: int = 1) -> list[dict]:
    found = []
    for index in range(0, len(scenes), every):
        seed_everything(epoch, index)
        found.append({**(info := scenes.get_data_info(index)), **scenes.read_window(info)})
    return found


def test_windows_cover_all_data_and_hold_little_else(folder):
    scenes = Scenes(str(folder), window=64, bands=(3, 2, 1))
    found = windows(scenes)
    assert {one["img"].dtype for one in found} == {torch.uint8}
    for scene in scenes.scenes:
        valid = np.ones((scene.info.height, scene.info.width), bool)
        if scene.path.endswith("a.tif"):
            valid = np.add.outer(np.arange(300), np.arange(400)) >= 200
        covered = np.zeros(valid.shape, int)
        lacking = []
        for one in found:
            if one["img_path"] == scene.path:
                top, left, height, width = one["window"]
                covered[top : top + height, left : left + width] += 1
                part = valid[top : top + height, left : left + width]
                lacking.append(1 - part.mean())
                assert one["img"].shape == (3, 64, 64)
        assert np.mean(lacking) < 0.01 and max(lacking) <= 0.1
        assert (covered[valid] > 0).mean() > 0.995
        assert 3 < covered[valid].mean() < 6
    later = windows(scenes, 1, every=40)
    assert any(one["window"] != two["window"] for one, two in zip(found[::40], later))
    again = windows(Scenes(str(folder), window=64, bands=(3, 2, 1)), every=40)
    assert all(torch.equal(one["img"], two["img"]) for one, two in zip(found[::40], again))


def test_values_are_those_of_the_window(folder):
    import rasterio

    scenes = Scenes(str(folder), files="b.tif", window=64, bands=(3, 2, 1), scale=(0, 3000))
    one = windows(scenes, every=30)[1]
    top, left, height, width = one["window"]
    with rasterio.open(folder / "b.tif") as file:
        area = rasterio.windows.Window(left, top, width, height)
        values = file.read([3, 2, 1], window=area).astype(float)
    assert np.abs(one["img"].numpy() - (values / 3000 * 255).clip(0, 255)).max() <= 1


def test_metres_give_the_same_ground_at_every_scale(folder):
    scenes = Scenes(str(folder), window="400 m", jitter="100 m", bands=1)
    sides = {}
    for one in windows(scenes, every=7):
        sides.setdefault(one["img_path"][-5:], []).append(one["window"][2])
    assert 30 <= min(sides["a.tif"]) <= 33 and 47 <= max(sides["a.tif"]) <= 50
    assert 60 <= min(sides["b.tif"]) <= 66 and 94 <= max(sides["b.tif"]) <= 100


def test_large_windows_are_reduced_and_small_scenes_are_used_whole(folder):
    reduced = windows(Scenes(str(folder), files="b.tif", window=256, read_size=32, bands=1))[0]
    assert reduced["window"][2:] == (256, 256) and reduced["img"].shape == (3, 32, 32)
    (whole,) = {one["window"] for one in windows(Scenes(str(folder), files="b.tif", window=2000,
                                                        bands=1))}  # fmt: skip
    assert whole == (0, 0, 500, 300)


def test_a_neighbour_key_lies_close_by(folder):
    scenes = Scenes(str(folder), window=64, neighbour_key=20, bands=1)
    shifts = []
    for one in windows(scenes, every=6):
        shifts.append(np.subtract(one["key_window"][:2], one["window"][:2]))
        assert one["key_img"].shape == one["img"].shape
    if_unmoved = np.abs(shifts).max(axis=1) <= 21
    assert if_unmoved.mean() > 0.9 and np.abs(shifts).max() > 10


def test_undeclared_borders_are_suspected_and_said(folder, tmp_path, caplog):
    values = (surface(3, 3, (300, 300)) * 900 + 5).astype(np.uint16)
    values[:, :, :120] = 0
    write(tmp_path / "a.tif", values)
    scenes = Scenes(str(tmp_path), window=64)
    (scene,) = scenes.scenes
    assert scene.suspected and scene.nodata == 0 and scene.bits == 10
    assert 0.5 < scene.valid_share < 0.7
    assert all(one["window"][1] >= 105 for one in windows(scenes))
    assert scenes.pixel_scale.limits["3 bands x uint16"][0][0] >= 5
    trusting = Scenes(str(tmp_path), window=64, nodata=None)
    assert not trusting.scenes[0].suspected and trusting.scenes[0].valid_share == 1
    told = Scenes(str(tmp_path), window=64, nodata=0).scenes[0]
    assert (told.nodata, told.suspected) == (0, False)
    assert told.valid_share == scene.valid_share and len(told.cells) == len(scene.cells)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(window="64"), "window='64': give pixels such as 512, or metres such as '384 m'"),
        (dict(window="1.2.3 m"), "window='1.2.3 m': give pixels such as 512"),
        (dict(nodata="x"), "nodata='x': give a number, 'auto' or None"),
        (dict(files="north"), "files='north' is a folder. Give it as data_root"),
        (dict(bands=1.0), r"bands=1.0: choose three bands, or one"),
        (dict(window="64 m", jitter=3), "jitter=3 is in pixels and window in metres"),
        (dict(window=64, jitter="3 m"), "jitter='3 m': give pixels"),
        (dict(window=64, jitter=64), "jitter=64 must be smaller than window=64"),
        (dict(files="*.jp2"), "there is no scene in"),
        (dict(bands=(9, 2, 1)), "there is no band 9"),
        (dict(), "4 bands x uint16: choose the bands"),
    ],
)
def test_wrong_settings_are_refused(folder, options, words):
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        Scenes(str(folder), **options).pixel_scale  # noqa: B018


def test_metres_need_a_ground_scale_and_one_scene_has_to_be_usable(tmp_path):
    write(tmp_path / "a.tif", (surface(1) * 99).astype(np.uint16))
    with pytest.raises(UserError, match="none of 1 scenes .*a.tif: it has no ground scale"):
        Scenes(str(tmp_path), window="64 m")
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(40))
    with pytest.raises(UserError, match="none of 1 scenes can be used, such as"):
        Scenes(str(tmp_path), window=64)


def test_a_sample_is_a_function_of_its_index_for_any_number_of_workers(folder):
    source = dict(type="gersp_mm.Scenes", data_root=str(folder), window=64, bands=(3, 2, 1))
    pipeline = [dict(type="gersp_mm.ViewAugmentation", size=32)]
    dataset = PairedDataset(remote_sensing=source, rs_pipeline=pipeline)
    indices = [PairIndex(number, 0, 7 + number) for number in range(12)]
    here = [dataset[index]["inputs"] for index in indices]
    loader = torch.utils.data.DataLoader(dataset, None, sampler=indices, num_workers=2)
    for mine, theirs in zip(here, loader):
        for view in ("rs_query", "rs_key"):
            assert torch.equal(mine[view], theirs["inputs"][view])
    assert not torch.equal(here[0]["rs_query"], here[0]["rs_key"])


def test_damaged_pixels_are_replaced_and_reported(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "s")
    path = tmp_path / "s" / "b.tif"
    scenes = Scenes(str(tmp_path / "s"), window=64, bands=1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    forget = Scenes(str(tmp_path / "s"), window=64, bands=1)  # looks at all pixels
    assert list(forget.bad) == [str(path)] and "IReadBlock failed" in forget.bad[str(path)]
    dataset = PairedDataset(remote_sensing=scenes)
    bad = {}
    for number in range(len(scenes)):
        sample = dataset[PairIndex(number, 0, number)]["data_samples"]
        bad.update({path: reason for _, path, reason in sample.bad_images})
    assert list(bad) == [str(path)] and "IReadBlock failed" in bad[str(path)]


class TestRun:
    """A run on scenes: what it keeps, and what it refuses when it is resumed."""

    def config(self, data, folder, work_dir, **options):
        cfg = runs.demo_config(data, work_dir, iterations=4, epochs=2)
        cfg.train_dataloader.dataset.remote_sensing = dict(
            type="gersp_mm.Scenes", data_root=str(folder), window=160, bands=(3, 2, 1), **options
        )
        return cfg

    def test_resumed_exactly_with_its_scale_and_census(self, pair_data, folder, tmp_path):
        runs.train(self.config(pair_data, folder, tmp_path / "whole"))
        straight = tmp_path / "whole" / "epoch_2.pth"
        scale = json.loads((tmp_path / "whole" / "pixel_scale.json").read_text())
        assert list(scale["remote_sensing"]["limits"]) == ["4 bands x uint16"]
        census = json.loads((tmp_path / "whole" / "census.json").read_text())["remote_sensing"]
        assert [scene["windows"] for scene in census] == [
            len(scene.cells) for scene in Scenes(str(folder), window=160, bands=1).scenes
        ]
        meta = runs.load(next((tmp_path / "whole").glob("*_backbone.pth")))["meta"]
        assert meta["pixel_scale"] == scale["remote_sensing"]

        cfg = self.config(pair_data, folder, tmp_path / "again")
        runs.train(runs.resumed(cfg, tmp_path / "whole" / "epoch_1.pth"))
        runs.assert_same_training_state(straight, tmp_path / "again" / "epoch_2.pth")

        cfg = self.config(pair_data, folder, tmp_path / "other", scale=(0, 2000))
        with pytest.raises(UserError, match=r"used scale='percentile' and bands=\(3, 2, 1\)"):
            runs.train(runs.resumed(cfg, tmp_path / "whole" / "epoch_1.pth"))

        moved = tmp_path / "moved"
        shutil.copytree(folder, moved)
        cfg = runs.resumed(self.config(pair_data, moved, tmp_path / "c"), straight)
        assert runs.train(cfg).iter > 0  # another path of the same scenes
        write(moved / "b.tif", (surface(4, 9, (500, 300)) * 3000).astype(np.uint16), metres=5)
        cfg = self.config(pair_data, moved, tmp_path / "changed")
        with pytest.raises(UserError, match="1 scenes were added, removed or replaced.*: b.tif"):
            runs.train(runs.resumed(cfg, tmp_path / "whole" / "epoch_1.pth"))


def test_too_little_data_is_said(folder):
    scenes = Scenes(str(folder), files="north/a.tif", window=64, bands=1, max_nodata=0.0)
    scenes.scenes[0].cells[:] = 0  # in the corner without data
    with pytest.raises(BadImageError, match="no window at row 1.*has more than 100% of data"):
        scenes.read_window(scenes.get_data_info(0))


def test_scenes_of_other_bands_and_cut_files_are_left_out_and_named(tmp_path):
    for number in range(3):
        values = (surface(3, number, (200, 200)) * 3000).astype(np.uint16)
        write(tmp_path / f"{number}.tif", values, compress="deflate", tiled=True, blockxsize=64,
              blockysize=64)  # fmt: skip
    write(tmp_path / "four.tif", (surface(4) * 900).astype(np.uint16))
    cut = tmp_path / "0.tif"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    scenes = Scenes(str(tmp_path), window=64)
    assert sorted(path[-8:] for path in scenes.bad) == [str(cut)[-8:], "four.tif"]
    assert "choose the bands" in scenes.bad[str(tmp_path / "four.tif")]
    assert scenes.file_count == 4 and len(windows(scenes, every=9)) > 10


def test_bands_that_are_not_used_decide_nothing(tmp_path):
    values = (surface(4, 1, (200, 200)) + 1).astype(np.float32)
    values[3, :, 60:] = np.nan
    write(tmp_path / "a.tif", values)
    used = Scenes(str(tmp_path), window=64, bands=(1, 2, 3)).scenes[0]
    assert used.valid_share == 1 and len(used.cells) == used.shape[0] * used.shape[1]


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_zero_is_nodata_in_all_bands_and_another_value_in_any(tmp_path, dtype):
    values = (surface(3, 1, (96, 96)) * 100 + 20).astype(dtype)
    nodata = 0 if dtype == "uint8" else -9
    values[0, :, :48] = nodata  # water has no red
    write(tmp_path / "a.tif", values, nodata=nodata)
    share = Scenes(str(tmp_path), window=48, nodata=None).scenes[0].valid_share
    assert share == (1 if dtype == "uint8" else pytest.approx(0.5, abs=0.05))


def test_patterns_of_an_image_are_not_suspected(tmp_path):
    classes = np.random.default_rng(0).integers(0, 4, (1, 200, 200)).astype(np.uint8) * 85
    write(tmp_path / "a.tif", classes)
    assert not Scenes(str(tmp_path), window=64).scenes[0].suspected


def test_narrow_and_sparse_scenes_are_used(tmp_path, monkeypatch):
    from gersp_mm.images import census, scaling

    monkeypatch.setattr(scaling, "WHOLE_SIDE", 256)
    monkeypatch.setattr(census, "WHOLE_SIDE", 256)
    values = np.zeros((1, 900, 900), np.uint16)
    values[:, 140:190, 140:190] = (surface(1, 1, (50, 50)) * 900 + 9).astype(np.uint16)
    write(tmp_path / "sparse.tif", values, nodata=0)
    write(tmp_path / "line.tif", (surface(1, 2, (1, 600)) * 900).astype(np.uint16))
    scenes = Scenes(str(tmp_path), window=32)
    assert scenes.pixel_scale.limits["1 band x uint16"][0][1] > 500
    reader = PairedDataset(remote_sensing=scenes).readers["remote_sensing"]
    shapes = {tuple(reader.read(number, [])["img"].shape) for number in range(0, len(scenes), 5)}
    assert shapes == {(3, 32, 32), (3, 1, 32)}
