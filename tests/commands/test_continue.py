"""Pre-training that starts from other weights."""

from __future__ import annotations

import pytest
import torch
from mmengine.hooks import Hook

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.engine.config import apply_switches
from gersp_mm.utils.errors import UserError
from tests.support.runs import build, demo_config, load


class AtStart(Hook):
    """Keeps the state before the first iteration."""

    priority = "LOWEST"

    def before_train(self, runner):
        self.state = {k: v.clone() for k, v in runner.model.state_dict().items()}


@pytest.fixture
def other(pair_data, tmp_path):
    """An exported backbone of another seed, and its state dict."""
    cfg = demo_config(pair_data, tmp_path / "other")
    cfg.randomness = dict(seed=5)
    model = build(cfg).model
    model.init_weights()
    path = tmp_path / "other.pth"
    export_backbone(model.state_dict(), path, "ResNet-18", "IMP", list(RGB_MEAN), list(RGB_STD))
    return path, torch.load(path, weights_only=True)["state_dict"]


def test_student_and_teacher_start_from_the_file_and_equal(other, pair_data, tmp_path):
    path, stored = other
    cfg = demo_config(pair_data, tmp_path / "run")
    cfg.pretrained = str(path)
    apply_switches(cfg)
    hook = AtStart()
    runner = build(cfg, hook)
    runner.train()
    for name, tensor in stored.items():
        assert torch.equal(hook.state[name], tensor), name
    students = [n for n in hook.state if n.startswith(("backbone.", "neck."))]
    for name in students:
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(hook.state[f"teacher.{name}"], hook.state[name]), name
    meta = load(tmp_path / "run" / "epoch_1.pth")["meta"]
    assert meta["pretrained"]["method"] == "IMP" and meta["pretrained"]["path"] == str(path)


def test_a_file_that_does_not_fit_is_refused(other, pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path / "run")
    cfg.model.backbone.depth = 34
    cfg.pretrained = str(other[0])
    apply_switches(cfg)
    with pytest.raises(UserError, match="set backbone.depth to that of the checkpoint"):
        build(cfg).train()


def test_a_teacher_that_starts_apart_is_refused(pair_data, tmp_path):
    class Spoil(Hook):
        priority = "VERY_HIGH"

        def before_train(self, runner):
            with torch.no_grad():
                next(runner.model.teacher.parameters()).add_(1e-6)

    runner = build(demo_config(pair_data, tmp_path / "run"))
    runner._hooks.insert(0, Spoil())
    with pytest.raises(UserError, match="teacher does not start as a copy of the student"):
        runner.train()
