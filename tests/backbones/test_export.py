from __future__ import annotations

import pytest
import torch
from mmpretrain.models import ResNet

from gersp_mm.backbones import ExportedBackbone, export_backbone
from gersp_mm.backbones.architectures import DEPTHS, Architecture
from gersp_mm.backbones.named import load_backbones
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.utils.errors import UserError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
ABOUT = dict(arch="ResNet-18", method="GeRSP", mean=MEAN, std=STD)


def state_dict():
    return {
        "backbone.conv.weight": torch.arange(12.0).view(3, 4).t(),
        "backbone.bn.num_batches_tracked": torch.tensor(7),
        "teacher.backbone.conv.weight": torch.ones(4, 3),
        "backbones.other": torch.ones(1),
        "queue": torch.ones(8, 2),
    }


def test_written_file(tmp_path):
    path = tmp_path / "new_folder" / "backbone.pth"
    meta = export_backbone(state_dict(), path, epoch=3, source_sha256="ab" * 32, **ABOUT)
    exported = torch.load(path, weights_only=True)
    assert exported["meta"] == meta
    assert exported["state_dict"].keys() == {
        "backbone.conv.weight",
        "backbone.bn.num_batches_tracked",
    }
    assert torch.equal(
        exported["state_dict"]["backbone.conv.weight"], state_dict()["backbone.conv.weight"]
    )
    assert meta["normalisation"] == dict(mean=MEAN, std=STD, channel_order="RGB")
    assert (meta["epoch"], meta["config"], meta["source_sha256"]) == (3, None, "ab" * 32)


def test_an_unknown_method_is_none_and_gives_no_name(tmp_path):
    path = tmp_path / "b.pth"
    state = {f"backbone.{k}": v for k, v in ResNet(18).state_dict().items()}
    export_backbone(state, path, **{**ABOUT, "method": None})
    assert ExportedBackbone.read(path).meta.method is None
    (named,) = load_backbones([str(path)])
    assert named.name == "b"


def test_a_view_is_not_written_with_the_whole_it_belongs_to(tmp_path):
    path = tmp_path / "backbone.pth"
    export_backbone({"backbone.a": torch.zeros(10**6)[:10]}, path, **ABOUT)
    assert path.stat().st_size < 10**4


def test_existing_file_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "backbone.pth"
    export_backbone(state_dict(), path, **ABOUT)
    old = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_backbone(state_dict(), path, **ABOUT)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_export_is_refused(tmp_path):
    path = tmp_path / "backbone.pth"
    with pytest.raises(UserError, match=f"nothing to export to {path}: .* with 'backbone.'"):
        export_backbone({"conv.weight": torch.ones(1)}, path, **ABOUT)
    assert not path.exists()


def test_hash_sees_names_types_shapes_and_values_and_nothing_else():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)}
    reference = weights_sha256(base)
    assert weights_sha256(dict(reversed(base.items()))) == reference
    assert weights_sha256({**base, "a": torch.zeros(3, 2).t()}) == reference
    changes = [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.full((2, 3), 1e-9)]
    others = [weights_sha256({**base, "a": change}) for change in changes]
    others.append(weights_sha256({"c": base["a"], "b": base["b"]}))
    assert len({reference, *others}) == 5


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_standard_resnet_is_known_by_name_config_and_module(depth):
    known = Architecture("ResNet-" + str(depth), dict(type="ResNet", depth=depth))
    for given in (f"resnet{depth}", f"ResNet-{depth}", known.config):
        assert Architecture.parse(given) == known
    assert Architecture.of(type("ResNet", (), dict(depth=depth))()).name == known.name


def test_an_export_is_built_from_its_own_meta(tmp_path):
    cfg = dict(type="ResNet", depth=18, base_channels=8, stem_channels=8, out_indices=(3,))
    drawn = ExportedBackbone.random(Architecture.parse(cfg), seed=0).build()
    state = {f"backbone.{name}": tensor for name, tensor in drawn.state_dict().items()}
    start = dict(cfg, init_cfg=dict(type="Pretrained", checkpoint="gone.pth"))
    meta = export_backbone(state, tmp_path / "a.pth", backbone=start, frozen=-1, **ABOUT)
    assert meta["backbone"] == cfg and meta["frozen"] == -1
    exported = ExportedBackbone.read(tmp_path / "a.pth")
    assert exported.architecture == Architecture("ResNet-18", cfg)
    exported.release()  # the tensors are then read again
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(exported.build()(images)[-1], drawn(images)[-1])
    exported.save(tmp_path / "b" / "a.pth")
    assert (tmp_path / "b" / "a.pth").read_bytes() == (tmp_path / "a.pth").read_bytes()


def test_a_file_that_is_replaced_while_it_is_in_use_is_refused(tmp_path):
    export_backbone(state_dict(), tmp_path / "a.pth", **ABOUT)
    exported = ExportedBackbone.read(tmp_path / "a.pth")
    exported.release()
    other = {name: tensor + 1 for name, tensor in state_dict().items()}
    export_backbone(other, tmp_path / "a.pth", **ABOUT)
    with pytest.raises(UserError, match="was replaced while it was in use"):
        _ = exported.tensors
