from __future__ import annotations

from unittest import mock

import pytest
import torch
from mmengine.hooks import Hook

from gersp_mm.engine.hooks import CollapseMonitorHook
from gersp_mm.utils.errors import UserError
from tests.support.runs import build, demo_config, load


class PoisonAt(Hook):
    """Break the student's weights before one iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            with torch.no_grad():
                runner.model.backbone.conv1.weight.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=6)
    cfg.default_hooks.collapse_monitor.interval = 2
    runner = build(cfg, PoisonAt(2))
    with pytest.raises(UserError) as caught:
        runner.train()
    text = str(caught.value)
    assert text.startswith("at iteration 4 {")
    assert "'loss_ct': nan" in text
    assert "Lower optim_wrapper.optimizer.lr, warm it up, or train without --amp" in text
    assert not list(tmp_path.glob("*.pth"))


def test_no_checkpoint_is_written_with_broken_weights_between_two_looks(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=3, epochs=3)
    cfg.default_hooks.collapse_monitor.interval = 1000
    text = "after epoch 2, iteration 6, .*backbone.conv1.weight.* hold NaN or infinity"
    with pytest.raises(UserError, match=text):
        build(cfg, PoisonAt(4)).train()
    assert [path.name for path in tmp_path.glob("epoch_*")] == ["epoch_1.pth"]
    for file in ("epoch_1.pth", "gersp_r18_demo_backbone.pth"):
        weights = load(tmp_path / file)["state_dict"]
        assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())


def test_queue_age_grows_to_the_length_of_the_queue(pair_data, tmp_path):
    """16 keys and batches of 4: the oldest key is 4 steps old from the fourth iteration on."""
    cfg = demo_config(pair_data, tmp_path, iterations=6)
    cfg.model.queue_len = 16
    cfg.default_hooks.collapse_monitor.interval = 1
    runner = build(cfg)
    runner.train()
    ages = runner.message_hub.get_scalar("train/queue_age").data[0]
    assert ages.tolist() == [1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize("min_std, warmup, warns", [(2.0, 2, 2), (2.0, 4, 0), (0.0, 0, 0)])
def test_collapse_is_warned_about_after_the_warmup(pair_data, tmp_path, min_std, warmup, warns):
    cfg = demo_config(pair_data, tmp_path, iterations=4)
    cfg.default_hooks.collapse_monitor.update(interval=1, min_std=min_std, warmup=warmup)
    runner = build(cfg)
    with mock.patch.object(runner.logger, "warning") as warning:
        runner.train()
    texts = [str(call.args[0]) for call in warning.call_args_list]
    assert sum("features are collapsing: feat_std is" in text for text in texts) == warns


def test_the_device_is_waited_for_once_a_check(pair_data, tmp_path, monkeypatch):
    cfg = demo_config(pair_data, tmp_path, iterations=2)
    cfg.default_hooks.collapse_monitor.interval = 1
    runner = build(cfg)
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, CollapseMonitorHook)]
    reads, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(t.numel()) or tolist(t))
    for name in ("__float__", "item"):
        monkeypatch.setattr(torch.Tensor, name, None)
    outputs = dict(loss=torch.tensor(2.0), loss_ct=torch.tensor([float("nan")]))
    with pytest.raises(UserError, match=r"at iteration 1 \{'loss_ct': nan\} is not finite"):
        hook.after_train_iter(runner, 0, outputs=outputs)
    assert reads == [2]
