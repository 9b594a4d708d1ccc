"""What the learning rate will do, and schedules fitted to another length."""

from __future__ import annotations

import time

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.scheduler import CosineRestartLR

from gersp_mm.engine import schedule
from gersp_mm.engine.preflight.schedule import compare_schedule
from tests.support.smoke import CONFIGS

RELEASED = "pretrain/gersp_r50.py"
DEMO = "pretrain/gersp_r18_demo.py"
DIOR = "downstream/dior/faster-rcnn_r50_fpn_24e_dior.py"
EUROSAT = "downstream/eurosat/finetune_r50_eurosat.py"
LOVEDA = "downstream/loveda/psanet_r50-d8_80k_loveda.py"
TRAINING = sorted(
    path
    for path in CONFIGS.rglob("*.py")
    if "_base_" not in path.parts and Config.fromfile(path).get("train_cfg")
)


def load(name: str, **values) -> Config:
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in values.items()})
    return cfg


def test_the_paper_gives_the_learning_rates_of_the_real_scheduler():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.007)
    real = CosineRestartLR(optimizer, [20] * 5, [1] * 5, eta_min=0.001)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        real.step()
    curve = schedule.learning_rates(load(RELEASED, train_cfg__max_epochs=50), 40)
    assert curve.rates[::40] == pytest.approx(rates)
    assert curve.last == pytest.approx(0.00447, abs=1e-5)  # the 0.0045


CASES = {
    (RELEASED, "max_epochs", 50): (
        "warning",
        "ends at 0.00447 and never reaches 0.00104",
        "param_scheduler.0.periods=[10,10,10,10,10]",
    ),
    (RELEASED, "max_epochs", 120): (
        "error",
        "reaches 0.00104 after 100 epochs and stays at 0.00104 in the remaining 20",
        "param_scheduler.0.periods=[24,24,24,24,24]",
    ),
    (DEMO, "max_epochs", 3): (
        "warning",
        "never reaches 0.001",
        "param_scheduler.1.T_max=2 param_scheduler.1.end=3",
    ),
    (DEMO, "max_epochs", 12): (
        "warning",
        "after 6 epochs and stays at 0.001 in the remaining 6",
        "param_scheduler.1.T_max=11 param_scheduler.1.end=12",
    ),
    (EUROSAT, "max_epochs", 20): (
        "warning",
        "ends at 0.00692 and never reaches",
        "param_scheduler.1.T_max=18 param_scheduler.1.end=20",
    ),
    (DIOR, "max_epochs", 12): (
        "warning",
        "ends at 0.001 and never reaches 1e-05",
        "param_scheduler.1.milestones=[8,11] param_scheduler.1.end=12",
    ),
    (DIOR, "max_epochs", 36): (
        "warning",
        "stays at 1e-05 in the remaining 12",
        "param_scheduler.1.milestones=[24,33] param_scheduler.1.end=36",
    ),
    (LOVEDA, "max_iters", 40000): (
        "warning",
        "ends at 0.00541 and never reaches 0.0001",
        "param_scheduler.0.end=40000",
    ),
    (LOVEDA, "max_iters", 160000): (
        "warning",
        "after 80000 iterations and stays at 0.0001 in the remaining 80000",
        "param_scheduler.0.end=160000",
    ),
}


@pytest.mark.parametrize("name, key, length", CASES)
def test_another_length_is_said_with_the_options_that_fit(name, key, length):
    severity, effect, options = CASES[name, key, length]
    cfg = load(name, **{f"train_cfg__{key}": length})
    (finding,) = compare_schedule(cfg, 200)
    assert finding.severity == severity
    assert finding.problem.startswith(f"train_cfg.{key}={length} does not fit the learning-rate")
    assert effect in finding.problem
    assert finding.fix == f"Fit the schedule with --cfg-options {options}"


@pytest.mark.parametrize("name, key, length", CASES)
def test_a_fitted_schedule_is_silent_and_ends_where_it_did(name, key, length):
    shipped = load(name)
    fitted = load(name)
    fitted.merge_from_dict(schedule.fitted_options(shipped, length, 200))
    assert fitted.train_cfg[key] == length
    assert list(compare_schedule(fitted, 200)) == []
    before, after = (schedule.learning_rates(cfg, 200) for cfg in (shipped, fitted))
    assert max(after.rates) == pytest.approx(max(before.rates), rel=0.02)
    assert after.last == pytest.approx(before.last, rel=0.3, abs=1e-4)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_no_shipped_config_gives_an_alarm_or_takes_long(path):
    cfg = Config.fromfile(path)
    started = time.perf_counter()
    assert list(compare_schedule(cfg, 5004)) == []
    schedule.learning_rates(cfg, 5004)
    assert time.perf_counter() - started < 2


def test_lengths_that_do_no_harm_are_silent():
    assert list(compare_schedule(load(DIOR, train_cfg__max_epochs=23), 200)) == []
    assert list(compare_schedule(load(RELEASED, train_cfg__max_epochs=80), 200)) == []  # 4 cycles
    constant = load(DEMO, param_scheduler=[dict(type="ConstantLR", factor=1.0)])
    assert list(compare_schedule(constant, 200)) == []


def test_a_run_of_warm_up_alone_is_said():
    (finding,) = compare_schedule(load(DEMO, train_cfg__max_epochs=1), 40)
    assert "ends at 0.01 and never reaches 0.001" in finding.problem
    assert finding.fix == "Train for longer than the warm-up, or shorten the warm-up."
    assert schedule.fitted_options(load(DEMO), 1) == {
        "train_cfg.max_epochs": 1,
        "param_scheduler.1.T_max": 1,
        "param_scheduler.1.end": 2,
    }


def test_epochs_in_a_run_that_counts_iterations_are_refused():
    cfg = load(LOVEDA, param_scheduler=[dict(type="CosineAnnealingLR", T_max=50)])
    first = next(compare_schedule(cfg, 200))
    assert first.severity == "error"
    assert "param_scheduler.0 counts epochs, but the run counts iterations" in first.problem
    assert "Set param_scheduler.0.by_epoch=False" in first.fix


def test_with_epochs_leaves_the_config_alone_and_keeps_its_own_length():
    cfg = load(DEMO)
    longer = schedule.with_epochs(cfg, 10)
    assert longer.train_cfg.max_epochs == 10 and cfg.train_cfg.max_epochs == 6
    assert (longer.param_scheduler[1].T_max, longer.param_scheduler[1].end) == (9, 10)
    assert longer.param_scheduler[0] == cfg.param_scheduler[0]  # the warm-up
    assert schedule.with_epochs(cfg, 6).to_dict() == cfg.to_dict()
