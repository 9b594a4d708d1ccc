"""A run on scenes that every rank of a test runs, up to its end or until it is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from mmengine.hooks import Hook

from gersp_mm.engine.launch import join_cpu_processes
from tests.support.dist_worker import GLOBAL_BATCH, paired_config
from tests.support.runs import build

LAST = "iter_12.pth"


class KillAt(Hook):
    """Kills this process, with the loader's workers still reading."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == 8:
            os.kill(os.getpid(), signal.SIGKILL)


def main(data: Path, scenes: str, work_dir: Path, workers: int, kill: bool) -> None:
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        join_cpu_processes("pytorch")
    cfg = paired_config(data, work_dir, world_size)
    cfg.train_cfg.max_epochs = cfg.param_scheduler[0].T_max = 3
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=6)  # in the middle of an epoch
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
    cfg.train_dataloader.dataset.remote_sensing = dict(
        type="gersp_mm.Scenes", data_root=scenes, window=96, jitter=16, bands=(3, 2, 1)
    )
    cfg.train_dataloader.dataset.natural.indices = 4 * GLOBAL_BATCH  # an epoch
    cfg.train_dataloader.sampler.epoch_length = "natural"
    cfg.resume = (work_dir / "iter_6.pth").exists()
    build(cfg, *[KillAt()] * kill).train()


if __name__ == "__main__":
    data, scenes, work_dir, workers, kill = sys.argv[1:]
    main(Path(data), scenes, Path(work_dir), int(workers), kill == "kill")
