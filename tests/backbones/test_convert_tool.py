"""tools/model_converters/convert_checkpoint.py: what it prints, writes, refuses and repeats."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn

from gersp_mm.backbones import verify
from gersp_mm.backbones.architectures import resnet_shapes
from gersp_mm.backbones.sources import NAMES
from gersp_mm.commands import convert as tool
from gersp_mm.commands.options import run_tool
from gersp_mm.utils.files import file_sha256
from tests.support import checkpoints as builders
from tests.support.checkpoints import backbone, plain_resnet, random_resnet
from tests.support.smoke import ROOT

TOOL = ROOT / "tools" / "model_converters" / "convert_checkpoint.py"


def run(*arguments: object) -> None:
    run_tool(tool.run, tool.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def network():
    return random_resnet(18)


@pytest.fixture
def released(network, tmp_path):
    path = tmp_path / "epoch_100.pth"
    builders.released_gersp(path, network, plain_resnet(18))
    return path


def test_report_and_verification(released, tmp_path, capsys):
    target = tmp_path / "new folder" / "gersp_r18.pth"
    run(released, target, "--verify")
    meta = torch.load(target, weights_only=True)["meta"]
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "taken: student 120/120",
        "left out: teacher 124",
        "left out: second name of the student 120",
        "left out: queue 2",
        "left out: projector 8",
        "left out: classifier 2",
        "in the file 376",
        "recognised GeRSP, because its names are like 'backbone.layer1.0.conv1.weight' and it has "
        "'proj_q'",
        "architecture ResNet-18",
        "epochs 100",
        "normalisation mean 123.675/116.28/103.53, std 58.395/57.12/57.375, RGB, of 0-255",
        f"source sha256 {file_sha256(released)}",
        f"weights sha256 {meta['weights_sha256']}",
        "verified features differ by 0.0e+00 of the largest at most",
        f"wrote {target} (mmlab names)",
    ):
        assert line in lines, text
    assert meta["source_sha256"] == file_sha256(released)


def test_warnings_and_images_are_printed(tmp_path, capsys):
    network = plain_resnet(18)
    builders.caco(tmp_path / "download.pth", network, network)
    run(tmp_path / "download.pth", tmp_path / "out.pth")
    text = capsys.readouterr().out
    assert (
        "WARNING        the files of SeCo (--source seco), CACo (--source caco) look alike" in text
    )
    assert "images         Sentinel-2 bands B4, B3, B2, stretched" in text


def test_round_trip_is_bit_identical(released, tmp_path):
    files = [tmp_path / f"{step}.pth" for step in range(4)]
    run(released, files[0])
    for step, names in enumerate(("torchvision", "timm", "mmlab")):
        run(files[step], files[step + 1], "--to", names)
    first, last = (torch.load(path, weights_only=True) for path in (files[0], files[3]))
    assert first["meta"] == last["meta"]
    assert list(first["state_dict"]) == list(last["state_dict"])
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, last["state_dict"][name])
        assert tensor.dtype == last["state_dict"][name].dtype
    assert file_sha256(files[0]) == file_sha256(files[3])
    bare = [torch.load(path, weights_only=True) for path in files[1:3]]
    assert list(bare[0]) == list(bare[1]) == list(resnet_shapes(18))
    assert not any(path.name.endswith(".tmp") for path in tmp_path.iterdir())


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_bare_files_load_strictly_and_carry_their_meta(to, released, network, tmp_path):
    target = tmp_path / f"{to}.pth"
    run(released, target, "--to", to)
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    model.load_state_dict(torch.load(target, weights_only=True), strict=True)
    for name, tensor in backbone(network).items():
        assert torch.equal(model.state_dict()[name], tensor)
    meta = json.loads((tmp_path / f"{to}.pth.json").read_text())
    assert (meta["method"], meta["epoch"], meta["arch"]) == ("GeRSP", 100, "ResNet-18")


def test_a_side_file_of_other_weights_is_refused(released, tmp_path, capsys):
    run(released, tmp_path / "bare.pth", "--to", "torchvision")
    torch.save(plain_resnet(18).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(SystemExit):
        run(tmp_path / "bare.pth", tmp_path / "out.pth")
    assert "are not those that were exported" in capsys.readouterr().err


def test_converting_again_changes_nothing(released, tmp_path):
    once, twice = tmp_path / "once.pth", tmp_path / "twice.pth"
    run(released, once)
    run(once, twice, "--verify")
    run(once, twice)  # over an existing file
    first, second = (torch.load(path, weights_only=True) for path in (once, twice))
    assert first["meta"] == second["meta"]
    assert all(torch.equal(t, second["state_dict"][n]) for n, t in first["state_dict"].items())


def test_nothing_is_written_where_anything_fails(released, tmp_path, capsys, monkeypatch):
    target = tmp_path / "target.pth"
    target.write_bytes(b"what was there")
    wrong = tmp_path / "wrong.pth"
    torch.save(dict(state_dict={"neck.0.weight": torch.zeros(1)}), wrong)
    for arguments, reason in (
        ((wrong, target), "it holds projector alone"),
        ((released, target, "--arch", "resnet50"), "is not a complete ResNet-50"),
        ((released, tmp_path), "is a folder. Name the file to write."),
        ((released, released), f"SRC and DST are both {released}"),
        ((tmp_path / "absent", target), "there is no file"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and reason in error and "\n" not in error
    monkeypatch.setattr(verify, "require_same_features", lambda conversion: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(released, target, "--verify")
    assert target.read_bytes() == b"what was there"
    assert not any(path.name.endswith(".tmp") for path in tmp_path.iterdir())


def test_help_names_every_source(capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in NAMES) and "Examples:" in text
