"""tools/train.py and tools/test.py as a user calls them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from gersp_mm.checkpoints import latest_checkpoint
from tests.support.forked import Forked, run
from tests.support.runs import assert_same_training_state, demo_config, load
from tests.support.smoke import ROOT

TRAIN = str(ROOT / "tools" / "train.py")


def environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, paths)))


def call(*arguments, cwd=ROOT, tool=TRAIN) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        return run(tool, *arguments, cwd=cwd, env=environment(), output=Path(folder))


def write_config(data: Path, folder: Path, iterations: int = 2, epochs: int = 1) -> Path:
    """A config file of one's own, with workers and INFO logging."""
    cfg = demo_config(data, folder / "unused", iterations, epochs)
    cfg.pop("work_dir")
    cfg.log_level = "INFO"
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    cfg.dump(folder / "small.py")
    return folder / "small.py"


def assert_one_error_line(done: subprocess.CompletedProcess, text: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(text, errors[0]), errors[0]


def test_help_has_examples():
    done = call("--help")
    assert done.returncode == 0
    assert "python tools/train.py configs/pretrain/gersp_r18_demo.py" in done.stdout
    for option in (
        "--work-dir",
        "--resume",
        "--amp",
        "--auto-scale-lr",
        "--cfg-options",
        "--log-to",
        "--launcher",
    ):
        assert option in done.stdout


def test_a_run_with_every_option(pair_data, tmp_path):
    """Nothing to resume, bfloat16, scaled learning rate, TensorBoard, no worker processes."""
    config = write_config(pair_data, tmp_path)
    options = [
        "train_dataloader.num_workers=0",
        "default_hooks.collapse_monitor=None",
        "model.queue_len=20",
        "optim_wrapper.accumulative_counts=2",
        "optim_wrapper.optimizer.lr=0.03",
    ]
    done = call(
        config,
        "--resume",
        "auto",
        "--amp",
        "bf16",
        "--auto-scale-lr",
        "--log-to",
        "tensorboard",
        "--cfg-options",
        *options,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    work_dir = tmp_path / "work_dirs" / "small"
    assert "--resume auto: no checkpoint in work_dirs/small yet, starting a new run" in done.stdout
    assert "meant for batches of" not in done.stdout
    assert list(work_dir.glob("*/vis_data/events.out.tfevents.*"))
    checkpoint = load(work_dir / "epoch_1.pth")
    assert checkpoint["state_dict"]["queue"].shape == (20, 128)
    # 2 x 4 pairs a step where the learning rate of 0.03 is meant for 32
    (group,) = checkpoint["optimizer"]["param_groups"]
    assert group["initial_lr"] == pytest.approx(0.03 * 8 / 32)
    assert (work_dir / "small_backbone.pth").exists()


BAD_INPUT = {
    "config": (["no_such_config.py"], "no config no_such_config.py"),
    "fp16": (["CONFIG", "--amp", "fp16"], "--amp fp16 needs a GPU"),
    "package": (["CONFIG", "--log-to", "mlflow"], "--log-to mlflow needs .* pip install mlflow"),
    "checkpoint": (
        ["CONFIG", "--resume", "nothing.pth"],
        "--resume: there is no checkpoint nothing.pth",
    ),
    "base batch": (
        ["CONFIG", "--auto-scale-lr", "--cfg-options", "auto_scale_lr=None"],
        "--auto-scale-lr: .*small.py has no auto_scale_lr.base_batch_size",
    ),
    "launcher": (
        ["CONFIG", "--launcher", "pytorch"],
        "--launcher pytorch needs RANK, WORLD_SIZE in the environment",
    ),
    "model": (["CONFIG", "--cfg-options", "model.alpha=-1"], "model: alpha cannot be -1. Set it"),
    "sampler": (
        ["CONFIG", "--cfg-options", "train_dataloader.sampler.pairing=odd"],
        "pairing must be 'independent' or 'locked', got 'odd'",
    ),
    "data": (
        [
            "CONFIG",
            "--cfg-options",
            "train_dataloader.dataset.remote_sensing.data_root=/no/such/folder",
        ],
        "/no/such/folder.* Set train_dataloader.dataset.remote_sensing.data_root to a folder",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_line_and_exit_code_2(case, pair_data, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments, text = BAD_INPUT[case]
    config = str(write_config(pair_data, tmp_path))
    arguments = [config if a == "CONFIG" else a for a in arguments]
    assert_one_error_line(call(*arguments, "--work-dir", "work", cwd=tmp_path), text)


def test_evaluating_without_anything_to_evaluate_is_one_error(pair_data, tmp_path):
    config = write_config(pair_data, tmp_path)
    tool = str(ROOT / "tools" / "test.py")
    done = call(config, "nothing.pth", cwd=tmp_path, tool=tool)
    assert_one_error_line(done, "there is no checkpoint nothing.pth")


def start(config: Path, work_dir: Path, log: Path) -> Forked:
    log.write_text("")
    arguments = (config, "--work-dir", work_dir, "--resume", "auto")
    return Forked(TRAIN, *arguments, env=environment(), output=log, start_new_session=True)


def wait_until(condition, process: Forked, log: Path) -> None:
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.005)


@pytest.mark.slow
def test_stopped_once_and_killed_twice_the_run_ends_the_same(pair_data, tmp_path):
    """SIGTERM, then two kill -9 of all processes; each time the same command is given again."""
    config = write_config(pair_data, tmp_path, iterations=4, epochs=3)
    whole, work_dir, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    assert call(config, "--work-dir", whole).returncode == 0

    def interrupt(number: int, after: str) -> str:
        """Start, signal all processes after a line of the log, return the newest checkpoint."""
        process = start(config, work_dir, log)
        wait_until(lambda: after in log.read_text(), process, log)
        os.killpg(process.pid, number)
        process.wait(timeout=100)
        for file in work_dir.glob("*.pth"):
            load(file)
        return os.path.basename(latest_checkpoint(work_dir))

    assert interrupt(signal.SIGTERM, "Epoch(train) [1][1/4]").startswith("iter_")
    assert interrupt(signal.SIGKILL, "Epoch(train) [2][2/4]") == "epoch_1.pth"
    newest = interrupt(signal.SIGKILL, "Saving checkpoint at 2 epochs")
    assert newest in ("epoch_1.pth", "epoch_2.pth")
    process = start(config, work_dir, log)
    assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
    assert_same_training_state(work_dir / "epoch_3.pth", whole / "epoch_3.pth")
    assert not list(work_dir.glob(".*.tmp"))
