from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import save_checkpoint

from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.hooks import AtomicCheckpointHook
from gersp_mm.engine.hooks.checkpoint import ATOMIC_BACKEND
from gersp_mm.utils.errors import UserError
from tests.runs import assert_same_training_state, demo_config, resumed, train

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
