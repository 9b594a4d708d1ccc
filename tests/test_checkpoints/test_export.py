from __future__ import annotations

import pytest
import torch

from gersp_mm.backbones import export_backbone
from gersp_mm.backbones.exported import weights_sha256
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
