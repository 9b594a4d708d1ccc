"""The jobs of a plan, and what tells their rows apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gersp_mm.backbones.build import inspect
from gersp_mm.benchmark.data import Data
from gersp_mm.benchmark.spec import Plan
from gersp_mm.datasets.known import SCENES
from gersp_mm.evaluation import metrics as host_metrics
from gersp_mm.resources import find_config
from gersp_mm.utils.errors import UserError

IDENTITY = (
    "dataset", "protocol", "model", "metric", "seed", "pretraining", "checkpoint_sha256", "config",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One task with one set of weights and one seed.

    Attributes:
        task: of the plan.
        pretraining: name of the checkpoint.
        seed: None where nothing is drawn.
        file: weights, None for random ones.
        what: dataset, protocol, model, seed, pretraining, checkpoint_sha256 and config of its rows.
        metrics: the rows' metrics.
    """

    task: Mapping[str, Any]
    pretraining: str
    seed: int | None
    file: str | None
    what: Mapping[str, Any] = field(hash=False)
    metrics: Sequence[str] = ()

    @property
    def identities(self) -> list[tuple[Any, ...]]:
        """What tells each row of this job from all others."""
        return [identity(dict(self.what, metric=metric)) for metric in self.metrics]

    @property
    def weights(self) -> tuple[Any, ...]:
        """What tells the job's weights from others."""
        return self.pretraining, self.file, self.seed if self.file is None else None

    @property
    def id(self) -> str:
        """Name of the job's files."""
        return hashlib.sha256(json.dumps(self.identities).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """The job in words."""
        words = dict(knn="kNN", linear="linear probe", fewshot="few-shot", finetune="fine-tuning")
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.what['dataset']} {words[self.task['protocol']]}, {self.pretraining}{seed}"


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields that tell a row from all others."""
    return tuple(row[name] for name in IDENTITY)


def frozen_protocol(task: Mapping[str, Any], data: Data) -> str:
    """Return protocol and split of a task on frozen features, in the words of our configs."""
    if task["protocol"] == "knn":
        how = f"weighted kNN k={task['k']} T={task['temperature']:g}"
    elif task["protocol"] == "linear":
        chosen = "validation list" if "val" in data.parts else "a fifth of train"
        values = ", ".join(f"{c:g}" for c in task["sweep"])
        how = f"logistic regression, C of {values} by {chosen}"
    else:
        how = f"logistic regression on few images a class, mean of {task['draws']} draws"
    resized = f", resized to {data.resize}" if data.resize != _usual_resize(data) else ""
    return f"frozen features, {how}, {data.input_words}{resized}, {data.split}"


def _usual_resize(data: Data) -> int:
    known = [entry.resize for entry in SCENES.values() if entry.title == data.name]
    return known[0] if known else data.size


def arch_of(plan: Plan, file: str | None) -> dict[str, Any]:
    """Return the config of a file's network, or of the plan's for random weights.

    Raises:
        UserError: neither file nor plan tell.
    """
    if file is None or (plan.arch and plan.arch["type"] != "ResNet"):
        return plan.arch
    arch = inspect(file).arch
    if arch is None:
        raise UserError(
            f"{plan.path}: {file} is no ResNet: give its backbone as arch: {{type: ..., ...}}"
        )
    return arch


def make_jobs(plan: Plan, only: Sequence[str] = ()) -> list[Job]:
    """Return all jobs; those that share features one after the other.

    Args:
        plan: what is to be done.
        only: names of checkpoints; all by default.

    Raises:
        UserError: a checkpoint cannot be read or is unknown; or two jobs would write the same row.
    """
    names = [checkpoint.name for checkpoint in plan.checkpoints]
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: {plan.path} has {', '.join(names)}")
    jobs = []
    for checkpoint in plan.checkpoints:
        if only and checkpoint.name not in only:
            continue
        for task in plan.tasks:
            protocol = task["protocol"]
            varies = protocol in ("fewshot", "finetune") or (
                protocol == "linear" and "val" not in plan.data[task["data"]].parts
            )
            for seed, file in checkpoint.variants(varies, plan.seeds):
                jobs.append(_job(plan, checkpoint.name, task, seed, file))
    seen: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        for key in job.identities:
            if key in seen:
                raise UserError(
                    f"{plan.path}: two tasks give the same row ({job.title}: "
                    f"{job.what['protocol']}): remove one"
                )
            seen[key] = job
    finetuning = [job for job in jobs if "data" not in job.task]
    frozen = [job for job in jobs if "data" in job.task]
    keys = list(plan.data)
    first: dict[Any, int] = {}
    for job in frozen:
        first.setdefault(job.weights, len(first))
    frozen.sort(key=lambda job: (first[job.weights], keys.index(job.task["data"])))
    return frozen + finetuning


def _job(plan: Plan, name: str, task: Mapping[str, Any], seed: int | None, file: str | None) -> Job:
    what: dict[str, Any] = dict(
        seed=seed,
        pretraining=name,
        checkpoint_sha256=None if file is None else inspect(file).sha256,
    )
    if task["protocol"] == "finetune":
        evaluation = task["evaluation"]
        what.update(
            dataset=evaluation["dataset"],
            protocol=host_metrics.protocol(evaluation),
            model=task["model"],
            config=host_metrics.config_name(find_config(task["config"])),
        )
        metrics = [metric.name for metric in host_metrics.wanted_metrics(evaluation)]
        return Job(task, name, seed, file, what, metrics)
    data = plan.data[task["data"]]
    classifier = dict(type="ImageClassifier", backbone=arch_of(plan, file))
    what.update(
        dataset=data.name,
        protocol=frozen_protocol(task, data),
        model=host_metrics.model_name(dict(model=classifier), ""),
        config=host_metrics.config_name(plan.path),
    )
    metrics = ["top-1"]
    if task["protocol"] == "fewshot":
        metrics = [f"top-1, {shots} a class" for shots in task["shots"]]
    return Job(task, name, seed, file, what, metrics)
