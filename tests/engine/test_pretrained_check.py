"""A downstream model starts from the whole checkpoint or not at all, in every host."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ResNet

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.engine.config import apply_switches
from gersp_mm.engine.hooks import PretrainedCheckHook
from gersp_mm.utils.errors import UserError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RESNET = dict(type="ResNet", depth=18, num_stages=4, out_indices=(0, 1, 2, 3), base_channels=8)


def host_base(host: str, name: str) -> Any:
    root = Path(import_module(host).__file__).parent / ".mim" / "configs"
    return Config.fromfile(root / name).model


def mmpretrain_model() -> Any:
    return dict(
        type="ImageClassifier",
        backbone=dict(RESNET, type="mmpretrain.ResNet", out_indices=(3,), stem_channels=8),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=3, in_channels=64),
        data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True, num_classes=3),
    )


def detector() -> Any:
    cfg = host_base("mmdet", "_base_/models/retinanet_r50_fpn.py")
    cfg.type, cfg.data_preprocessor.type = "mmdet.RetinaNet", "mmdet.DetDataPreprocessor"
    cfg.backbone = dict(RESNET, type="mmdet.ResNet", stem_channels=8)
    cfg.neck.in_channels = [8, 16, 32, 64]
    cfg.train_cfg.assigner.iou_calculator = dict(type="BboxOverlaps2D")
    for part in (cfg.neck, cfg.bbox_head, cfg.train_cfg):
        in_mmdet(part)
    return cfg


def in_mmdet(cfg: Any) -> None:
    """Name mmdet as the scope of every type, as configs of mmrotate do."""
    for key, value in list(cfg.items()):
        if key == "type":
            cfg[key] = f"mmdet.{value}"
        elif isinstance(value, dict):
            in_mmdet(value)


def mmseg_model() -> Any:
    cfg = host_base("mmseg", "_base_/models/fcn_r50-d8.py")
    cfg.pop("pretrained")
    norm = dict(type="BN")
    cfg.backbone = dict(RESNET, type="mmseg.ResNet", stem_channels=8, norm_cfg=norm)
    cfg.decode_head.update(in_channels=64, channels=8, norm_cfg=norm)
    cfg.auxiliary_head.update(in_channels=32, channels=8, norm_cfg=norm)
    cfg.data_preprocessor.size = (32, 32)
    return cfg


HOSTS = {
    "mmpretrain": mmpretrain_model,
    "mmdet": detector,
    "mmrotate": detector,
    "mmseg": mmseg_model,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = ResNet(18, base_channels=8, stem_channels=8)
    network.init_weights()
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path_factory.mktemp("pretrained") / "backbone.pth"
    export_backbone(state, path, "ResNet-18", "GeRSP", MEAN, STD)
    return path


def start(host: str, path: Path | str, prefix: str | None = "backbone.", **changes: Any) -> Any:
    """Build a host's model, initialise it as its Runner would, and call the hook."""
    import_module(host)
    cfg = Config(dict(model=HOSTS[host]())).model
    init = dict(type="Pretrained", checkpoint=str(path))
    cfg.backbone.init_cfg = init if prefix is None else dict(init, prefix=prefix)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        cfg[part][key] = value
    with DefaultScope.overwrite_default_scope(host):
        if host != "mmpretrain":
            import_module(f"{host}.models")
        model = MODELS.build(cfg)
    return model


def check(model: Any, between: Any = lambda model: None) -> list[str]:
    """Do what Runner.train does: hooks, initialisation, hooks."""
    logged: list[str] = []
    logger = SimpleNamespace(info=logged.append, warning=logged.append)
    runner = SimpleNamespace(
        model=model, logger=logger, _resume=False, _load_from=None, cfg=Config()
    )
    hook = PretrainedCheckHook()
    hook.before_run(runner)
    model.init_weights()
    between(model)
    hook.before_train(runner)
    return logged


def rewritten(file: Path, target: Path, change: Any) -> Path:
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"] = change(checkpoint["state_dict"])
    del checkpoint["meta"]["weights_sha256"]  # which would tell
    torch.save(checkpoint, target)
    return target


def renamed(old: str, new: str) -> Any:
    return lambda state: {new + name.removeprefix(old): value for name, value in state.items()}


@pytest.mark.parametrize("host", HOSTS)
def test_a_checkpoint_that_fits_passes(host, file):
    (line,) = check(start(host, file))
    assert line == f"120/120 tensors of model.backbone are those of {file}"


BROKEN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "wrong prefix": (None, dict(prefix="student."), "set init_cfg.prefix='backbone.'"),
    "no prefix in the config": (None, dict(prefix=None), "set init_cfg.prefix='backbone.'"),
    "no prefix in the file": (renamed("backbone.", ""), {}, "leave init_cfg.prefix out"),
    "module. left in": (renamed("", "module."), {}, "set init_cfg.prefix='module.backbone.'"),
    "encoder_q. left in": (
        renamed("backbone.", "encoder_q."), {}, "set init_cfg.prefix='encoder_q.'",
    ),
    "other depth": (None, dict(backbone__depth=34), "set backbone.depth to that of the checkpoint"),
    "deep stem": (None, dict(backbone__deep_stem=True), "deep stem of ResNetV1c"),
    "other width": (None, dict(backbone__base_channels=16), "The widths differ"),
    "caffe style": (None, dict(backbone__style="caffe"), "set style='pytorch'"),
    "projector alone": (
        lambda state: {"neck.mlp.0.weight": torch.zeros(2)}, {}, "only a projector or a head",
    ),
    "a tensor missing": (
        lambda state: {k: v for k, v in state.items() if "layer3.0.bn1.weight" not in k}, {},
        "1 missing: layer3.0.bn1.weight",
    ),
    "model. in front": (
        renamed("", "model."), {}, "set init_cfg.prefix='model.backbone.' (--cfg-options",
    ),
    "NaN": (
        lambda state: {**state, "backbone.bn1.bias": torch.full((8,), float("nan"))}, {},
        "1 tensor holds NaN or infinity (bn1.bias)",
    ),
    "nothing": (lambda state: {}, {}, "holds no tensors; it has nothing"),
    "other mean": (None, dict(data_preprocessor__mean=[0.0, 0.0, 0.0]), "was trained with mean="),
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("case", BROKEN)
def test_broken_loading_is_refused_with_the_reason(host, case, file, tmp_path):
    change, options, reason = BROKEN[case]
    path = rewritten(file, tmp_path / "changed.pth", change) if change else file
    options = dict(options)
    if host == "mmpretrain" and case == "other depth":
        options["head__in_channels"] = 64
    with pytest.raises(UserError) as error:
        check(start(host, path, **options))
    assert reason in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("host", "option"),
    [
        ("mmpretrain", "data_preprocessor__to_rgb"),
        ("mmdet", "data_preprocessor__bgr_to_rgb"),
        ("mmrotate", "data_preprocessor__bgr_to_rgb"),
        ("mmseg", "data_preprocessor__bgr_to_rgb"),
    ],
)
def test_other_channel_order_is_refused(host, option, file):
    with pytest.raises(UserError, match="trained on RGB images.*gives BGR"):
        check(start(host, file, **{option: False}))


def test_the_config_in_a_training_checkpoint_says_how_images_were_normalised(file, tmp_path):
    content = torch.load(file, weights_only=True)
    half = "[127.5, 127.5, 127.5]"
    text = f"model = dict(data_preprocessor=dict(mean={half}, std={half}, to_rgb=True))"
    torch.save(dict(state_dict=content["state_dict"], meta=dict(cfg=text)), tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"old.pth was trained with mean=\[127.5.*has \[123.67"):
        check(start("mmpretrain", tmp_path / "old.pth"))
    text = "model = dict(backbone=dict(type='ResNet', style='caffe'))"
    torch.save(dict(state_dict=content["state_dict"], meta=dict(cfg=text)), tmp_path / "old.pth")
    with pytest.raises(UserError, match="style='pytorch', which .*: set style='caffe'"):
        check(start("mmpretrain", tmp_path / "old.pth"))


def test_weights_below_another_key_are_refused(file, tmp_path):
    state = torch.load(file, weights_only=True)["state_dict"]
    torch.save(dict(model=state, epoch=2), tmp_path / "f.pth")
    with pytest.raises(UserError, match="f.pth holds its weights below 'model'.*f.pth OUT.pth"):
        check(start("mmpretrain", tmp_path / "f.pth"))


def test_the_prefix_that_a_message_names_can_be_given(file, tmp_path):
    path = rewritten(file, tmp_path / "changed.pth", renamed("", "model."))
    cfg = Config(dict(pretrained=str(path), model=dict(backbone=dict(type="ResNet"))))
    apply_switches(cfg)
    assert cfg.model.backbone.init_cfg.prefix == "backbone."
    for prefix in ("model.backbone.", None):
        cfg.model.backbone.init_cfg.prefix = prefix
        apply_switches(cfg)
        assert cfg.model.backbone.init_cfg == dict(
            type="Pretrained", checkpoint=str(path), prefix=prefix
        )
    (line,) = check(start("mmpretrain", path, prefix="model.backbone."))
    assert "120/120" in line


def test_weights_changed_after_loading_are_noticed(file):
    def change(model):
        with torch.no_grad():
            model.backbone.conv1.weight[0, 0, 0, 0] += 1e-3

    with pytest.raises(UserError, match=r"1 of other values: conv1.weight"):
        check(start("mmpretrain", file), change)


def test_a_truncated_download_is_called_that(file, tmp_path):
    model = start("mmpretrain", file)
    half = tmp_path / "half.pth"
    half.write_bytes(file.read_bytes()[:20000])
    model.backbone.init_cfg["checkpoint"] = str(half)
    with pytest.raises(UserError, match="was its download complete"):
        check(model)


def test_resumed_runs_and_models_without_checkpoint_are_left_alone(file):
    model = start("mmpretrain", file)
    with torch.no_grad():
        model.backbone.conv1.weight.zero_()
    runner = SimpleNamespace(
        model=model, logger=mock.Mock(), _resume=True, _load_from="x.pth", cfg=Config()
    )
    PretrainedCheckHook().before_train(runner)
    model.backbone.init_cfg = dict(type="Kaiming", layer="Conv2d")
    assert check(model) == ["model.backbone starts from no checkpoint"]
