"""The baselines made of GeRSP's parts against mmpretrain's own algorithms."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch.nn import functional as F

from tests.support.smoke import CONFIGS

STEPS, BATCH, SIDE, QUEUE = 4, 6, 32, 20  # the queue is no multiple of the batch


def small(cfg: Config) -> Config:
    cfg.backbone.update(depth=18, base_channels=8, stem_channels=8)
    cfg.neck.update(in_channels=64, hid_channels=64, out_channels=16)
    cfg.update(queue_len=QUEUE, feat_dim=16)
    return cfg


@pytest.fixture
def batches() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        [torch.randn(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in "qk"]
        for _ in range(STEPS)
    ]


def test_moco_v2_trains_as_mmpretrains_own_moco_does(batches, monkeypatch):
    cfg = Config.fromfile(CONFIGS / "pretrain/baselines/mocov2_r50_maid.py").model
    ours = MODELS.build(small(cfg))
    ours.init_weights()
    host = dict(
        type="MoCo",
        queue_len=QUEUE,
        feat_dim=16,
        momentum=1 - cfg.teacher_momentum,
        backbone=copy.deepcopy(cfg.backbone),
        neck=copy.deepcopy(cfg.neck),
        head=dict(
            type="ContrastiveHead",
            temperature=cfg.head.temperature,
            loss=dict(type="CrossEntropyLoss"),
        ),
    )
    theirs = MODELS.build(host)
    for model in (ours, theirs):
        model.double()
    theirs.backbone.load_state_dict(ours.backbone.state_dict())
    theirs.neck.load_state_dict(ours.neck.state_dict())
    theirs.queue.copy_(ours.queue.T)
    # theirs refuses a queue that is no multiple of the batch; ours wraps around
    monkeypatch.setattr(type(theirs), "_dequeue_and_enqueue", wrap_around)

    optimizers = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        for model in (ours, theirs)
    ]
    losses: list[tuple[float, float]] = []
    for query, key in batches:
        pair = (
            ours.loss(dict(rs_query=query, rs_key=key), [])["loss_ct"],
            theirs.loss([query, key], [])["loss"],
        )
        losses.append((pair[0].item(), pair[1].item()))
        for loss, optimizer in zip(pair, optimizers):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ours.update_teacher()  # theirs does so at the beginning of the next step
    for step, (mine, other) in enumerate(losses):
        assert mine == pytest.approx(other, rel=1e-9), step
    assert len({round(mine, 6) for mine, _ in losses}) == STEPS
    torch.testing.assert_close(ours.queue, theirs.queue.T, rtol=0, atol=1e-12)
    for mine, other in zip(ours.backbone.parameters(), theirs.backbone.parameters()):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


def wrap_around(self, keys: torch.Tensor) -> None:
    """Write keys as a ring: what mmpretrain's method does where the queue is a multiple."""
    start = int(self.queue_ptr)
    rows = (torch.arange(len(keys)) + start) % self.queue_len
    self.queue[:, rows] = keys.T
    self.queue_ptr[0] = (start + len(keys)) % self.queue_len


def test_imp_is_plain_cross_entropy():
    cfg = Config.fromfile(CONFIGS / "pretrain/baselines/imp_r18_demo.py").model
    cfg.backbone.update(base_channels=8, stem_channels=8)
    cfg.natural_head.update(in_channels=64, num_classes=5)
    model = MODELS.build(cfg).double()
    assert model.teacher is None and not hasattr(model, "queue")
    images = torch.randn(BATCH, 3, SIDE, SIDE, dtype=torch.float64)
    labels = torch.arange(BATCH) % 5
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in labels]
    losses = model.loss(dict(natural=images), samples)
    assert [name for name in losses if "loss" in name] == ["loss_ce"]
    model.train()
    features = model.backbone(images)[-1].mean((2, 3))
    expected = F.cross_entropy(model.natural_head.fc(features), labels)
    assert losses["loss_ce"].item() == pytest.approx(expected.item(), rel=1e-9)
