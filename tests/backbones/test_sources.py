"""A file of each public pre-training becomes the same network, and is recognised."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmpretrain.models import ResNet
from torch import nn
from torch.nn import functional as F

from gersp_mm.backbones.architectures import DEPTHS, resnet_shapes
from gersp_mm.backbones.convert import take_backbone, write_backbone
from gersp_mm.backbones.sources import NAMES
from gersp_mm.backbones.verify import feature_difference, require_same_features
from gersp_mm.utils.errors import UserError
from tests.engine.test_pretrained_check import HOSTS, check, start
from tests.support import checkpoints as builders
from tests.support.checkpoints import CASES, backbone, plain_resnet, random_resnet


class Written(NamedTuple):
    source: Path
    target: Path
    conversion: object
    file: dict


@pytest.fixture(scope="module")
def networks():
    """Student and teacher."""
    return random_resnet(18), plain_resnet(18)


@pytest.fixture(scope="module")
def light():
    return plain_resnet(18, seed=1), plain_resnet(18, seed=2)


@pytest.fixture(scope="module")
def converted(networks, tmp_path_factory):
    """Every case's file, converted once."""
    done: dict[str, Written] = {}

    def convert(name: str) -> Written:
        if name not in done:
            case, folder = CASES[name], tmp_path_factory.mktemp("source")
            source, target = folder / case.file, folder / "written.pth"
            case.write(source, *networks)
            conversion = take_backbone(source, trust=case.trust)
            write_backbone(conversion, target)
            content = torch.load(target, weights_only=True)
            done[name] = Written(source, target, conversion, content)
        return done[name]

    yield convert
    for written in done.values():
        shutil.rmtree(written.source.parent)


def difference(network: nn.Module, content: dict, host: nn.Module) -> float:
    """Independent of gersp_mm's own --verify: the very network that the file was made of."""
    state = {n.removeprefix("backbone."): v for n, v in content["state_dict"].items()}
    host.load_state_dict(state, strict=True)
    host.eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = nn.Sequential(*list(network.children())[:-1], nn.Flatten())(image)
        features = F.adaptive_avg_pool2d(host(image)[-1], 1).flatten(1)
    return float((features - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def host_resnet():
    return ResNet(18)


@pytest.mark.parametrize("depth", DEPTHS)
def test_reference_is_the_hosts_resnet(depth):
    state = ResNet(depth).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == resnet_shapes(depth)


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_same(name, converted, networks, host_resnet):
    written = converted(name)
    assert difference(networks[0], written.file, host_resnet) < 1e-6
    assert feature_difference(written.conversion, size=64) < 1e-6
    for parameter, tensor in backbone(networks[0], "backbone.").items():
        assert torch.equal(written.file["state_dict"][parameter], tensor)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_accounted_for(name, converted):
    case, written = CASES[name], converted(name)
    assert written.conversion.counts == {"student": 120, **case.left_out}
    assert written.file["state_dict"].keys() == {f"backbone.{n}" for n in resnet_shapes(18)}


@pytest.mark.parametrize("name", CASES)
def test_meta_says_what_it_is(name, converted):
    case, written = CASES[name], converted(name)
    meta = written.file["meta"]
    assert (meta["arch"], meta["method"], meta["epoch"]) == ("ResNet-18", case.method, case.epoch)
    mean, std = case.statistics
    assert meta["normalisation"] == dict(mean=mean, std=std, channel_order="RGB")
    assert (meta["source"]["name"], meta["source"]["file"]) == (case.source, case.file)
    assert ("Sentinel-2" in (meta["source"]["images"] or "")) == case.sentinel
    assert len(meta["source_sha256"]) == 64 and meta["source_sha256"] != meta["weights_sha256"]


@pytest.mark.parametrize("host", HOSTS)
def test_pretrained_check_hook_accepts_every_source(host, converted):
    channels = {
        "mmpretrain": dict(head__in_channels=512),
        "mmdet": dict(neck__in_channels=[64, 128, 256, 512]),
        "mmrotate": dict(neck__in_channels=[64, 128, 256, 512]),
        "mmseg": dict(decode_head__in_channels=512, auxiliary_head__in_channels=256),
    }[host]
    channels |= dict(backbone__base_channels=64, backbone__stem_channels=64)
    model = start(host, converted("GeRSP, released").target, **channels)
    model.init_weights = model.backbone.init_weights  # the heads are not looked at
    one_each = {case.source: name for name, case in CASES.items()}
    assert len(one_each) == len(NAMES)
    for name in one_each.values():
        written = converted(name)
        mean, std = CASES[name].statistics
        model.backbone.init_cfg["checkpoint"] = str(written.target)
        model.backbone._is_init = False
        model.data_preprocessor.mean = torch.tensor(mean).view(-1, 1, 1)
        model.data_preprocessor.std = torch.tensor(std).view(-1, 1, 1)
        with torch.no_grad():
            model.backbone.conv1.weight.zero_()  # what is compared must come from the file
        *_, line = check(model)
        assert line == f"120/120 tensors of model.backbone are those of {written.target}"


def test_hook_refuses_tov_under_imagenet_statistics(converted):
    model = start(
        "mmpretrain", converted("TOV").target, head__in_channels=512,
        backbone__base_channels=64, backbone__stem_channels=64,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"was trained with mean=\[127.5, 127.5, 127.5\]"):
        check(model)


def test_resnet50(tmp_path):
    path, student = tmp_path / "seco_resnet50_1m.ckpt", random_resnet(50)
    builders.seco(path, student, plain_resnet(50))
    conversion = take_backbone(path, trust=True)
    write_backbone(conversion, tmp_path / "r50.pth")
    content = torch.load(tmp_path / "r50.pth", weights_only=True)
    assert len(content["state_dict"]) == 318 == conversion.counts["student"]
    assert content["meta"]["arch"] == "ResNet-50"
    assert difference(student, content, ResNet(50)) < 1e-6
    assert require_same_features(conversion) < 1e-6


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_is_inferred(depth, tmp_path):
    torch.save(plain_resnet(depth).state_dict(), tmp_path / "weights.pth")
    conversion = take_backbone(tmp_path / "weights.pth")
    assert conversion.meta["arch"] == f"ResNet-{depth}"
    assert conversion.backbone.keys() == {f"backbone.{n}" for n in resnet_shapes(depth)}


TEACHERS = [
    "GeRSP, released", "our training", "mmpretrain", "mmselfsup", "MoCo v2", "SeCo", "CACo, .ckpt",
    "CMID",
]  # fmt: skip


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_on_request(name, converted, networks):
    source, case = converted(name).source, CASES[name]
    conversion = take_backbone(source, teacher=True, trust=case.trust)
    for parameter, tensor in backbone(networks[1], "backbone.").items():
        assert torch.equal(conversion.backbone[parameter], tensor)
    assert conversion.meta["method"] == f"{case.method} (teacher)"
    assert next(iter(conversion.counts)) == "teacher" and conversion.counts["student"] >= 120
    assert sum(conversion.counts.values()) == sum(converted(name).conversion.counts.values())


SAME_FORMAT = [  # writer, what auto says without a name that helps, a choice, its method
    ("moco_v2", "MoCo v2 or Geo-Aware", "geo-aware", "Geo-Aware"),
    ("moco_v2", "MoCo v2 or Geo-Aware", "moco", "MoCo v2"),
    ("seco", "SeCo or CACo", "caco", "CACo"),
    ("caco", "SeCo or CACo", "seco", "SeCo"),
    ("cmid_backbone", "unknown", "cmid", "CMID"),
    ("cmid_backbone", "unknown", "tov", "TOV"),
    ("converted_gersp", "unknown", "gersp", "GeRSP"),
]


@pytest.mark.parametrize(("writer", "auto", "source", "method"), SAME_FORMAT)
def test_source_decides_where_formats_are_the_same(writer, auto, source, method, light, tmp_path):
    path = tmp_path / "download.bin"
    getattr(builders, writer)(path, *light)
    left_open = take_backbone(path, trust=True)
    assert left_open.meta["method"] == auto
    assert f"{method} (--source {source})" in left_open.warnings[0]
    assert "look alike" in left_open.warnings[0]
    told = take_backbone(path, source, trust=True)
    assert told.meta["method"] == method and not told.warnings
    statistics = builders.HALF if source == "tov" else builders.IMAGENET
    assert told.meta["normalisation"]["mean"] == statistics[0]


def test_an_open_question_of_normalisation_is_a_warning(light, tmp_path):
    torch.save(dict(state_dict=backbone(light[0])), tmp_path / "download.pth")
    conversion = take_backbone(tmp_path / "download.pth")
    assert conversion.meta["normalisation"]["mean"] == builders.IMAGENET[0]
    (warning,) = [text for text in conversion.warnings if "assumed" in text]
    assert "TOV has mean 127.5 and std 127.5" in warning and "SeCo has Sentinel-2" in warning


def test_a_choice_that_does_not_look_right_is_a_warning(light, tmp_path):
    builders.geo_aware(tmp_path / "download.pth", *light)
    conversion = take_backbone(tmp_path / "download.pth", "moco")
    assert conversion.meta["method"] == "MoCo v2"
    assert conversion.warnings == ("the file looks like one of --source geo-aware",)


@pytest.mark.parametrize("name", ["timm", "resnet18.a1_in1k", "torchgeo"])
def test_file_names_of_bare_weights(name, light, tmp_path):
    path = (
        tmp_path
        / {
            "timm": "timm_resnet18.pth",
            "resnet18.a1_in1k": "resnet18.a1_in1k.bin",
            "torchgeo": "resnet18_sentinel2_rgb_seco-cefca942.pth",
        }[name]
    )
    state = backbone(light[0]) if name == "torchgeo" else light[0].state_dict()
    torch.save(state, path)
    method = take_backbone(path).meta["method"]
    assert method == ("SeCo" if name == "torchgeo" else "IMP (timm)")


def test_verify_notices_a_difference(converted):
    conversion = converted("TOV").conversion
    changed = dict(conversion.backbone)
    name = "backbone.layer2.0.downsample.1.running_var"
    changed[name] = changed[name] * 1.01
    with pytest.raises(UserError, match="differ by .* nothing is written"):
        require_same_features(conversion._replace(backbone=changed))
