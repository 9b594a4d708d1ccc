"""Short real training runs of the demo config, and comparing what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gersp_mm.utils.errors import UserError
from tests.support.smoke import forget_runs, smoke_twin

BATCH = 4


def demo_config(data: Path, work_dir: Path, iterations: int = 4, epochs: int = 1) -> Config:
    """The demo config with batches of 4 small images and a network of 8 to 64 channels."""
    cfg = smoke_twin("gersp_r18_demo.py", data, work_dir, iterations)
    cfg.model.backbone.update(stem_channels=8, base_channels=8)
    cfg.model.neck.update(in_channels=64, hid_channels=64)
    cfg.model.natural_head.update(in_channels=64, num_classes=3, topk=(1,))
    cfg.train_cfg.max_epochs = epochs
    cosine = dict(type="CosineAnnealingLR", T_max=epochs, eta_min=0.001, convert_to_iter_based=True)
    cfg.param_scheduler = [cosine]
    cfg.log_level = "WARNING"
    return cfg


def build(cfg: Config, *hooks: Hook) -> Runner:
    """A runner as a process of its own would build it, with hooks that run after all others."""
    forget_runs()
    torch.set_num_threads(1)  # another number rounds differently
    with mock.patch.object(Runner, "_log_env"):  # asks compilers for their versions
        runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook, priority="LOWEST")
    return runner


def train(cfg: Config, *hooks: Hook) -> Runner:
    """Run a config to its end."""
    runner = build(cfg, *hooks)
    runner.train()
    return runner


def resumed(cfg: Config, checkpoint: str | Path) -> Config:
    """The config of the same run, going on from a checkpoint."""
    cfg.resume, cfg.load_from = True, str(checkpoint)
    return cfg


def load(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint of a test's own."""
    return torch.load(path, map_location="cpu", weights_only=False)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Compare nested containers, tensors bit by bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where} differs by {(a.double() - b.double()).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}[{number}]")
    else:
        assert a == b, where


def assert_same_training_state(a: str | Path, b: str | Path) -> None:
    """Weights, teacher, queue, optimizer and schedule of two checkpoints are equal bit by bit."""
    first, second = load(a), load(b)
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert_same(first[part], second[part], part)
    for part in ("epoch", "iter"):
        assert first["meta"][part] == second["meta"][part]


def refusal_of(cfg) -> str:
    """Return why a run is refused before its first step."""
    runner = build(cfg)
    with pytest.raises(UserError) as caught:
        runner.train()
    assert runner.iter == 0
    return str(caught.value)
