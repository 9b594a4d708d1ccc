"""Training and testing a downstream config in separate processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mmengine.config import Config

from gersp_mm.benchmark.jobs import Job
from gersp_mm.benchmark.spec import Finetuning, option
from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.runs import TRAINING_LOG, ChildRun
from gersp_mm.engine.schedule import run_length
from gersp_mm.resources import find_config, resource
from gersp_mm.results import Row, store
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import replacing


def finetune(job: Job, folder: Path, device: str) -> list[Row]:
    """Train and test a downstream config in separate processes, and return its rows.

    An interrupted run in ``folder`` is resumed; the rows of a finished run are only read.

    Args:
        job: Config, weights and seed to train and test with.
        folder: Work directory of the training.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``.

    Raises:
        UserError: One of the processes failed.
    """
    task = job.task.spec
    assert isinstance(task, Finetuning)
    results = folder / "rows.jsonl"
    if not results.is_file():
        options = [f"pretrained={job.file}", f"randomness.seed={job.seed}"]
        options += [f"{key}={option(value)}" for key, value in task.cfg_options.items()]
        config = str(find_config(task.config))
        common = ["--work-dir", str(folder), "--cfg-options", *options]
        environment = _environment(device)
        if not (folder / "trained").is_file():
            train = [sys.executable, resource("tools", "train.py"), config, "--resume", "auto"]
            cfg = Config.fromfile(config)
            cfg.merge_from_dict(task.cfg_options)
            log, length = folder / TRAINING_LOG, run_length(cfg)
            title = f"{job.title}: training"
            ChildRun(title, [*train, *common], log, length, env=environment).follow()
            (folder / "trained").touch()
        checkpoint = latest_checkpoint(str(folder))
        if checkpoint is None:
            raise UserError(f"{job.title}: the training left no checkpoint in {folder}")
        with replacing(results) as partial:  # The file stays empty if no value is defined.
            test = [sys.executable, resource("tools", "test.py"), config, checkpoint]
            test += ["--results", partial, *common]
            title = f"{job.title}: testing"
            ChildRun(title, test, folder / "test.log", env=environment).follow()
    by_metric = {identity.metric: identity for identity in job.identities}
    return [
        Row(**{**dict(row), **dict(by_metric[row.metric]), "settings": job.settings})
        for row in store.read_rows(results)
    ]


def _environment(device: str) -> dict[str, str]:
    """Return the environment in which a process sees this device and no other."""
    environment = dict(os.environ)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in device:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        number = int(device.split(":")[1])
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    return environment
