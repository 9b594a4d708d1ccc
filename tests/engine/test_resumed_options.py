"""Options that differ from those of a checkpoint that is resumed."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, MultiStepLR, ReduceOnPlateauLR, build_optim_wrapper
from torch import nn

from gersp_mm.engine.resumed_options import OptimizerChanges, OptionChanges
from gersp_mm.utils.errors import UserError
from tests.support.smoke import CONFIGS

LENGTH = 5  # iterations of an epoch


class Run:
    """Two groups, a warm-up by iteration and steps by epoch."""

    def __init__(self, lr=0.1, mult=0.1, decay=1e-4, milestones=(2,), warm_up=3, plateau=False):
        model = nn.ModuleDict(dict(body=nn.Linear(2, 2), head=nn.Linear(2, 2)))
        options = dict(
            optimizer=dict(type="SGD", lr=lr, momentum=0.9, weight_decay=decay),
            paramwise_cfg=dict(custom_keys=dict(body=dict(lr_mult=mult, decay_mult=0.5))),
        )
        self.wrapper = build_optim_wrapper(model, options)
        self.schedulers = [
            LinearLR(self.wrapper, start_factor=0.1, by_epoch=False, begin=0, end=warm_up),
            MultiStepLR(self.wrapper, milestones=list(milestones), gamma=0.1),
        ]
        if plateau:
            self.schedulers.append(ReduceOnPlateauLR(self.wrapper, monitor="x"))

    def train(self, iterations, done=0):
        for number in range(done + 1, done + iterations + 1):
            self.wrapper.optimizer.step()
            self.schedulers[0].step()
            if number % LENGTH == 0:
                self.schedulers[1].step()
        return self

    def checkpoint(self):
        content = dict(
            optimizer=self.wrapper.state_dict(),
            param_schedulers=[scheduler.state_dict() for scheduler in self.schedulers],
        )
        return copy.deepcopy(content)

    def resume(self, checkpoint):
        """In MMEngine's order."""
        changes = OptimizerChanges(checkpoint, self.wrapper, self.schedulers, LENGTH)
        self.wrapper.load_state_dict(checkpoint["optimizer"])
        for scheduler, state in zip(self.schedulers, checkpoint["param_schedulers"]):
            scheduler.load_state_dict(state)
        changes.apply(self.wrapper, self.schedulers)
        return self

    def groups(self):
        names = ("lr", "initial_lr", "weight_decay", "momentum")
        return [[group[name] for name in names] for group in self.wrapper.optimizer.param_groups]


CHANGES = [
    dict(lr=0.5),
    dict(mult=0.7),
    dict(decay=0.3),
    dict(milestones=(1, 3)),
    dict(warm_up=9),
    dict(lr=0.2, mult=0.5, milestones=(3,), decay=0.01),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("done", [2, 7, 13])
def test_a_resumed_run_goes_on_as_one_that_began_so(change, done):
    old = Run().train(done)
    resumed = Run(**change).resume(old.checkpoint())
    whole = Run(**change).train(done)
    differs = False
    for _ in range(3):
        assert resumed.groups() == whole.groups()
        differs |= resumed.groups() != old.groups()
        for run in (resumed, whole, old):
            run.train(3, done)
        done += 3
    assert differs or "warm_up" in change  # which may be over


def test_nothing_is_touched_where_nothing_differs():
    """Not even a learning rate that something else has moved."""
    first = Run().train(7)
    for group in first.wrapper.optimizer.param_groups:
        group["lr"] *= 3
    assert Run().resume(first.checkpoint()).groups() == first.groups()


def test_a_schedule_that_follows_a_metric_is_refused():
    checkpoint = Run(plateau=True).train(7).checkpoint()
    with pytest.raises(UserError, match="follows a metric"):
        Run(lr=0.5, plateau=True).resume(checkpoint)
    Run(plateau=True).resume(checkpoint)


def test_three_lists():
    before = dict(
        pretrained="/old/place/imp.pth",
        randomness=dict(seed=1),
        optim_wrapper=dict(optimizer=dict(lr=0.1, betas=(0.9, 0.99))),
        train_cfg=dict(max_epochs=3, val_interval=None),
        model=dict(backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="/old/imp.pth"))),
        param_scheduler=[dict(type="MultiStepLR", milestones=[1, 2])],
        custom_hooks=[dict(type="A", interval=1)],
    )
    now = copy.deepcopy(before)
    now["optim_wrapper"]["optimizer"].update(lr=0.2, betas=[0.9, 0.99])
    now["train_cfg"].update(max_epochs=4, val_interval=None)
    now["param_scheduler"][0]["milestones"] = [1, 3]
    now["custom_hooks"][0]["interval"] = 2
    now.update(resume=True, pretrained="/new/imp.pth", launcher="pytorch")
    found = OptionChanges(before, now)
    assert found.refused == []  # the file was moved
    assert found.in_effect == [
        "custom_hooks.0.interval=2 (was 1)", "train_cfg.max_epochs=4 (was 3)",
    ]  # fmt: skip
    assert found.applied == [
        "optim_wrapper.optimizer.lr=0.2 (was 0.1)",
        "param_scheduler.0.milestones=[1,3] (was [1,2])",
    ]
    now.update(pretrained="/new/moco.pth", randomness=dict(seed=2))
    found = OptionChanges(before, now)
    assert found.refused == [
        "pretrained=/new/moco.pth (was /old/place/imp.pth)", "randomness.seed=2 (was 1)",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"a resumed run cannot change pretrained.*load_from=x"):
        found.refuse("x.pth")


def test_weights_to_start_from_need_not_be_named_again():
    before = dict(
        pretrained="a.pth", model=dict(backbone=dict(init_cfg=dict(checkpoint="a.pth", type="P")))
    )
    not_given = dict(
        pretrained="not-given",
        model=dict(backbone=dict(init_cfg=dict(checkpoint="not-given", type="P", prefix="b."))),
    )
    for now in (not_given, dict(model=dict(backbone=dict(init_cfg=None)))):
        assert OptionChanges(before, now).refused == []
    scratch = dict(pretrained=None, model=dict(backbone=dict()))
    assert OptionChanges(scratch, not_given).refused == []
    assert len(OptionChanges(scratch, before).refused) == 2


def test_what_is_no_plain_data_is_not_compared():
    text = dict(cfg="model = dict(loss=make(3), size=2)")
    found = OptionChanges.of_checkpoint(text, dict(model=dict(loss=dict(type="A"), size=3)))
    assert found.in_effect == ["model.size=3 (was 2)"]
    assert OptionChanges.of_checkpoint({}, dict(a=1)).in_effect == []
    assert OptionChanges(dict(a=torch.float32), dict(a=torch.float16)).in_effect == []


@pytest.mark.parametrize(
    "name", ["pretrain/gersp_r50.py", "downstream/eurosat/finetune_r18_eurosat.py",
             "downstream/loveda/deeplabv3plus_r50-d8_80k_loveda.py"],
)  # fmt: skip
def test_a_shipped_config_is_the_one_in_its_checkpoint(name):
    cfg = Config.fromfile(CONFIGS / name)
    meta = dict(cfg=cfg.pretty_text)
    found = OptionChanges.of_checkpoint(meta, cfg)
    assert found.in_effect == found.applied == found.refused == []
    cfg.optim_wrapper.optimizer.lr = 0.123
    (found,) = OptionChanges.of_checkpoint(meta, cfg).applied
    assert found.startswith("optim_wrapper.optimizer.lr=0.123 (was 0.")
