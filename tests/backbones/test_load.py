"""One call loads a backbone for every library: all tensors, the same features, its scale."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import gersp_mm
from gersp_mm.backbones import export_backbone, hub
from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.build import build_network
from gersp_mm.backbones.convert import take_backbone, write_backbone
from gersp_mm.backbones.hub import write_hub_folder
from gersp_mm.backbones.load import load_backbone, read_backbone
from gersp_mm.constants import PREFIX
from gersp_mm.images.pixels import PixelScale
from gersp_mm.results.store import append_rows, read_rows
from gersp_mm.utils.errors import UserError

MEAN, STD = (120.0, 110.0, 100.0), (50.0, 60.0, 70.0)
SWIN = dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
VIT = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=96)
NETWORKS = {
    "resnet18": dict(type="ResNet", depth=18),
    "vit-token": dict(
        type="VisionTransformer", arch=VIT, img_size=32, patch_size=8, out_type="cls_token"
    ),
    "vit-average": dict(
        type="VisionTransformer", arch=VIT, img_size=32, patch_size=8, out_type="avg_featmap"
    ),
    "swin": dict(type="SwinTransformer", arch=SWIN, img_size=64, window_size=2),
}
SIDE = {"resnet18": 64, "vit-token": 32, "vit-average": 32, "swin": 64}
TRANSFORMERS = pytest.param(
    "transformers",
    marks=pytest.mark.skipif(
        find_spec("transformers") is None, reason="transformers is not installed"
    ),
)
LIBRARIES = [None, "torchvision", "timm", TRANSFORMERS]


def make(config: dict) -> torch.nn.Module:
    """Build a network whose norms and biases differ from their initial values."""
    torch.manual_seed(0)
    network = build_network(Architecture.parse(config))
    network.init_weights()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    network.eval()
    return network


def write(path: Path, config: dict, **facts) -> torch.nn.Module:
    network = make(config)
    state = {PREFIX + name: tensor for name, tensor in network.state_dict().items()}
    arch = Architecture.parse(config).name
    export_backbone(state, path, arch, "GeRSP", MEAN, STD, 3, backbone=config, **facts)
    return network


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, tuple[Path, torch.nn.Module, Path]]:
    """For each network: its exported file, itself, and its hub folder."""
    root, made = tmp_path_factory.mktemp("exports"), {}
    for name, config in NETWORKS.items():
        path = root / f"{name}_backbone.pth"
        network = write(path, config)
        folder = write_hub_folder(read_backbone(path), root / f"hub-{name}", "cc-by-4.0")
        made[name] = path, network, folder
    return made


def pooled(output) -> torch.Tensor:
    """Return N×C of whatever a library's network gives."""
    if isinstance(output, tuple):
        output = output[-1]
    output = getattr(output, "pooler_output", output)
    return output.mean((2, 3)) if output.ndim == 4 else output


def images(name: str) -> torch.Tensor:
    return torch.randn(2, 3, SIDE[name], SIDE[name], generator=torch.Generator().manual_seed(1))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_features_are_the_same_in_every_library(exports, name, library):
    path, network, folder = exports[name]
    x = images(name)
    for source in (path, folder, f"local-dir:{folder}"):
        module = load_backbone(source, library)
        assert not module.training
        assert module.meta.arch == Architecture.parse(NETWORKS[name]).name
        if name == "vit-average" and library == "torchvision":
            # torchvision gives the class token: compare the tokens, of which that is the first.
            tokens = [layer for layer in network.layers]
            expected = network.ln1(_through(network, tokens, x))[:, 0]
        else:
            expected = pooled(network(x))
        assert_close(pooled(module(x)), expected)


def _through(network, layers, x: torch.Tensor) -> torch.Tensor:
    patches, _ = network.patch_embed(x)
    tokens = torch.cat([network.cls_token.expand(len(x), -1, -1), patches], 1) + network.pos_embed
    for layer in layers:
        tokens = layer(tokens)
    return tokens


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_timm_opens_a_hub_folder_by_its_own_call(exports, name):
    import timm

    _, network, folder = exports[name]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(name)
    ours, theirs = network(x)[-1], model.forward_features(x)
    if name == "vit-average":  # timm has no norm behind the average
        ours, theirs = network.ln2(theirs[:, 1:].mean(1)), network.ln2(model(x))
        assert_close(ours, pooled(network(x)))
    elif name == "vit-token":
        theirs = theirs[:, 0]
    elif name == "swin":
        theirs = theirs.permute(0, 3, 1, 2)
    assert_close(theirs, ours)
    config = timm.data.resolve_model_data_config(model)
    assert [255 * value for value in config["mean"]] == pytest.approx(MEAN)
    assert [255 * value for value in config["std"]] == pytest.approx(STD)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@torch.no_grad()
def test_transformers_opens_a_hub_folder_by_its_own_call(exports):
    import transformers

    _, network, folder = exports["resnet18"]
    model = transformers.TimmWrapperModel.from_pretrained(folder).eval()
    x = images("resnet18")
    assert_close(model(x).last_hidden_state, network(x)[-1])


def test_a_hub_folder_holds_what_its_page_promises(exports):
    _, network, folder = exports["resnet18"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "hub-resnet18_mmlab.pth", "model.safetensors", "torchgeo.ckpt",
    ]  # fmt: skip
    checkpoint = torch.load(folder / "torchgeo.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"model": "resnet18"}
    weight = checkpoint["state_dict"]["model.conv1.weight"]
    assert torch.equal(weight, network.state_dict()["conv1.weight"])
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_features"]) == ("resnet18", 512)
    assert config["gersp_mm"]["method"] == "GeRSP" and config["gersp_mm"]["epoch"] == 3
    card = (folder / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card and "pre-trained by GeRSP for 3 epochs" in card
    assert 'timm.create_model("local-dir:hub-resnet18", pretrained=True)' in card
    # Sizes that timm has no name for cannot be told to torchgeo.
    assert not (exports["swin"][2] / "torchgeo.ckpt").exists()


def test_the_model_card_lists_the_rows_of_this_file_alone(exports, tmp_path):
    path, _, _ = exports["resnet18"]
    backbone = read_backbone(path)
    row = read_rows(Path(__file__).parents[2] / "results" / "demo.jsonl")[0]
    same = dict(checkpoint_sha256=backbone.sha256)
    rows = [
        row.model_copy(update=dict(same, seed=0, value=60.0)),
        row.model_copy(update=dict(same, seed=1, value=70.0)),
        row.model_copy(update=dict(seed=2, value=99.0)),
    ]
    append_rows(tmp_path / "rows.jsonl", rows)
    folder = write_hub_folder(backbone, tmp_path / "hub", None, read_rows(tmp_path / "rows.jsonl"))
    card = (folder / "README.md").read_text()
    assert "65.00 ± 7.07 | 2 |" in card and "99" not in card.split("## Results")[1]
    assert "value: 65.00" in card and "license: other\nlicense_name: not-stated" in card


def test_a_pixel_scale_travels_along(tmp_path):
    scale = PixelScale((0, 1000), (3, 2, 1), {"4 bands x uint16": ((0, 1000),) * 3})
    write(tmp_path / "s_backbone.pth", NETWORKS["resnet18"], pixel_scale=scale.as_dict())
    folder = write_hub_folder(read_backbone(tmp_path), tmp_path / "hub" / "s")
    stored = json.loads((folder / "pixel_scale.json").read_text())
    assert stored["bands"] == [3, 2, 1]
    module = load_backbone(folder, "timm")
    assert module.transform.pixel_scale == PixelScale.stored(stored)
    values = np.zeros((224, 224, 4), np.uint16)
    values[..., 2] = 500  # red
    found = module.transform(values)
    expected = (torch.tensor([128.0, 0.0, 0.0]) - torch.tensor(MEAN)) / torch.tensor(STD)
    assert_close(found.mean((1, 2)), expected)
    with pytest.raises(UserError, match="2 bands x uint16: there is no band 3"):
        module.transform(values[..., :2])


def test_the_transform_takes_paths_images_and_arrays(exports, tmp_path):
    module = load_backbone(exports["resnet18"][0])
    assert module.transform.size == 224
    pixels = np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = [module.transform(given) for given in (
        tmp_path / "a.png", Image.open(tmp_path / "a.png"), pixels)]  # fmt: skip
    assert found[0].shape == (3, 224, 224)
    assert all(torch.equal(one, found[0]) for one in found[1:])
    steps = torchvision.transforms
    plain = steps.Compose([steps.Resize(224), steps.CenterCrop(224), steps.PILToTensor()])
    expected = plain(Image.fromarray(pixels)).float()
    expected = (expected - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert_close(found[0], expected)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read"):
        module.transform(tmp_path / "broken.jpg")
    with pytest.raises(UserError, match="got a list"):
        module.transform([1, 2])
    assert load_backbone(exports["vit-token"][0]).transform.size == 32


def test_a_public_checkpoint_is_loaded_as_well(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18-5c106cde.pth")
    module = gersp_mm.load_backbone(tmp_path / "resnet18-5c106cde.pth", "timm")
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        assert_close(module(images("resnet18")), network.eval()(images("resnet18")))


@pytest.mark.parametrize(
    "source, library, message",
    [
        ("nothing.pth", None, r"nothing\.pth does not exist"),
        ("", None, r"holds no exported backbone \(\*_mmlab\.pth or \*_backbone\.pth\)"),
        ("resnet18", "keras", "library must be one of"),
        ("mobile_backbone.pth", "timm", "MobileNetV2, for which no other library"),
        ("stem_backbone.pth", "timm", "a ResNet with another stem"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_words(tmp_path, monkeypatch, source, library, message):
    monkeypatch.chdir(tmp_path)
    configs = {
        "mobile_backbone.pth": dict(type="MobileNetV2"),
        "stem_backbone.pth": dict(type="ResNet", depth=18, deep_stem=True),
    }
    if source in configs:
        write(tmp_path / source, configs[source])
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path / source, library)


def test_a_folder_with_other_files_is_not_replaced(exports, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex\. Name a new folder"):
        write_hub_folder(read_backbone(exports["resnet18"][0]), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_push_uploads_the_folder_and_refuses_others(exports, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            calls.append(("create", name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, Path(folder_path)))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    folder = exports["resnet18"][2]
    assert hub.push(folder, "lab/name") == "https://hub/lab/name"
    assert calls == [("create", "lab/name", True, True), ("upload", "lab/name", folder)]
    with pytest.raises(UserError, match="is no hub folder"):
        hub.push(tmp_path, "lab/name")
    with pytest.raises(UserError, match="organisation/name"):
        hub.push(folder, "name")


def test_the_commands_say_what_they_wrote(exports, tmp_path, capsys, monkeypatch):
    from gersp_mm.commands.main import cli

    monkeypatch.setattr(sys, "argv", ["gersp"])
    path = exports["resnet18"][0]
    cli(["export", str(path), str(tmp_path / "out"), "--to", "hub"])
    said = capsys.readouterr().out
    assert "ResNet-18, GeRSP" in said and "licence of the weights is not stated" in said
    cli(["export", str(path), str(tmp_path / "timm.pth"), "--to", "timm"])
    state = torch.load(tmp_path / "timm.pth", weights_only=True)
    assert "conv1.weight" in state
    with pytest.raises(SystemExit) as stop:
        cli(["export", str(path), str(tmp_path / "x.pth"), "--to", "timm", "--license", "mit"])
    assert stop.value.code == 2 and "--license is for the model card" in capsys.readouterr().err
    vit = str(exports["vit-token"][0])
    with pytest.raises(SystemExit):
        cli(["export", vit, str(tmp_path / "x.pth"), "--to", "timm"])
    assert "gersp export SRC OUT --to hub" in capsys.readouterr().err


@pytest.mark.parametrize("name", NETWORKS)
def test_the_modes_return_the_module_as_torch_does(exports, name):
    module = load_backbone(exports[name][0])
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for network in (module, *copies):
        assert network.train() is network and network.training
        assert network.eval() is network and not any(m.training for m in network.modules())
        assert network.requires_grad_(False) is network and network.to("cpu") is network
    copies[0].train()
    assert not module.training


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_a_narrow_resnet_is_kept_in_the_format_of_this_package(tmp_path, to):
    config = dict(type="ResNet", depth=18, base_channels=8, stem_channels=8)
    write(tmp_path / "narrow_backbone.pth", config)
    conversion = take_backbone(tmp_path / "narrow_backbone.pth")
    with pytest.raises(UserError, match=rf"--to {to} .* this ResNet-18 has other channels .*mmlab"):
        write_backbone(conversion, tmp_path / "out.pth", to)
