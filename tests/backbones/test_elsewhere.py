"""An export in other libraries, by the very lines that the converter prints and the page shows."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from gersp_mm.backbones import ExportedBackbone, elsewhere, export_backbone
from gersp_mm.backbones.architectures import Architecture
from gersp_mm.commands import convert as tool
from gersp_mm.constants import RGB_MEAN, RGB_STD
from tests.support.smoke import ROOT

PAGE = ROOT / "docs" / "guide" / "checkpoints.md"


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of a ResNet-18 whose BatchNorm has statistics."""
    path = tmp_path_factory.mktemp("export") / "run_backbone.pth"
    network = ExportedBackbone.random(Architecture.resnet(18), seed=0).build()
    network.train()
    network(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    config = Architecture.resnet(18).config
    export_backbone(state, path, "ResNet-18", "GeRSP", RGB_MEAN, RGB_STD, backbone=config)
    return path


@pytest.fixture(scope="module")
def network(exported):
    return ExportedBackbone.read(exported).build()


@pytest.fixture(scope="module")
def features(network, images):
    with torch.no_grad():
        return network(images)[-1]


@pytest.fixture
def bare(exported, tmp_path, capsys):
    """The converted file, and what the converter prints."""
    path = tmp_path / "DST.pth"
    tool.run(tool.parse_args([str(exported), str(path), "--to", "timm"]))
    return path, capsys.readouterr().out


def last_map(library, found, images):
    """The map of the last stage of what the lines of a library made."""
    if library == "torchvision":
        model = found["model"]
        model.eval()
        parts = list(model.children())[:-2]  # without pooling and classifier
        return torch.nn.Sequential(*parts)(images)
    if library == "torchvision, FPN":
        return found["model"].eval().body(images)["3"]
    if library == "timm":
        return found["model"].eval().forward_features(images)
    if library == "torchgeo":
        return found["task"].eval().model.forward_features(images)
    return found["model"].eval().encoder(images)[-1]


@pytest.mark.parametrize("library", elsewhere.LINES)
def test_the_printed_lines_load_the_file(library, bare, images, features):
    path, said = bare
    module = library.partition(",")[0].replace("-", "_")
    lines = elsewhere.lines_for(library, path, "resnet18")
    assert all(f"    {line}" in said.splitlines() for line in lines.splitlines())
    found = {"torch": torch, module: pytest.importorskip(module)}
    if module == "torchgeo":
        import_module("torchgeo.trainers")
    exec(lines, found)
    with torch.no_grad():
        difference = (last_map(library, found, images) - features).abs().max()
    assert difference < 1e-5


@pytest.mark.parametrize("library", elsewhere.LINES)
def test_the_page_shows_the_lines(library):
    assert elsewhere.lines_for(library, "DST.pth", "resnet50") in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("classes", [0, 10, 1000])
def test_timm_takes_any_number_of_classes(classes, bare, images, features):
    timm = pytest.importorskip("timm")
    lines = elsewhere.lines_for("timm", bare[0], "resnet18")
    found = {"timm": timm}
    exec(lines.replace("num_classes=10", f"num_classes={classes}"), found)
    with torch.no_grad():
        assert (last_map("timm", found, images) - features).abs().max() < 1e-5
    assert found["model"].num_classes == classes


def test_torchgeos_segmentation_takes_it_in_its_encoder(bare, images, features):
    trainers = pytest.importorskip("torchgeo.trainers")
    task = trainers.SemanticSegmentationTask(
        model="unet", backbone="resnet18", in_channels=3, num_classes=6
    ).eval()
    task.model.encoder.load_state_dict(torch.load(bare[0], weights_only=True))
    with torch.no_grad():
        assert (task.model.encoder(images)[-1] - features).abs().max() < 1e-5


def test_onnx(network, images, features, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9):
        pytest.importorskip("onnxscript")
    torch.onnx.export(network, (images,), str(tmp_path / "backbone.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "backbone.onnx"))
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.abs(given - features.numpy()).max() < 1e-5


def test_torch_export(network, images, features, tmp_path):
    path = tmp_path / "backbone.pt2"
    torch.export.save(torch.export.export(network, (images,)), path)
    with torch.no_grad():
        (given,) = torch.export.load(path).module()(images)
    assert (given - features).abs().max() < 1e-5
