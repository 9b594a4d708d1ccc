"""What the processes of test_trackers.py run: one start of a run, or one of two ranks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.visualization import LocalVisBackend

from gersp_mm.engine import launch, trackers
from tests.support.runs import demo_config

RUN_ID = "0123456789ab"


def start(name: str, done: int, work_dir: Path) -> None:
    """Log up to iteration 5 and be killed, or go on from ``done`` and end after iteration 6."""
    folder = work_dir / f"2026010{done}_000000" / "vis_data"
    tracker = getattr(trackers, name)(str(folder))
    local = LocalVisBackend(str(folder))
    model = dict(depth=18)
    tracker.add_config(Config(dict(work_dir=str(work_dir), model=model, resume=bool(done))))
    tracker.begin(RUN_ID, work_dir, done)
    for step in range(done + 1, 7 if done else 6):
        tracker.commit()
        value = step * 10.0 if done else float(step)
        for log in (local, tracker):
            log.add_scalars(dict(loss=value, iter=step), step=step)
            log.add_scalar("knn_top1", value, step=step)
    if not done:
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.close()


def tracked(data: Path, work_dir: Path, *names: str) -> Config:
    """Three epochs of two iterations, each followed by a kNN evaluation, all of them logged."""
    cfg = demo_config(data, work_dir, iterations=2, epochs=3)
    cfg.default_hooks.logger.interval = 1
    natural = str(data / "natural")
    cfg.default_hooks.knn_eval = dict(
        type="gersp_mm.KNNEvalHook", train=natural, test=natural, size=32, k=3, interval=1
    )
    for name in names:
        launch.log_to(cfg, name)
    cfg.launcher = "pytorch" if "RANK" in os.environ else "none"
    launch.adapt(cfg)
    return cfg


def rank(data: Path, work_dir: Path, *names: str) -> None:
    """Train as one of two processes."""
    launch.join_cpu_processes("pytorch")
    torch.set_num_threads(1)
    cfg = tracked(data, work_dir, *names)
    cfg.train_dataloader.batch_size //= 2
    launch.train(cfg)


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "start":
        start(words[0], int(words[1]), Path(words[2]))
    else:
        rank(Path(words[0]), Path(words[1]), *words[2:])
