"""Downstream images are loaded as those of the pre-training were, or it is refused."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from gersp_mm.backbones import export_backbone
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.datasets import LoadImage
from gersp_mm.datasets.loading import require_same_scale, use_pixel_scale
from gersp_mm.engine.config import read_config
from gersp_mm.images.pixels import PixelScale
from gersp_mm.resources import find_config
from gersp_mm.utils.errors import UserError
from tests.support.rasters import surface, write

pytest.importorskip("rasterio")
KIND = "4 bands x uint16"
SCALE = PixelScale("percentile", (3, 2, 1), {KIND: ((0, 900),) * 3}, {KIND: (128,) * 3})


@pytest.fixture
def exported(tmp_path):
    path = tmp_path / "backbone.pth"
    export_backbone(
        {"backbone.x": torch.ones(1)}, path, "ResNet-50", "GeRSP", RGB_MEAN, RGB_STD,
        pixel_scale=SCALE.as_dict(),
    )  # fmt: skip
    return str(path)


def load(path, **settings) -> np.ndarray:
    return LoadImage(**settings)(dict(img_path=str(path)))["img"]


def test_rasters_by_the_scale_of_an_export_a_file_or_given(tmp_path, exported):
    values = (surface(4) * 1000).astype(np.uint16)
    path = write(tmp_path / "a.tif", values)
    (tmp_path / "pixel_scale.json").write_text(json.dumps(dict(remote_sensing=SCALE.as_dict())))
    expected = (values[[2, 1, 0]] / 900 * 255).clip(0, 255).transpose(1, 2, 0)[..., ::-1]
    for given in (exported, str(tmp_path / "pixel_scale.json"), SCALE.as_dict()):
        assert np.abs(load(path, pixel_scale=given) - expected).max() <= 1
    own = load(path, scale=(0, 900), bands=(3, 2, 1))
    assert np.abs(own - expected).max() <= 1
    results = LoadImage(pixel_scale=exported)(dict(img_path=path))
    assert results["img_shape"] == results["ori_shape"] == (70, 90)


def test_photographs_are_as_the_hosts_load_them(tmp_path, exported):
    from mmcv.transforms import LoadImageFromFile

    Image.fromarray((surface(3) * 255).astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "a.png")
    theirs = LoadImageFromFile()(dict(img_path=str(tmp_path / "a.png")))
    ours = LoadImage(pixel_scale=exported)(dict(img_path=str(tmp_path / "a.png")))
    assert np.array_equal(ours["img"], theirs["img"])
    assert {k: ours[k] for k in ("img_shape", "ori_shape")} == {
        k: theirs[k] for k in ("img_shape", "ori_shape")
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(pixel_scale="nowhere.json"), "pixel_scale='nowhere.json' is no file"),
        (dict(pixel_scale=dict(a=1)), "holds no pixel scale"),
        (dict(pixel_scale=SCALE.as_dict(), bands=1), "give pixel_scale, or scale and bands"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        LoadImage(**settings)


@pytest.mark.parametrize(
    ("loader", "outcome"),
    [
        (dict(type="gersp_mm.LoadImage", pixel_scale=SCALE.as_dict()), None),
        (dict(type="gersp_mm.LoadImage", scale=(0, 900), bands=(3, 2, 1)), None),
        (dict(type="gersp_mm.LoadImage", scale=(0, 500), bands=(3, 2, 1)), UserError),
        (dict(type="gersp_mm.LoadImage", scale=(0, 900), bands=(1, 2, 3)), UserError),
        (dict(type="mmdet.LoadImageFromFile"), "was trained on rasters"),
    ],
)
def test_another_scale_than_that_of_the_weights(loader, outcome):
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type="Resize"), loader]))))
    meta = dict(pixel_scale=SCALE.as_dict())
    if outcome is UserError:
        with pytest.raises(UserError, match="was trained on 4 bands x uint16 with bands=(.*)Set"):
            require_same_scale(cfg, meta, "a.pth")
    elif outcome is None:
        assert require_same_scale(cfg, meta, "a.pth") is None
    else:
        assert outcome in require_same_scale(cfg, meta, "a.pth")
    assert require_same_scale(cfg, {}, "a.pth") is None


@pytest.mark.parametrize(
    "name",
    [
        "eurosat/finetune_r50_eurosat.py",
        "loveda/psanet_r50-d8_80k_loveda.py",
        "dior/faster-rcnn_r50_fpn_24e_dior.py",
    ],
)
def test_pretrained_carries_the_scale_into_every_pipeline(name, exported, tmp_path):
    cfg, _ = read_config(find_config(f"configs/downstream/{name}"), {"pretrained": exported})
    text = cfg.pretty_text
    assert "LoadImageFromFile" not in text and text.count("gersp_mm.LoadImage") >= 3
    assert require_same_scale(cfg, dict(pixel_scale=SCALE.as_dict()), exported) is None
    use_pixel_scale(cfg, dict(SCALE.as_dict(), bands=[1, 2, 3]))
    with pytest.raises(UserError, match="bands"):
        require_same_scale(cfg, dict(pixel_scale=SCALE.as_dict()), exported)
    plain = tmp_path / "plain.pth"
    export_backbone({"backbone.x": torch.ones(1)}, plain, "R", "GeRSP", RGB_MEAN, RGB_STD)
    cfg, _ = read_config(find_config(f"configs/downstream/{name}"), {"pretrained": str(plain)})
    assert "gersp_mm.LoadImage" not in cfg.pretty_text
