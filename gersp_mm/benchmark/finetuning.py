"""Training and testing a downstream config in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from gersp_mm.benchmark.jobs import Job
from gersp_mm.benchmark.spec import Finetuning, option
from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.launch import last_error
from gersp_mm.resources import find_config, resource
from gersp_mm.results import Row, store
from gersp_mm.utils.errors import UserError


def finetune(job: Job, folder: Path, device: str) -> list[Row]:
    """Train and test a downstream config in processes of their own; a stopped one is resumed.

    Raises:
        UserError: A process failed.
    """
    task = job.task.spec
    assert isinstance(task, Finetuning)
    results = folder / "rows.jsonl"
    if not results.is_file():
        options = [f"pretrained={job.file}", f"randomness.seed={job.seed}"]
        options += [f"{key}={option(value)}" for key, value in task.cfg_options.items()]
        config = str(find_config(task.config))
        common = ["--work-dir", str(folder), "--cfg-options", *options]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "trained").is_file():
            _call("train.py", [config, "--resume", "auto", *common], folder, device, job.title)
            (folder / "trained").touch()
        checkpoint = latest_checkpoint(str(folder))
        if checkpoint is None:
            raise UserError(f"{job.title}: the training left no checkpoint in {folder}")
        partial = folder / "rows.jsonl.partial"
        partial.unlink(missing_ok=True)
        arguments = [config, str(checkpoint), "--results", str(partial), *common]
        _call("test.py", arguments, folder, device, job.title)
        partial.touch()  # where no value is defined
        os.replace(partial, results)
    by_metric = {identity.metric: identity for identity in job.identities}
    return [
        Row(**{**dict(row), **dict(by_metric[row.metric]), "settings": job.settings})
        for row in store.read_rows(results)
    ]


def _call(tool: str, arguments: list[str], folder: Path, device: str, title: str) -> None:
    environment = dict(os.environ)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in device:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        number = int(device.split(":")[1])
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    log = folder / f"{tool.removesuffix('.py')}.log"
    command = [sys.executable, str(resource("tools", tool)), *arguments]
    pattern = re.compile(r"(?:Epoch|Iter)\((\w+)\)\s+(?:\[\s*\d+\])?\[\s*(\d+)/(\d+)\].*")
    bar = tqdm(desc=title, unit="it", leave=False)
    with (
        bar,
        open(log, "a", encoding="utf-8") as notes,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            notes.write(line)
            notes.flush()
            if found := pattern.search(line):
                eta = re.search(r"eta: (.*?)  ", line)
                bar.set_postfix_str(
                    f"{found[1]} {found[2]}/{found[3]}, {eta[1] if eta else '?'} left"
                )
    if child.returncode:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise UserError(f"{title}: tools/{tool} failed ({last_error(text)}); see {log}")
