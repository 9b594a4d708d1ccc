from __future__ import annotations

import pytest
from mmengine.hooks import Hook

from gersp_mm.engine.hooks import AlphaScheduleHook
from gersp_mm.utils.errors import UserError
from tests.support.runs import demo_config, resumed, train


class Weights(Hook):
    """Notes L_ce as it entered the total, and as it was without its weight."""

    priority = "VERY_LOW"

    def before_train(self, runner):
        self.alphas, self.logged = [], []
        head, parse = runner.model.natural_head, runner.model.parse_losses
        loss = head.loss

        def noted_loss(*args, **kwargs):
            losses = loss(*args, **kwargs)
            self.plain = losses["loss"].item()
            return losses

        def noted_parse(losses):
            self.alphas.append(losses["loss_ce"].item() / self.plain)
            return parse(losses)

        head.loss, runner.model.parse_losses = noted_loss, noted_parse

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.logged.append(runner.message_hub.get_scalar("train/alpha").current())


def scheduled(data, work_dir, epochs=2, **options):
    cfg = demo_config(data, work_dir, iterations=3, epochs=epochs)
    cfg.custom_hooks = [
        *cfg.get("custom_hooks", []), dict(type="gersp_mm.AlphaScheduleHook", **options)
    ]  # fmt: skip
    return cfg


def test_loss_is_weighed_along_the_line_and_a_resumed_run_goes_on(pair_data, tmp_path):
    whole = Weights()
    options = dict(start=0.0, end=2.0, iterations=4)
    train(scheduled(pair_data, tmp_path / "whole", **options), whole)
    assert whole.alphas == pytest.approx([0, 0.5, 1, 1.5, 2, 2], rel=1e-5)
    assert whole.logged == [0, 0.5, 1, 1.5, 2, 2]
    second = Weights()
    cfg = scheduled(pair_data, tmp_path / "again", **options)
    train(resumed(cfg, tmp_path / "whole" / "epoch_1.pth"), second)
    assert second.alphas == pytest.approx([1.5, 2, 2], rel=1e-5)


def test_falls_over_the_whole_run_by_default(pair_data, tmp_path):
    weights = Weights()
    train(scheduled(pair_data, tmp_path, start=1.0, end=0.4), weights)
    assert weights.alphas == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5], rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [dict(start=-1), dict(end=-0.5), dict(end=float("nan")), dict(iterations=0)]
)
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"AlphaScheduleHook: {name} cannot be .* Set it to a"):
        AlphaScheduleHook(**{"start": 0, "end": 1, **wrong})


def test_a_model_without_the_natural_branch_is_refused(pair_data, tmp_path):
    cfg = scheduled(pair_data, tmp_path, start=0, end=1)
    cfg.model.natural_head = None
    with pytest.raises(UserError, match="no effect, because the model has no natural-image branch"):
        train(cfg)
