"""Batches and checkpoints of segmentation, which counts iterations."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from gersp_mm.commands import train as tool
from gersp_mm.engine.preflight.batch import check_pooled_norm
from gersp_mm.utils.errors import UserError
from tests.support.downstream import downstream_twin
from tests.support.smoke import forget_runs


@pytest.fixture(scope="module")
def loveda(downstream_data, tmp_path_factory):
    pytest.importorskip("mmseg")
    name = "loveda/deeplabv3plus_r50-d8_80k_loveda.py"
    cfg = downstream_twin(name, downstream_data, tmp_path_factory.mktemp("loveda"), iterations=1)
    cfg.pop("work_dir")
    return cfg


def refusal(cfg, tmp_path, *options):
    forget_runs()
    copy.deepcopy(cfg).dump(tmp_path / "a.py")
    arguments = [str(tmp_path / "a.py"), "--work-dir", str(tmp_path / "work"), "--cfg-options",
                 "pretrained=None", *options]  # fmt: skip
    with pytest.raises(UserError) as caught:
        tool.run(tool.parse_args(arguments))
    assert not list((tmp_path / "work").glob("*.pth"))
    return str(caught.value)


def test_one_image_per_process_and_a_head_that_pools(loveda, tmp_path):
    text = refusal(loveda, tmp_path, "train_dataloader.batch_size=1")
    assert "does not work with the BatchNorm of decode_head.image_pool" in text
    assert "every batch has one image per process. Use at least 2" in text


def test_checkpoints_by_epoch_in_a_run_by_iteration(loveda, tmp_path):
    text = refusal(loveda, tmp_path, "default_hooks.checkpoint.by_epoch=True")
    assert "default_hooks.checkpoint counts epochs, but the run counts iterations" in text
    assert "Set default_hooks.checkpoint.by_epoch=False" in text


def runner_of(model, images, batch, epochs=True, drop_last=False):
    data = torch.utils.data.TensorDataset(torch.zeros(images))
    sampler = DefaultSampler(data, shuffle=False) if epochs else InfiniteSampler(data)
    loader = torch.utils.data.DataLoader(data, batch, sampler=sampler, drop_last=drop_last)
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop) if epochs else object()
    return SimpleNamespace(model=model, train_dataloader=loader, train_loop=loop)


def pyramid(scale, norm="BN"):
    """PSPNet's pooling, one branch of it."""
    conv = ConvModule(4, 4, 1, norm_cfg=dict(type=norm) if norm else None)
    return nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv)])


@pytest.mark.parametrize(
    "model, options, found",
    [
        (pyramid(1), dict(images=9, batch=4), "the last of 3 batches of an epoch has one image"),
        (pyramid(1), dict(images=9, batch=4, drop_last=True), None),
        (pyramid(1), dict(images=9, batch=4, epochs=False), None),
        (pyramid(1), dict(images=8, batch=4), None),
        (pyramid(1), dict(images=8, batch=1), "every batch has one image"),
        (pyramid(2), dict(images=8, batch=1), None),
        (pyramid(1, norm=None), dict(images=8, batch=1), None),
        (pyramid(1).eval(), dict(images=8, batch=1), None),
    ],
)
def test_a_batch_of_one_in_a_pyramid_of_poolings(model, options, found):
    findings = list(check_pooled_norm(runner_of(model, **options)))
    assert [found in finding.text for finding in findings] == ([True] if found else [])
    if found:  # as PyTorch says in the middle of the run
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model[0](torch.zeros(1, 4, 8, 8))
