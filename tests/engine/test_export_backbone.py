from __future__ import annotations

import pytest
import torch
from mmengine.hooks import EMAHook
from mmpretrain.models import ResNet

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.convert import take_backbone
from gersp_mm.backbones.exported import export_backbone
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.utils.errors import UserError
from tests.support.runs import build, demo_config, load, train


@pytest.fixture(scope="module")
def run(pair_data, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("export")
    runner = train(demo_config(pair_data, work_dir, iterations=2, epochs=2))
    file = work_dir / "gersp_r18_demo_backbone.pth"
    return runner, work_dir, file, torch.load(file, weights_only=True)


def test_file_holds_the_students_backbone_alone(run):
    runner, _, _, exported = run
    assert exported.keys() == {"state_dict", "meta"}
    backbone = runner.model.backbone.state_dict()
    assert exported["state_dict"].keys() == {f"backbone.{name}" for name in backbone}
    for name, tensor in backbone.items():
        assert torch.equal(exported["state_dict"][f"backbone.{name}"], tensor)
    teacher = runner.model.teacher.backbone.conv1.weight
    assert not torch.equal(exported["state_dict"]["backbone.conv1.weight"], teacher)


def test_meta_is_plain_python_and_says_what_downstream_needs(run):
    runner, work_dir, _, exported = run
    meta = exported["meta"]
    assert (meta["arch"], meta["method"], meta["epoch"]) == ("ResNet-18", "GeRSP", 2)
    assert meta["iterations"] == runner.iter
    normalisation = meta["normalisation"]
    assert normalisation["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert normalisation["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert normalisation["channel_order"] == "RGB"
    assert meta["config"] == runner.cfg.pretty_text
    assert meta["versions"].keys() == {"gersp_mm", "torch", "mmengine", "mmpretrain"}
    assert all(type(version) is str for version in meta["versions"].values())
    assert meta["weights_sha256"] == weights_sha256(exported["state_dict"])
    assert meta["source_sha256"] is None
    saved = {k: v for k, v in load(work_dir / "epoch_2.pth")["state_dict"].items()}
    backbone = {k: v for k, v in saved.items() if k.startswith("backbone.")}
    assert weights_sha256(backbone) == meta["weights_sha256"]


def test_file_loads_completely_into_the_hosts_backbone(run, recwarn):
    runner, _, file, _ = run
    init_cfg = dict(type="Pretrained", checkpoint=str(file), prefix="backbone.")
    options = dict(depth=18, stem_channels=8, base_channels=8, out_indices=(3,))
    downstream = ResNet(**options, init_cfg=init_cfg)
    downstream.init_weights()
    own = runner.model.backbone.state_dict()
    loaded = downstream.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[name], own[name]) for name in own)


def test_the_line_to_paste_is_printed(run):
    _, work_dir, file, _ = run
    cfg = run[0].cfg.copy()
    cfg.work_dir, cfg.log_level, cfg.train_cfg.max_epochs = str(work_dir), "INFO", 1
    train(cfg)
    (log,) = (path for path in work_dir.glob("*/*.log") if "prefix=" in path.read_text())
    line = f"init_cfg=dict(type='Pretrained', checkpoint='{file}', prefix='backbone.')"
    assert line in log.read_text()


def test_missing_normalisation_is_refused_before_the_first_step(pair_data, tmp_path):
    runner = build(demo_config(pair_data, tmp_path))
    del runner.model.data_preprocessor.std
    with pytest.raises(UserError, match="set mean and std of model.data_preprocessor"):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    "attributes, name", [({"depth": 50}, "Net-50"), ({"arch": "tiny"}, "Net-tiny"), ({}, "Net")]
)
def test_arch_name(attributes, name):
    assert Architecture.of(type("Net", (), attributes)()).name == name


def test_what_is_not_finite_is_not_exported(tmp_path):
    path = tmp_path / "backbone.pth"
    arguments = (path, "Net", "GeRSP", [0.0] * 3, [1.0] * 3)
    good = {"backbone.a": torch.ones(2), "neck.b": torch.tensor([float("nan")])}
    export_backbone(good, *arguments)
    written = path.read_bytes()
    with pytest.raises(UserError, match="because NaN or infinity is in backbone.a"):
        export_backbone({"backbone.a": torch.tensor([1.0, float("inf")])}, *arguments)
    assert path.read_bytes() == written


@pytest.mark.parametrize("weights, priority", [(None, "VERY_LOW"), ("raw", "NORMAL")])
def test_averaged_weights_export_checkpoint_and_conversion_agree(
    pair_data, tmp_path, weights, priority
):
    """Also where EMAHook puts its weights into the checkpoint after the export."""
    cfg = demo_config(pair_data, tmp_path, iterations=2)
    cfg.model.backbone = dict(type="mmpretrain.ResNet", depth=18, norm_cfg=dict(type="BN"))
    cfg.model.neck.in_channels = cfg.model.natural_head.in_channels = 512
    cfg.custom_hooks = [dict(type="EMAHook", momentum=0.4, priority=priority)]
    if weights:
        cfg.default_hooks.export_backbone.weights = weights
    runner = train(cfg)
    (averaged,) = (hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))
    name = "conv1.weight"
    values = dict(ema=averaged.backbone.state_dict()[name],
                  raw=runner.model.backbone.state_dict()[name])  # fmt: skip
    assert (values["ema"] - values["raw"]).abs().max() > 1e-7
    chosen = weights or "ema"
    exported = torch.load(tmp_path / "gersp_r18_demo_backbone.pth", weights_only=True)
    converted = take_backbone(tmp_path / "epoch_1.pth", source="mmlab")
    assert torch.equal(exported["state_dict"][f"backbone.{name}"], values[chosen])
    assert converted.meta["weights_sha256"] == exported["meta"]["weights_sha256"]
    assert converted.meta["weights"] == exported["meta"]["weights"] == chosen
    checkpoint = load(tmp_path / "epoch_1.pth")
    assert checkpoint["meta"]["weights"] == chosen
    assert torch.equal(checkpoint["state_dict"][f"backbone.{name}"], values["ema"])


def test_averaged_weights_that_are_not_there_are_refused(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=2)
    cfg.default_hooks.export_backbone.weights = "ema"
    with pytest.raises(UserError, match="the run has no EMAHook"):
        train(cfg)
    cfg.default_hooks.export_backbone.weights = "mean"
    with pytest.raises(UserError, match="must be one of 'raw', 'ema', got 'mean'"):
        build(cfg)
