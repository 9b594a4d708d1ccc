"""Downstream runs of each kind, interrupted and resumed, against the run without interruption."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
import torch

from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.loop import make_resumable
from tests.engine.test_loops import SignalAt
from tests.support.downstream import downstream_twin
from tests.support.runs import assert_same, assert_same_training_state, build, load, resumed

# Config, host, and the iterations after which a signal comes. In classification the third ends an
# epoch, in detection the fourth.
TASKS = {
    "classification": ("eurosat/finetune_r50_eurosat.py", "mmpretrain", (1, 3, 4)),
    "detection": ("dior/faster-rcnn_r50_fpn_24e_dior.py", "mmdet", (3, 4)),
    "rotated detection": ("dior/oriented-rcnn_le90_r50_fpn_1x_dior-r.py", "mmrotate", (3,)),
    "segmentation": ("loveda/deeplabv3plus_r50-d8_80k_loveda.py", "mmseg", (1, 4)),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ITERATIONS = 6
WARM_UP = dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=5)


def config(task, data, work_dir):
    """Six iterations: three epochs of two in detection, two of three in classification."""
    name, host, _ = TASKS[task]
    pytest.importorskip(host)
    cfg = downstream_twin(name, data, work_dir, iterations=3)
    cfg.model.backbone.init_cfg = None
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.param_scheduler = [WARM_UP]
    if task == "segmentation":
        cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=100)
        cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
        return cfg
    cfg.train_cfg.update(max_epochs=2, val_interval=100)
    if task == "classification":
        cfg.custom_hooks = [dict(type="EMAHook", momentum=0.3)]
    else:
        cfg.train_dataloader.batch_size = 1
        cfg.train_cfg.max_epochs = 3
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    return cfg


def train(cfg, *hooks):
    runner = build(cfg, *hooks)
    make_resumable(runner)
    runner.train()
    return runner


def last(work_dir):
    names = {"iter_6.pth", "epoch_3.pth", "epoch_2.pth"}
    found = [path for path in sorted(work_dir.glob("*.pth")) if path.name in names]
    return max(found, key=lambda path: load(path)["meta"]["iter"])


def assert_same_end(work_dir, whole):
    assert_same_training_state(last(work_dir), last(whole))
    ends = [load(last(folder)).get("ema_state_dict") for folder in (work_dir, whole)]
    assert_same(*ends, "averaged")


@pytest.fixture(scope="module", params=TASKS)
def task(request, downstream_data, tmp_path_factory):
    """The kind, and the folder of its run that nothing interrupted."""
    work_dir = tmp_path_factory.mktemp("whole")
    train(config(request.param, downstream_data, work_dir))
    return request.param, work_dir


def test_signals_and_their_resumptions_change_nothing(task, downstream_data, tmp_path):
    kind, whole = task
    cfg = config(kind, downstream_data, tmp_path)
    for iteration, number in zip(TASKS[kind][2], SIGNALS):
        with pytest.raises(SystemExit) as caught:
            train(cfg, SignalAt(number, iteration=iteration))
        assert caught.value.code == 128 + number
        newest = latest_checkpoint(tmp_path)
        assert newest == str(tmp_path / f"iter_{iteration}.pth")
        cfg = resumed(config(kind, downstream_data, tmp_path), newest)
        torch.manual_seed(iteration)
    train(cfg)
    assert_same_end(tmp_path, whole)


def test_a_killed_run_resumes_exactly_and_reads_no_past_sample(task, downstream_data, tmp_path):
    """A killed run leaves the checkpoints that the hook wrote; here the first of them."""
    kind, whole = task
    first = min(whole.glob("*.pth"), key=lambda path: load(path)["meta"]["iter"])
    done = load(first)["meta"]["iter"]
    cfg = resumed(config(kind, downstream_data, tmp_path), first)
    runner = build(cfg)
    make_resumable(runner)
    read = Counter()
    dataset = runner.build_train_loop(runner._train_loop)  # built here to count what it reads
    runner._train_loop = dataset
    inner = runner.train_dataloader.dataset._wrapped
    prepare = inner.prepare_data

    def counted(index):
        read["samples"] += 1
        return prepare(index)

    inner.prepare_data = counted
    runner.train()
    assert_same_end(tmp_path, whole)
    assert read["samples"] == (ITERATIONS - done) * cfg.train_dataloader.batch_size
