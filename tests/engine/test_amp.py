"""Training in bfloat16 of every kind of detector and segmenter, evaluation included."""

from __future__ import annotations

import math

import pytest
import torch

from gersp_mm.engine.config import apply_switches
from gersp_mm.engine.full_precision import full_precision, parts_in_full_precision
from gersp_mm.engine.launch import use_amp
from tests.support.downstream import TREES, downstream_twin, trained_cases
from tests.support.runs import build
from tests.test_downstream_configs import quick_rotated_evaluation  # noqa: F401

# One of each host and kind always.
QUICK = [TREES, "dior/dyhead_r50_fpn_24e_dior.py", "eurosat/finetune_r18_eurosat.py",
         "dior/oriented-rcnn_le90_r50_fpn_1x_dior-r.py"]  # fmt: skip
CASES = trained_cases(QUICK)


@pytest.mark.parametrize("name", CASES)
def test_bf16(name, downstream_data, tmp_path, quick_rotated_evaluation):  # noqa: F811
    cfg = downstream_twin(name, downstream_data, tmp_path, iterations=1)
    cfg.pretrained = None
    apply_switches(cfg)
    use_amp(cfg, "bf16")
    runner = build(cfg)
    runner.train()
    assert runner.iter == 1
    (loss,) = runner.message_hub.get_scalar("train/loss").data[0]
    assert math.isfinite(loss)
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())
    if cfg.get("val_dataloader"):
        assert any(key.startswith("val/") for key in runner.message_hub.log_scalars)


def test_boxes_are_in_fp32_inside_and_nothing_remains_outside():
    class Head(torch.nn.Module):
        __module__ = "mmdet.models.heads"

        def predict_by_feat(self, scores, *, more):
            assert not torch.is_autocast_enabled("cpu")
            return [one.dtype for one in (*scores, more["a"])]

    head = Head()
    low = torch.ones(2, dtype=torch.bfloat16)
    parts = parts_in_full_precision(torch.nn.Sequential(head, torch.nn.Linear(2, 2)))
    assert parts == [(head, "predict_by_feat")]
    with torch.autocast("cpu", torch.bfloat16), full_precision(parts):
        kinds = head.predict_by_feat([low, low.long()], more=dict(a=low))
        assert torch.is_autocast_enabled("cpu")
    assert kinds == [torch.float32, torch.int64, torch.float32]
    assert "predict_by_feat" not in head.__dict__
