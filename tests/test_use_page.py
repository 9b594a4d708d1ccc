"""The blocks of docs/guide/use.md run as they stand, on a hub folder of the name that they have."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gersp_mm.backbones import export_backbone
from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.build import build_network
from gersp_mm.backbones.hub import write_hub_folder
from gersp_mm.backbones.load import read_backbone
from gersp_mm.constants import PREFIX, RGB_MEAN, RGB_STD
from tests.test_documented_commands import block

LIBRARIES = {
    "use-gersp": (),
    "use-torchvision": (),
    "use-timm": ("timm",),
    "use-transformers": ("timm", "transformers"),
    "use-smp": ("segmentation_models_pytorch",),
    "use-torchgeo": ("torchgeo",),
    "use-mmlab": (),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    root = tmp_path_factory.mktemp("use")
    torch.manual_seed(0)
    config = dict(type="ResNet", depth=50)
    network = build_network(Architecture.parse(config))
    network.init_weights()
    network.eval()
    state = {PREFIX + name: tensor for name, tensor in network.state_dict().items()}
    export_backbone(
        state, root / "gersp_r50_backbone.pth", "ResNet-50", "GeRSP", RGB_MEAN, RGB_STD, 100,
        backbone=config,
    )  # fmt: skip
    write_hub_folder(read_backbone(root), root / "hub" / "gersp-r50", "cc-by-4.0")
    pixels = np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "photograph.jpg")
    return root, network


@torch.no_grad()
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_block_of_the_page_gives_this_backbone(folder, name, monkeypatch):
    missing = [library for library in LIBRARIES[name] if find_spec(library) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed")
    root, network = folder
    monkeypatch.chdir(root)
    found: dict = {}
    exec(block(name)[1], found)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = network(x)[-1]
    if name == "use-gersp":
        assert found["features"].shape == (1, 2048, 7, 7)
        expected, x = network(found["x"])[-1], None
        given = found["features"]
    elif name == "use-torchvision":
        given = found["detector"].eval().backbone.body(x)["3"]
        assert found["detector"].transform.image_mean == pytest.approx([0.485, 0.456, 0.406])
    elif name == "use-timm":
        assert found["config"]["mean"] == pytest.approx((0.485, 0.456, 0.406))
        given = found["model"].eval().forward_features(x)
    elif name == "use-transformers":
        assert found["features"].flatten(1).shape == (1, 2048)
        given = found["model"].eval()(x).last_hidden_state
    elif name == "use-smp":
        given = found["model"].encoder.eval()(x)[-1]
    elif name == "use-torchgeo":
        given = found["task"].model.eval().forward_features(x)
    else:
        from mmpretrain.registry import MODELS

        built = MODELS.build(found["backbone"])
        built.init_weights()
        built.eval()
        given = built(x)[-1]
        assert found["data_preprocessor"]["mean"] == pytest.approx(RGB_MEAN)
    assert float((given - expected).abs().max() / expected.abs().max()) < 1e-5
