"""Backbones of all kinds: against neck and heads, through a run, its export and the tools."""

from __future__ import annotations

import ast
import re
from unittest import mock

import pytest
import torch

from gersp_mm.backbones import ExportedBackbone, own
from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.named import load_backbones
from gersp_mm.engine.preflight import shapes
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.model import as_tuple
from gersp_mm.visualization import cam, neighbours
from gersp_mm.visualization import projection as tsne
from tests.support import own_networks
from tests.support.commands import parse
from tests.support.runs import build, demo_config, refusal_of, train

OWN = own_networks.__name__
STAGES = dict(num_modules=1, block="BASIC")
HRNET = dict(
    stage1=dict(STAGES, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(8,)),
    stage2=dict(STAGES, num_branches=2, num_blocks=(1, 1), num_channels=(8, 16)),
    stage3=dict(STAGES, num_branches=3, num_blocks=(1, 1, 1), num_channels=(8, 16, 24)),
    stage4=dict(STAGES, num_branches=4, num_blocks=(1, 1, 1, 1), num_channels=(8, 16, 24, 32)),
)
VIT = dict(
    type="VisionTransformer",
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
)
REPVGG = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.1] * 4, group_layer_map=None, se_cfg=None)
RESNET = dict(type="ResNet", depth=18, stem_channels=8, base_channels=8)
# A backbone, what its config has to be given besides (none: neck and heads of 64 channels fit),
# and the name of its export.
KINDS = {
    "resnet": (RESNET, {}, "ResNet-18"),
    "several outputs": (
        dict(RESNET, out_indices=(1, 2, 3)), {"backbone.out_indices": [3]}, "ResNet-18",
    ),
    "other input": (dict(RESNET, in_channels=4), {"backbone.in_channels": 3}, "ResNet-18"),
    "convnext": (
        dict(type="ConvNeXt", arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 24])),
        {"neck.in_channels": 24, "neck.with_avg_pool": False, "natural_head.in_channels": 24},
        "ConvNeXt",
    ),
    "vit, class token": (
        dict(VIT, out_type="cls_token"),
        {"neck.in_channels": 16, "neck.with_avg_pool": False, "natural_head.in_channels": 16},
        "VisionTransformer",
    ),
    "vit, mean of the map": (
        dict(VIT, out_type="avg_featmap"),
        {"neck.in_channels": 16, "neck.with_avg_pool": False, "natural_head.in_channels": 16},
        "VisionTransformer",
    ),
    "vit, map": (
        dict(VIT, out_type="featmap", with_cls_token=False),
        {"neck.in_channels": 16, "natural_head.in_channels": 16},
        "VisionTransformer",
    ),
    "vit, tokens": (
        dict(VIT, out_type="raw"),
        {
            "backbone.out_type": "cls_token", "neck.in_channels": 16,
            "neck.with_avg_pool": False, "natural_head.in_channels": 16,
        },
        "VisionTransformer",
    ),
    "swin": (
        dict(
            type="SwinTransformer", img_size=32, window_size=4,
            arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
        ),
        {"backbone.pad_small_map": True},
        "SwinTransformer",
    ),
    "mobilenet": (
        dict(type="MobileNetV3", arch="small_050"),
        {"neck.in_channels": 288, "natural_head.in_channels": 288},
        "MobileNetV3-small_050",
    ),
    "repvgg": (
        dict(type="RepVGG", arch=REPVGG),
        {"neck.in_channels": 51, "natural_head.in_channels": 51},
        "RepVGG",
    ),
    "efficientnet": (
        dict(type="EfficientNet", arch="b0"),
        {"neck.in_channels": 1280, "natural_head.in_channels": 1280},
        "EfficientNet-b0",
    ),
    "hrnet": (
        dict(type="HRNet", extra=HRNET),
        {
            "backbone.multiscale_output": False, "neck.in_channels": 8,
            "natural_head.in_channels": 8,
        },
        "HRNet",
    ),
    "beit, of one size alone": (
        dict(VIT, type="BEiTViT", img_size=48),
        {
            "backbone.img_size": 32, "neck.in_channels": 16, "neck.with_avg_pool": False,
            "natural_head.in_channels": 16,
        },
        "BEiTViT",
    ),
    "own": (
        dict(type="BareNetwork"),
        {"neck.in_channels": 24, "neck.with_avg_pool": False, "natural_head.in_channels": 24},
        "BareNetwork",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch):
    monkeypatch.setattr(own, "_imported", set())


def config_with(backbone, pair_data, work_dir):
    cfg = demo_config(pair_data, work_dir)
    del cfg.model.backbone
    cfg.model.backbone = dict(backbone)
    cfg.model.feat_dim = cfg.model.neck.out_channels = 16
    return cfg


def options_in(text):
    """The options that a message says to set."""
    assert len(text.splitlines()) == 1
    found = re.findall(r"(model\.[\w.]+)=('\w+'|\[-?\d+\]|\w+)", text.partition(". Set ")[2])
    return {key: ast.literal_eval(value) for key, value in found}


@pytest.mark.parametrize("backbone, needed, name", KINDS.values(), ids=KINDS.keys())
def test_four_steps_export_reload_and_tsne(backbone, needed, name, pair_data, tmp_path):
    cfg = config_with(backbone, pair_data, tmp_path / "run")
    if needed:
        options = options_in(refusal_of(cfg))
        assert options == {f"model.{key}": value for key, value in needed.items()}
        cfg = config_with(backbone, pair_data, tmp_path / "run")
        cfg.merge_from_dict(options)
    runner = train(cfg)
    assert runner.iter == 4

    path = tmp_path / "run" / "gersp_r18_demo_backbone.pth"
    exported = ExportedBackbone.read(path)
    assert exported.meta.arch == name
    own.import_modules([OWN])
    (loaded,) = load_backbones([str(path)])
    trained = runner.model.backbone
    trained.eval()  # returns None in mmpretrain
    state = loaded.network.state_dict()
    assert state.keys() == trained.state_dict().keys()
    for key, tensor in trained.state_dict().items():
        assert torch.equal(state[key], tensor), key
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, expected = (as_tuple(net(images))[-1] for net in (loaded.network, trained))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    out = tmp_path / "tsne.png"
    tsne.run(parse(tsne, [
        str(pair_data / "natural"), "--size", "32", "--checkpoints", str(path), "--out", str(out),
        "--import", OWN,
    ]))  # fmt: skip
    assert out.stat().st_size > 1000


def test_a_dict_is_refused(pair_data, tmp_path):
    text = refusal_of(config_with(dict(type="DictNetwork"), pair_data, tmp_path))
    assert text == (
        "model.backbone (DictNetwork) gives a dict, not a tensor. The backbone has to give one "
        "N×C×H×W map or N×C vector. Change the backbone, or the part that gets its output."
    )


def test_supervised_training_takes_several_outputs_and_no_tokens(pair_data, tmp_path):
    cfg = config_with(dict(RESNET, out_indices=(2, 3)), pair_data, tmp_path / "maps")
    cfg.model.neck = cfg.model.head = None
    assert train(cfg).iter == 4
    cfg = config_with(dict(VIT, out_type="raw"), pair_data, tmp_path / "tokens")
    cfg.model.neck = cfg.model.head = None
    text = refusal_of(cfg)
    assert "gives 2×17×16, from which model.natural_head (LinearClsHead) gets no N×C vector" in text
    expected = {"model.backbone.out_type": "cls_token", "model.natural_head.in_channels": 16}
    assert options_in(text) == expected


def test_a_projector_of_another_width_than_the_queue_is_refused(pair_data, tmp_path):
    cfg = config_with(RESNET, pair_data, tmp_path)
    cfg.model.neck = dict(type="GlobalAveragePooling")
    text = refusal_of(cfg)
    assert text == (
        "model.feat_dim=16, but model.neck gives 2×64 for 2 images. Set model.feat_dim to 64."
    )


def test_trying_a_network_that_moves_at_every_forward_leaves_no_trace(pair_data, tmp_path):
    cfg = config_with(dict(type="MovingNetwork"), pair_data, tmp_path)
    cfg.model.neck.with_avg_pool = False
    runner = build(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    draws = torch.get_rng_state()
    assert list(shapes.check_shapes(runner)) == []
    assert torch.equal(torch.get_rng_state(), draws)
    after = runner.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in runner.model.parameters())


def test_searching_for_settings_leaves_no_trace(pair_data, tmp_path):
    runner = build(config_with(dict(VIT, out_type="raw"), pair_data, tmp_path))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    draws = torch.get_rng_state()
    assert len(list(shapes.check_shapes(runner))) == 1
    assert torch.equal(torch.get_rng_state(), draws)
    after = runner.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ------------------------------------------------------------------------------------ words

FREEZING = {
    "convnext": (dict(KINDS["convnext"][0], frozen_stages=0), None),
    "convnext, one stage": (
        dict(KINDS["convnext"][0], frozen_stages=1),
        "frozen_stages=1 without a checkpoint: these layers stay random (downsample_layers.0.0",
    ),
    "efficientnet": (dict(type="EfficientNet", arch="b0"), None),
    "resnet": (
        dict(RESNET, frozen_stages=0),
        "frozen_stages=0 without a checkpoint: these layers stay random (conv1.weight, bn1.weight",
    ),
    "swin, which freezes in train()": (
        dict(KINDS["swin"][0], frozen_stages=0),
        "frozen_stages=0 without a checkpoint: these layers stay random (patch_embed.",
    ),
    "fixed position embedding": (dict(type="MAEViT", **{k: VIT[k] for k in VIT if k != "type"}),
                                 None),
}  # fmt: skip


@pytest.mark.parametrize("backbone, words", FREEZING.values(), ids=FREEZING.keys())
def test_frozen_is_what_gets_no_gradient(backbone, words):
    from mmpretrain.registry import MODELS

    from gersp_mm.engine.hooks.pretrained_check import _warn_of_fixed_random_parts

    runner = mock.Mock()
    _warn_of_fixed_random_parts(runner, MODELS.build(backbone))
    said = [str(call.args[0]) for call in runner.logger.warning.call_args_list]
    assert len(said) == (words is not None)
    assert words is None or said[0].startswith(words)


def test_the_export_of_what_is_not_frozen_says_so(pair_data, tmp_path):
    cfg = config_with(KINDS["convnext"][0], pair_data, tmp_path)
    cfg.merge_from_dict({f"model.{key}": value for key, value in KINDS["convnext"][1].items()})
    train(cfg)
    content = torch.load(tmp_path / "gersp_r18_demo_backbone.pth", weights_only=True)
    assert content["meta"]["frozen"] == -1


@pytest.mark.parametrize(
    "config, name",
    [
        (dict(type="RepVGG", arch="A0"), "RepVGG-A0"),
        (dict(type="RepVGG", arch=REPVGG), "RepVGG"),
        (dict(type="EfficientNetV2", arch="b0"), "EfficientNetV2-b0"),
        (dict(type="ConvNeXt", arch="atto"), "ConvNeXt-atto"),
        (dict(type="LeViT", arch="128s"), "LeViT-128s"),
        (dict(type="ResNet", depth=18), "ResNet-18"),
        (dict(type="mmpretrain.HRNet", arch="w18"), "HRNet-w18"),
    ],
)
def test_the_name_of_an_architecture_is_a_name(config, name):
    from mmpretrain.registry import MODELS

    assert Architecture.parse(config).name == name
    network = MODELS.build(dict(config))
    assert Architecture.of(network, config).name == name
    assert re.fullmatch(r"\w+(-\w+)?", Architecture.of(network).name)


# ---------------------------------------------------------------------------- classes of one's own


@pytest.fixture(scope="module")
def own_export(pair_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    cfg = config_with(dict(type="BareNetwork"), pair_data, folder)
    cfg.merge_from_dict({f"model.{key}": value for key, value in KINDS["own"][1].items()})
    train(cfg)
    return str(folder / "gersp_r18_demo_backbone.pth")


def test_a_class_of_ones_own_is_built_only_where_its_module_is_named(own_export, monkeypatch):
    with pytest.raises(UserError, match=r"BareNetwork is no backbone .*own, .* --import MODULE$"):
        load_backbones([own_export])
    from mmengine.registry import MODELS

    with monkeypatch.context() as patch:  # as in a process that has not imported it
        others = {k: v for k, v in MODELS.module_dict.items() if k != "BareNetwork"}
        patch.setattr(MODELS, "_module_dict", others)
        with pytest.raises(UserError, match=r"not in the registry .* --import MODULE$"):
            load_backbones([own_export])
    with pytest.raises(UserError, match="--import not_there: it cannot be imported"):
        own.import_modules(["not_there"])
    own.import_modules([OWN])
    assert load_backbones([own_export])[0].network(torch.zeros(2, 3, 32, 32)).shape == (2, 24)


@pytest.mark.parametrize(
    "module, kind, taken",
    [
        ("nets", "nets.Mine", True),
        ("pkg.nets", "pkg.Mine", True),  # the registry's scope
        ("pkg.nets", "pkg.nets.Mine", True),
        ("pkg.nets", "pkg.other.Mine", False),
        ("nets", "nets_of_others.Mine", False),
        ("nets", "os.system", False),
    ],
)
def test_a_file_names_no_module_besides(module, kind, taken, monkeypatch):
    monkeypatch.setattr(own, "_imported", {module})
    meta = dict(arch="Mine", backbone=dict(type=kind))
    if taken:
        assert Architecture.stored(meta, "a.pth").config == dict(type=kind)
    else:
        with pytest.raises(UserError, match=f"names the type '{kind}', which is not built"):
            Architecture.stored(meta, "a.pth")


@pytest.mark.parametrize("tool", [tsne, neighbours, cam])
def test_every_tool_that_opens_exports_takes_import(tool, own_export, pair_data, tmp_path):
    images = str(pair_data / "natural")
    args = [images, "--size", "32", "--checkpoints", own_export, "--out", str(tmp_path / "a.png")]
    args += [] if tool is tsne else ["--train", images]
    with pytest.raises(UserError, match="--import MODULE"):
        tool.run(parse(tool, args))
    args += ["--import", OWN]
    if tool is cam:  # The network was built; it gives no map.
        pytest.importorskip("pytorch_grad_cam")
        with pytest.raises(UserError, match="the backbone gives .* no map"):
            tool.run(parse(tool, args))
    else:
        tool.run(parse(tool, args))
        assert (tmp_path / "a.png").exists()
