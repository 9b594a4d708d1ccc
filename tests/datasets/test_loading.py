"""Downstream images are loaded as those of the pre-training were, or it is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from gersp_mm.backbones import export_backbone
from gersp_mm.commands import train
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.datasets import LoadImage
from gersp_mm.datasets.loading import (
    loaders,
    require_same_scale,
    require_same_sources,
    use_pixel_scale,
    used_scale,
)
from gersp_mm.engine.config import load_as_trained, read_config
from gersp_mm.engine.hooks import PixelScaleHook, PretrainedCheckHook
from gersp_mm.images.decode import BadImageError
from gersp_mm.images.pixels import PixelScale
from gersp_mm.resources import find_config
from gersp_mm.utils.errors import UserError
from tests.engine.test_load_from import Log
from tests.engine.test_pretrained_check import file, start  # noqa: F401
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
        (dict(pixel_scale="nowhere.json"), "pixel_scale='nowhere.json' is not a file"),
        (dict(pixel_scale="nowhere.pth"), "pixel_scale='nowhere.pth' is not a file"),
        (dict(pixel_scale=dict(a=1)), "holds no pixel scale"),
        (dict(pixel_scale=dict(SCALE.as_dict(), limits={KIND: [0, 900]})), "holds no pixel scale"),
        (dict(pixel_scale=SCALE.as_dict(), bands=1), "give pixel_scale, or scale and bands"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        LoadImage(**settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"remote_sensing"', "cannot be read"),
        ("[1, 2]", "holds no pixel scale"),
        ('{"remote_sensing": [1]}', "holds no pixel scale"),
        ("3", "holds no pixel scale"),
    ],
)
def test_a_broken_file_is_named(text, words, tmp_path):
    (tmp_path / "pixel_scale.json").write_text(text)
    with pytest.raises(UserError, match=f"pixel_scale.json' {words}"):
        LoadImage(str(tmp_path / "pixel_scale.json"))


@pytest.mark.parametrize(
    ("loader", "outcome"),
    [
        (dict(type="gersp_mm.LoadImage", pixel_scale=SCALE.as_dict()), None),
        (dict(type="gersp_mm.LoadImage", scale=(0, 900), bands=(3, 2, 1)), None),
        (dict(type="gersp_mm.LoadImage", scale=(0, 500), bands=(3, 2, 1)), UserError),
        (dict(type="gersp_mm.LoadImage", scale=(0, 900), bands=(1, 2, 3)), UserError),
        (dict(type="gersp_mm.LoadImage"), UserError),
        (dict(type="gersp_mm.LoadImage", bands=(3, 2, 1)), UserError),
        (dict(type="mmdet.LoadImageFromFile"), "was trained on rasters"),
    ],
)
def test_another_scale_than_that_of_the_weights(loader, outcome):
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type="Resize"), loader]))))
    meta = dict(pixel_scale=SCALE.as_dict())
    if outcome is UserError:
        with pytest.raises(UserError, match="was trained on 4 bands x uint16 with bands=") as error:
            require_same_scale(cfg, meta, "a.pth")
        assert "dict(type='gersp_mm.LoadImage', pixel_scale='a.pth') in" in str(error.value)
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
    types = [loader["type"] for loader in loaders(cfg)]
    assert set(types) == {"gersp_mm.LoadImage"} and len(types) >= 3
    assert require_same_scale(cfg, dict(pixel_scale=SCALE.as_dict()), exported) is None
    assert PixelScale.stored(used_scale(Config.fromstring(text, ".py")).as_dict()) == SCALE
    assert exported not in str([dict(loader) for loader in loaders(cfg)])  # it may move
    plain = tmp_path / "plain.pth"
    export_backbone({"backbone.x": torch.ones(1)}, plain, "R", "GeRSP", RGB_MEAN, RGB_STD)
    cfg, _ = read_config(find_config(f"configs/downstream/{name}"), {"pretrained": str(plain)})
    assert "gersp_mm.LoadImage" not in cfg.pretty_text


@pytest.mark.parametrize("there", [True, False])
def test_weights_at_an_address_switch_the_loaders_as_a_path_does(
    exported, tmp_path, monkeypatch, there
):
    asked = []

    def fetch(url, path):
        asked.append(url)
        if not there:
            raise UserError(f"{url} cannot be fetched")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(exported, path)

    monkeypatch.setattr("gersp_mm.engine.checkpoint_loading._fetch", fetch)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    name = find_config("configs/downstream/eurosat/finetune_r50_eurosat.py")
    cfg, _ = read_config(name, {"pretrained": (url := "https://example.org/backbone.pth")})
    assert used_scale(cfg) == (SCALE if there else None) and set(asked) == {url}
    asked.clear()
    read_config(name, {"pretrained": "torchvision://resnet50"})
    assert not asked


def test_only_loaders_of_the_hosts_are_replaced_and_put_back():
    host = dict(type="mmdet.LoadImageFromFile", backend_args=dict(backend="local"))
    host.update(to_float32=True, imdecode_backend="pillow")
    grey = dict(type="LoadImageFromFile", color_type="grayscale")
    own = dict(type="gersp_mm.LoadImage", scale=(0, 500), bands=(3, 2, 1))
    cfg = Config(dict(pipeline=[host, grey, own]))
    use_pixel_scale(cfg, SCALE)
    first = cfg.pipeline[0]
    assert first.type == "gersp_mm.LoadImage" and PixelScale.stored(first.pixel_scale) == SCALE
    assert first.to_float32 is True and first.backend_args == dict(backend="local")
    assert cfg.pipeline[1] == grey and cfg.pipeline[2] == own
    other = PixelScale((0, 5), (1, 2, 3))
    use_pixel_scale(cfg, other)
    assert PixelScale.stored(cfg.pipeline[0].pixel_scale) == other
    use_pixel_scale(cfg, None)
    del host["imdecode_backend"]
    assert cfg.pipeline[0] == host and cfg.pipeline[1] == grey and cfg.pipeline[2] == own


def test_float32_and_the_backend_of_the_files(tmp_path):
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "a.png")
    pixels = load(tmp_path / "a.png", to_float32=True, backend_args=dict(backend="local"))
    assert pixels.dtype == np.float32 and pixels[0, 0].tolist() == [30, 20, 10]
    with pytest.raises(BadImageError, match="nowhere"):
        load(tmp_path / "a.png", backend_args=dict(backend="nowhere"))


@pytest.mark.parametrize("by_path", [True, False])
def test_a_fine_tuned_checkpoint_carries_its_scale(by_path, exported, tmp_path):
    """Into a test or a resumed run, whatever ``pretrained`` says there."""
    name = find_config("configs/downstream/eurosat/finetune_r50_eurosat.py")
    trained, _ = read_config(name, {"pretrained": exported})
    checkpoint = dict(meta={}, state_dict={})
    runner = SimpleNamespace(cfg=trained, model=SimpleNamespace(data_preprocessor=None))
    PretrainedCheckHook().before_save_checkpoint(runner, checkpoint)
    assert checkpoint["meta"]["pixel_scale"] == SCALE.as_dict()
    path = str(tmp_path / "epoch_1.pth")
    torch.save(checkpoint, path)
    Path(exported).unlink()
    meta = None if by_path else checkpoint["meta"]

    tested, _ = read_config(name)
    load_as_trained(tested, path, meta)
    assert all(loader["type"] == "gersp_mm.LoadImage" for loader in loaders(tested))
    assert used_scale(tested) == SCALE
    for scale in (dict(scale=(0, 500), bands=(3, 2, 1)), {}):
        tested.test_dataloader.dataset.pipeline[0] = dict(type="gersp_mm.LoadImage", **scale)
        with pytest.raises(UserError, match=f"{path} was trained on 4 bands x uint16"):
            load_as_trained(tested, path, meta)

    other = tmp_path / "other.pth"
    export_backbone({"backbone.x": torch.ones(1)}, other, "R", "GeRSP", RGB_MEAN, RGB_STD,
                    pixel_scale=PixelScale((0, 5), (1,)).as_dict())  # fmt: skip
    tested, _ = read_config(name, {"pretrained": str(other)})
    assert used_scale(tested) == PixelScale((0, 5), (1,))
    load_as_trained(tested, path, meta)
    assert used_scale(tested) == SCALE
    load_as_trained(tested, path, {})  # trained by the host's loader
    assert used_scale(tested) is None and "gersp_mm.LoadImage" not in tested.pretty_text


SOURCE = "train_dataloader.dataset.remote_sensing"


@pytest.mark.parametrize("nested", [True, False])
def test_a_pre_training_reads_as_the_one_that_it_starts_from(nested):
    content = SCALE.as_dict()
    meta = dict(pixel_scale=dict(remote_sensing=content) if nested else content)

    def dataset(*settings):
        scale = PixelScale(*settings)
        return SimpleNamespace(remote_sensing=SimpleNamespace(asked_scale=None, pixel_scale=scale))

    found = {KIND: ((0, 500),) * 3}
    other_kind = {"1 band x int16": ((0, 500),) * 3}
    same = [("percentile", (3, 2, 1), SCALE.limits), ((0, 900), (3, 2, 1), SCALE.limits),
            ("percentile", None, other_kind), ("percentile", None, {})]  # fmt: skip
    for settings in same:
        require_same_sources(dataset(*settings), meta, "a.pth")
    for settings in (("percentile", (3, 2, 1), found), ("percentile", (1, 2, 3), SCALE.limits)):
        with pytest.raises(UserError, match=f"a.pth was trained on {KIND}.* but {SOURCE}") as error:
            require_same_sources(dataset(*settings), meta, "a.pth")
        assert f"Set {SOURCE}.scale=[0, 900] and {SOURCE}.bands=[3, 2, 1]" in str(error.value)
    require_same_sources(SimpleNamespace(), meta, "a.pth")


def test_a_pre_training_starts_from_weights_of_its_scale(file, tmp_path):  # noqa: F811
    """The hook compares once the sources know their scale, from ``init_cfg`` or ``load_from``."""
    content = torch.load(file, weights_only=True)
    content["meta"]["pixel_scale"] = SCALE.as_dict()
    path = str(tmp_path / "weights.pth")
    torch.save(content, path)
    source = SimpleNamespace(asked_scale=None, pixel_scale=SCALE)
    loader = SimpleNamespace(dataset=SimpleNamespace(remote_sensing=source))
    for given in (None, path):
        model = start("mmpretrain", path)
        runner = SimpleNamespace(
            model=model, logger=Log(), _resume=False, _load_from=given, cfg=Config(),
            train_dataloader=loader,
        )  # fmt: skip
        hook = PretrainedCheckHook()
        hook.before_run(runner)
        model.init_weights()
        if given:
            hook.after_load_checkpoint(runner, content)
            model.load_state_dict(content["state_dict"], strict=False)
        source.pixel_scale = SCALE
        hook.before_train(runner)
        source.pixel_scale = PixelScale((0, 500), (3, 2, 1)).find({KIND: [np.ones((3, 5))]})
        hook._file = None
        if given is None:
            with pytest.raises(UserError, match=f"{path} was trained on {KIND}"):
                hook.before_train(runner)
            continue
        hook.after_load_checkpoint(runner, content)
        with pytest.raises(UserError, match=f"{path} was trained on {KIND}"):
            hook.before_train(runner)


class Source:
    """A source that counts how often its files are sampled."""

    asked_scale = PixelScale("percentile", (3, 2, 1))
    sampled = 0
    found = None

    @property
    def pixel_scale(self):
        if self.found is None:
            self.sampled += 1
            self.found = SCALE
        return self.found

    @pixel_scale.setter
    def pixel_scale(self, found):
        self.found = found


@pytest.mark.parametrize(
    ("meta", "sampled", "warned"),
    [
        (None, 1, False),
        (dict(pixel_scale=dict(remote_sensing=SCALE.as_dict())), 0, False),
        ({}, 1, True),  # of a version that read the high bytes
    ],
)
def test_files_are_sampled_once_and_an_old_run_is_warned(meta, sampled, warned, tmp_path):
    source, log = Source(), Log()
    loader = SimpleNamespace(dataset=SimpleNamespace(remote_sensing=source, natural=object()))
    runner = SimpleNamespace(
        train_dataloader=loader, rank=0, logger=log, work_dir=tmp_path, _resume=meta is not None
    )
    hook = PixelScaleHook()
    if meta is not None:
        hook.after_load_checkpoint(runner, dict(meta=meta))
    hook.before_train(runner)
    assert source.sampled == sampled and source.found == SCALE
    assert any("it used their high bytes" in line for line in log) is warned
    assert json.loads((tmp_path / "pixel_scale.json").read_text())["remote_sensing"]


def test_other_ranks_sample_no_files(tmp_path, monkeypatch):
    def told(found):
        found[0] = SCALE

    monkeypatch.setattr("gersp_mm.engine.hooks.pixel_scale.broadcast_object_list", told)
    source = Source()
    loader = SimpleNamespace(dataset=SimpleNamespace(remote_sensing=source))
    PixelScaleHook().before_train(SimpleNamespace(train_dataloader=loader, rank=1, logger=Log()))
    assert source.sampled == 0 and source.found == SCALE


def test_train_goes_on_with_the_scale_of_the_checkpoint(exported, tmp_path, monkeypatch):
    """``--resume`` without ``pretrained``, as the fine-tuning was started with it."""
    seen = []

    def choose(cfg, given, overwrite):
        cfg.resume, cfg.load_from = True, exported
        return []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gersp_mm.engine.resume.choose_checkpoint", choose)
    monkeypatch.setattr("gersp_mm.datasets.annotations.check_data", lambda cfg, parts: None)
    monkeypatch.setattr("gersp_mm.engine.launch.train", lambda cfg, *_, **__: seen.append(cfg))
    name = "configs/downstream/eurosat/finetune_r50_eurosat.py"
    train.run(train.parse_args([name, "--resume"]))
    assert used_scale(seen[0]) == SCALE
    assert all(loader["type"] == "gersp_mm.LoadImage" for loader in loaders(seen[0]))
