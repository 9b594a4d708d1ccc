from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner.checkpoint import save_checkpoint

from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.hooks import AtomicCheckpointHook
from gersp_mm.engine.hooks.checkpoint import ATOMIC_BACKEND
from gersp_mm.engine.preflight.disk import checkpoint_bytes
from gersp_mm.utils.errors import UserError
from tests.support.runs import assert_same_training_state, build, demo_config, load, resumed, train

DEAD = 9


def in_dying_child(function) -> None:
    """Run in a forked process that must end by ``os._exit(DEAD)``, as abruptly as by kill -9."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DEAD


def die_in_torch_save(content, file, *args, **kwargs):
    file.write(b"half a checkpoint")
    os._exit(DEAD)


def die_while_writing(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        os._exit(DEAD)


def die(*args, **kwargs):
    os._exit(DEAD)


@pytest.mark.parametrize(
    "owner, name, replacement, leftovers",
    [
        (torch, "save", die_in_torch_save, 0),
        (Path, "write_bytes", die_while_writing, 1),
        (os, "fsync", die, 1),
        (os, "replace", die, 1),
    ],
)
def test_a_process_killed_while_saving_leaves_the_older_file(
    tmp_path, monkeypatch, owner, name, replacement, leftovers
):
    path = tmp_path / "epoch_1.pth"
    backend = dict(backend=ATOMIC_BACKEND)
    meta = dict(epoch=1, iter=10)
    content = dict(state_dict=dict(weights=torch.arange(1000.0)), optimizer={}, meta=meta)
    save_checkpoint(content, str(path), backend_args=backend)
    old = path.read_bytes()

    def save_again():
        monkeypatch.setattr(owner, name, replacement)
        save_checkpoint(dict(weights=torch.zeros(1000)), str(path), backend_args=backend)

    in_dying_child(save_again)
    assert path.read_bytes() == old
    assert len(list(tmp_path.glob(".*"))) == leftovers
    assert latest_checkpoint(tmp_path) == str(path)


def test_a_run_killed_while_saving_goes_on_and_ends_the_same(pair_data, tmp_path, monkeypatch):
    train(demo_config(pair_data, tmp_path / "whole", iterations=2, epochs=2))
    cfg = demo_config(pair_data, tmp_path / "killed", iterations=2, epochs=2)
    replace = os.replace

    def die_at_second_checkpoint(source, target):
        if str(target).endswith("epoch_2.pth"):
            os._exit(DEAD)
        replace(source, target)

    def run():
        monkeypatch.setattr(os, "replace", die_at_second_checkpoint)
        train(cfg)

    in_dying_child(run)
    work_dir = tmp_path / "killed"
    (work_dir / ".other.pth.abc.tmp").write_bytes(b"left by yet another run")
    assert len(list(work_dir.glob(".*.tmp"))) == 2
    newest = latest_checkpoint(work_dir)
    assert newest == str(work_dir / "epoch_1.pth")
    train(resumed(cfg, newest))
    assert_same_training_state(tmp_path / "whole" / "epoch_2.pth", work_dir / "epoch_2.pth")
    assert not list(work_dir.glob(".*.tmp"))


def test_failing_write_removes_its_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint({}, str(tmp_path / "a.pth"), backend_args=dict(backend=ATOMIC_BACKEND))
    assert caught.value.filename == str(tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def full_disk(path, content):
    raise OSError(28, "No space left on device")


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint({}, str(tmp_path / "a.pth"), backend_args=dict(backend=ATOMIC_BACKEND))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pth").stat().st_mode) == 0o640


def test_only_the_newest_are_kept(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=1, epochs=4)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    train(cfg)
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == ["epoch_3.pth", "epoch_4.pth"]


def test_keeping_a_single_checkpoint_is_refused():
    with pytest.raises(UserError, match="max_keep_ckpts must be 2 or more .or -1 for all"):
        AtomicCheckpointHook(interval=1, max_keep_ckpts=1)


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(interval="2"), "interval cannot be '2'. Set it to a whole number of at least"),
        (dict(interval=1.5), "interval cannot be 1.5. Set it to a whole number of at least"),
        (dict(interval=-2), "interval cannot be -2. Set it to a whole number of at least"),
        (
            dict(max_keep_ckpts=None),
            "max_keep_ckpts cannot be None. Set it to a whole number of at least",
        ),
        (
            dict(max_keep_ckpts=True),
            "max_keep_ckpts cannot be True. Set it to a whole number of at least",
        ),
        (dict(save_begin=-1), "save_begin cannot be -1. Set it to a whole number of at least"),
    ],
)
def test_numbers_of_another_type_or_sign_are_refused(options, text):
    with pytest.raises(UserError, match=f"default_hooks.checkpoint.{text}"):
        AtomicCheckpointHook(**options)


class SpoilGradients(Hook):
    """Makes one gradient NaN in the optimizer step of an iteration; its loss was finite."""

    def __init__(self, iteration, spoil):
        self.iteration, self.spoil = iteration, spoil

    def before_train(self, runner):
        optimizer = runner.optim_wrapper.optimizer
        step = optimizer.step

        def spoilt_step(*args, **kwargs):
            if runner.iter + 1 == self.iteration:
                self.spoil(runner)
            return step(*args, **kwargs)

        optimizer.step = spoilt_step


def spoil_a_gradient(runner):
    runner.model.backbone.layer1[0].conv1.weight.grad[0, 0, 0, 0] = float("nan")


def spoil_the_optimizer(runner):
    """A second moment that overflows: the weights stay finite and stop learning."""
    parameter = runner.model.backbone.layer1[0].conv1.weight
    runner.optim_wrapper.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(
        parameter, float("inf")
    )
    runner.optim_wrapper.optimizer.param_groups[0]["lr"] = 0.0
    parameter.requires_grad_(False)
    parameter.grad = None


def spoil_a_buffer(runner):
    runner.model.backbone.bn1.running_var[1] = float("inf")


@pytest.mark.parametrize(
    "spoil, name",
    [
        (spoil_a_gradient, "backbone.layer1.0.conv1.weight"),
        (spoil_the_optimizer, "backbone.layer1.0.conv1.weight.momentum_buffer"),
        (spoil_a_buffer, "backbone.bn1.running_var"),
    ],
)
def test_what_is_not_finite_is_not_written(pair_data, tmp_path, spoil, name):
    cfg = demo_config(pair_data, tmp_path, iterations=2, epochs=3)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    export = tmp_path / "gersp_r18_demo_backbone.pth"
    kept = []

    class Look(Hook):
        def after_train_epoch(self, runner):
            kept.append((export.read_bytes(), (tmp_path / "epoch_1.pth").exists()))

    with pytest.raises(UserError) as caught:
        train(cfg, Look(), SpoilGradients(6, spoil))
    text = str(caught.value)
    assert text.startswith("after epoch 3, iteration 6, ") and name in text
    assert latest_checkpoint(tmp_path) == str(tmp_path / "epoch_2.pth")
    assert export.read_bytes() == kept[1][0] != kept[0][0]
    assert sorted(p.name for p in tmp_path.glob("*epoch_*")) == ["epoch_2.pth"]
    state = load(tmp_path / "epoch_2.pth")["state_dict"].values()
    assert all(torch.isfinite(tensor).all() for tensor in state)


def test_a_signal_does_not_save_what_is_not_finite(pair_data, tmp_path):
    """The second door by which a checkpoint is written."""

    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    cfg = demo_config(pair_data, tmp_path, iterations=2)
    with pytest.raises(UserError, match="after epoch 0, iteration 1, .*backbone"):
        train(cfg, Stop(), SpoilGradients(1, spoil_a_gradient))
    assert not list(tmp_path.glob("*.pth"))


def test_an_infinite_mask_is_no_reason_to_refuse(pair_data, tmp_path):
    runner = build(demo_config(pair_data, tmp_path, iterations=1))
    runner.model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    runner.train()
    assert load(tmp_path / "epoch_1.pth")["state_dict"]["mask"][1] == float("-inf")


def test_a_disk_that_fills_up_costs_the_newest_checkpoint_alone(pair_data, tmp_path, monkeypatch):
    cfg = demo_config(pair_data, tmp_path, iterations=1, epochs=3)
    write = Path.write_bytes

    def fill_up(path, content):
        if "epoch_3" in path.name:
            full_disk(path, content)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError) as caught:
        train(cfg)
    assert caught.value.filename == str(tmp_path / "epoch_3.pth")
    assert latest_checkpoint(tmp_path) == str(tmp_path / "epoch_2.pth")
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_room_for_the_checkpoints_to_come(pair_data, tmp_path, monkeypatch, fits):
    """Refused where none fits, a warning where one of two fits, nothing where both do."""
    cfg = demo_config(pair_data, tmp_path / "run", iterations=1, epochs=5)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    runner = build(cfg)
    usage = shutil.disk_usage(tmp_path)
    size = sum(p.numel() * 4 for p in runner.model.state_dict().values()) * 1.6
    free = int(size * (0.2, 1.1, 3)[fits])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    runner.logger = mock.Mock()
    if not fits:
        with pytest.raises(UserError, match="no checkpoint can be written: .* MiB are free in"):
            runner.train()
        assert runner.iter == 0
        return
    runner.train()
    warned = [c.args[0] for c in runner.logger.warning.call_args_list if "no room" in c.args[0]]
    assert len(warned) == (fits == 1)
    assert not warned or "2 are to come" in warned[0]


def test_the_estimate_is_near_the_size_of_the_file(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=2)
    cfg.model.neck.hid_channels = 2048  # so that what is not a tensor weighs little
    runner = train(cfg)
    estimate = checkpoint_bytes(runner.model, runner.optim_wrapper, with_optimizer=True)
    assert (tmp_path / "epoch_1.pth").stat().st_size == pytest.approx(estimate, rel=0.15)
