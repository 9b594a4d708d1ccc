"""What plans of the tests name: images and a backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmpretrain.models import ResNet

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.constants import RGB_MEAN, RGB_STD
from tests.support.smoke import forget_runs, write_classes, write_images


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a backbone."""
    folder = tmp_path_factory.mktemp("made")
    write_classes(folder / "train", 3, 6)
    for label in range(3):
        write_images(folder / "test" / f"class_{label}", 3, seed=200 + label)
    torch.manual_seed(0)
    state = {f"backbone.{n}": t for n, t in ResNet(18).state_dict().items()}
    scale = dict(mean=list(RGB_MEAN), std=list(RGB_STD))
    export_backbone(state, folder / "b.pth", "ResNet-18", "GeRSP", **scale)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """Work here, with links to what was made."""
    for name in ("train", "test", "b.pth"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget_runs()
