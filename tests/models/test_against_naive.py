"""Losses and three training steps against a re-derivation in plain loops and float64."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests.support.models import FEAT_DIM, QUEUE_LEN, batch, tiny_gersp, total

ALPHA, TEMPERATURE, TEACHER_MOMENTUM = 0.7, 0.1, 0.9
LR, SGD_MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-2
STEPS = 3
RS = 6  # does not divide the queue, so that the third step wraps around


class Naive:
    """GeRSP as one would write it down from the paper, one number at a time.

    Network layers are PyTorch's; everything the method adds to them is a loop: normalisation,
    losses, queue, SGD and the moving average.
    """

    def __init__(self, model: nn.Module) -> None:
        self.student = nn.ModuleList([model.backbone, model.neck, model.natural_head.fc])
        self.student = copy.deepcopy(self.student).double()
        self.teacher = copy.deepcopy(nn.ModuleList([model.backbone, model.neck])).double()
        self.queue = [row.clone() for row in model.queue.double()]
        self.oldest = 0
        self.velocity = [torch.zeros_like(p) for p in self.student.parameters()]

    def losses(self, inputs: dict, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        backbone, neck, fc = self.student
        n = len(inputs["rs_query"])
        maps = backbone(torch.cat([inputs["rs_query"], inputs["natural"]]))[0]
        queries = neck((maps[:n],))[0]
        with torch.no_grad():
            keys = self.teacher[1](self.teacher[0](inputs["rs_key"]))[0]

        loss_ct = torch.zeros((), dtype=torch.float64)
        new_keys = []
        for q, k in zip(queries, keys):
            q = q / (q * q).sum().sqrt()
            k = k / (k * k).sum().sqrt()
            positive = torch.exp((q * k).sum() / TEMPERATURE)
            negatives = sum(torch.exp((q * row).sum() / TEMPERATURE) for row in self.queue)
            loss_ct = loss_ct - torch.log(positive / (positive + negatives)) / n
            new_keys.append(k)

        loss_ce = torch.zeros((), dtype=torch.float64)
        for feature_map, label in zip(maps[n:], labels):
            feature = torch.stack([channel.sum() / channel.numel() for channel in feature_map])
            scores = [(row * feature).sum() + b for row, b in zip(fc.weight, fc.bias)]
            normaliser = sum(torch.exp(score) for score in scores)
            loss_ce = loss_ce - torch.log(torch.exp(scores[label]) / normaliser) / len(labels)

        for k in new_keys:
            self.queue[self.oldest] = k
            self.oldest = (self.oldest + 1) % len(self.queue)
        return loss_ct, ALPHA * loss_ce

    @torch.no_grad()
    def step(self) -> None:
        for p, v in zip(self.student.parameters(), self.velocity):
            v.copy_(SGD_MOMENTUM * v + p.grad + WEIGHT_DECAY * p)
            p.copy_(p - LR * v)
            p.grad = None
        learned = [*self.student[0].parameters(), *self.student[1].parameters()]
        for t, s in zip(self.teacher.parameters(), learned):
            t.copy_(TEACHER_MOMENTUM * t + (1 - TEACHER_MOMENTUM) * s)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    difference = (value.detach().double() - reference.detach()).abs().max()
    return float(difference / reference.detach().abs().max().clamp(min=1e-12))


def test_three_steps_equal_the_naive_loops():
    model = tiny_gersp(
        alpha=ALPHA,
        teacher_momentum=TEACHER_MOMENTUM,
        head=dict(type="gersp_mm.InfoNCEHead", temperature=TEMPERATURE),
    ).double()
    naive = Naive(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=LR, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        arguments = batch(rs=RS, seed=step, dtype=torch.float64)
        labels = [int(sample.gt_label) for sample in arguments["data_samples"]]
        losses = model.loss(**arguments)
        loss_ct, loss_ce = naive.losses(arguments["inputs"], labels)
        assert relative_error(losses["loss_ct"], loss_ct) < 1e-6
        assert relative_error(losses["loss_ce"], loss_ce) < 1e-6

        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        model.update_teacher()
        (loss_ct + loss_ce).backward()
        naive.step()

        student = [model.backbone, model.neck, model.natural_head.fc]
        ours = [p for part in student for p in part.parameters()]
        for p, reference in zip(ours, naive.student.parameters()):
            assert relative_error(p, reference) < 1e-6
        for p, reference in zip(model.teacher.parameters(), naive.teacher.parameters()):
            assert relative_error(p, reference) < 1e-6
        assert relative_error(model.queue, torch.stack(naive.queue)) < 1e-6
        assert int(model.queue_ptr) == naive.oldest
    assert naive.oldest == STEPS * RS % QUEUE_LEN
    assert model.queue.shape == (QUEUE_LEN, FEAT_DIM)
