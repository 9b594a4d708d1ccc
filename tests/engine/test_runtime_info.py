"""Losses read late are the losses read at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from gersp_mm.engine.hooks import DeferredRuntimeInfoHook, runtime_info
from tests.support.runs import build, demo_config, load, train


def scalars(runner) -> list[dict]:
    (file,) = runner._log_dir and [f"{runner._log_dir}/vis_data/scalars.json"]
    with open(file) as lines:
        rows = [json.loads(line) for line in lines]
    clock = ("time", "data_time", "memory")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def config(data, work_dir, hook: str, interval: int = 3):
    cfg = demo_config(data, work_dir, iterations=5, epochs=2)
    cfg.default_hooks.runtime_info = dict(type=hook)
    cfg.default_hooks.logger.interval = interval
    return cfg


class Count(Hook):
    """How many values the message hub was given after every iteration."""

    def __init__(self):
        self.known = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        history = runner.message_hub.log_scalars.get("train/loss")
        self.known.append(0 if history is None else len(history.data[0]))


def test_log_is_that_of_mmengines_own_hook(pair_data, tmp_path):
    own = train(config(pair_data, tmp_path / "own", "RuntimeInfoHook"))
    count = Count()
    ours = train(config(pair_data, tmp_path / "ours", "gersp_mm.DeferredRuntimeInfoHook"), count)
    expected, found = scalars(own), scalars(ours)
    assert len(found) == len(expected) == 2
    for row, reference in zip(found, expected):
        assert row == pytest.approx(reference, rel=1e-6)
    history = ours.message_hub.get_scalar("train/loss").data
    reference = own.message_hub.get_scalar("train/loss").data
    assert history[0] == pytest.approx(reference[0], rel=1e-6) and len(history[0]) == 10
    # read at the log lines (every third iteration, of the run and of an epoch) and at epochs' ends
    assert count.known == [0, 0, 3, 3, 5, 6, 6, 8, 9, 10]


@pytest.mark.parametrize(("silence", "told"), [(0, 1), (1e9, 0)])
def test_the_first_iteration_is_told_where_a_line_is_long_in_coming(
    pair_data, tmp_path, monkeypatch, silence, told
):
    monkeypatch.setattr(runtime_info, "SILENCE", silence)
    cfg = config(pair_data, tmp_path, "gersp_mm.DeferredRuntimeInfoHook")
    cfg.log_level = "INFO"
    runner = train(cfg)
    (log,) = Path(runner._log_dir).glob("*.log")
    lines = [line for line in log.read_text().splitlines() if " took " in line]
    assert len(lines) == told
    if told:
        first = runner.message_hub.get_scalar("train/loss").data[0][0]
        assert "iteration 1 took" in lines[0] and f"loss: {first:.4f}" in lines[0]
        assert lines[0].endswith("(the next line comes within 3 iterations)")
    assert len(scalars(runner)) == 2  # as without


def test_a_checkpoint_between_two_log_lines_holds_all_values(pair_data, tmp_path):
    cfg = config(pair_data, tmp_path, "gersp_mm.DeferredRuntimeInfoHook", interval=50)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    train(cfg)
    saved = load(tmp_path / "iter_8.pth")["message_hub"]
    assert len(saved["log_scalars"]["train/loss"].data[0]) == 8


def test_a_loss_that_is_no_tensor_is_logged_too(pair_data, tmp_path):
    class Constant(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            outputs["constant"] = 0.25

    runner = build(config(pair_data, tmp_path, "gersp_mm.DeferredRuntimeInfoHook"))
    runner.register_hook(Constant(), priority="HIGHEST")
    runner.train()
    assert any(isinstance(hook, DeferredRuntimeInfoHook) for hook in runner.hooks)
    assert runner.message_hub.get_scalar("train/constant").data[0].tolist() == [0.25] * 10
