"""The jobs of a plan, and the identities of their rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.backbones.exported import ExportedBackbone
from gersp_mm.benchmark.data import Data
from gersp_mm.benchmark.spec import KNN, FewShot, Finetuning, LinearProbe, Plan, Task, TaskSpec
from gersp_mm.evaluation.measurement import config_name
from gersp_mm.resources import find_config
from gersp_mm.results import protocol as protocols
from gersp_mm.results.protocol import AnyProtocol
from gersp_mm.results.row import RANDOM, Column, Identity, Pretraining
from gersp_mm.utils.errors import UserError


@dataclass(frozen=True)
class Job:
    """One task with one set of weights and one seed.

    Attributes:
        task: The task.
        pretraining: Name of the checkpoint.
        seed: The seed; None if the job makes no random choice.
        file: File of the weights; None for random ones.
        identities: Identity of each row, one for each metric.
        backbone: The weights; they are read again when the network is built.
    """

    task: Task
    pretraining: str
    seed: int | None
    file: str | None
    identities: Sequence[Identity] = field(hash=False)
    backbone: ExportedBackbone = field(hash=False, compare=False)

    @property
    def settings(self) -> Pretraining:
        """The pre-training that produced the weights."""
        if self.file is None:
            return Pretraining(method=RANDOM)
        return Pretraining.of_origin(self.backbone.meta.stored)

    @property
    def weights(self) -> tuple[Any, ...]:
        """The identity of the job's weights."""
        return self.pretraining, self.file, self.seed if self.file is None else None

    @property
    def id(self) -> str:
        """Stem of the names of the job's files."""
        rows = json.dumps([one.model_dump(mode="json") for one in self.identities])
        return hashlib.sha256(rows.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """The job in words."""
        words = dict(knn="kNN", linear="linear probe", fewshot="few-shot", finetune="fine-tuning")
        seed = "" if self.seed is None else f", seed {self.seed}"
        task = f"{self.identities[0].dataset} {words[self.task.spec.protocol]}"
        return f"{task}, {self.pretraining}{seed}"


def protocols_of(task: TaskSpec, data: Data) -> list[AnyProtocol]:
    """Return the protocols of a task on frozen features, one for each of its values."""
    image = data.image
    if isinstance(task, KNN):
        return [protocols.FrozenKNN(image=image, k=task.k, temperature=task.temperature)]
    if isinstance(task, LinearProbe):
        chosen_on: Literal["val", "train_fifth"] = "val" if "val" in data.parts else "train_fifth"
        return [
            protocols.FrozenLinear(
                image=image, solver="lbfgs", sweep=task.sweep, chosen_on=chosen_on
            )
        ]
    assert isinstance(task, FewShot)
    return [protocols.FewShot(image=image, shots=shots, draws=task.draws) for shots in task.shots]


def read_backbone(plan: Plan, file: str | None, seed: int | None) -> ExportedBackbone:
    """Return the weights of a file, or random ones of the plan's architecture.

    Raises:
        UserError: The file is not an exported backbone.
    """
    told = None
    if plan.arch and (file is None or plan.arch["type"] != "ResNet"):
        told = Architecture.parse(plan.arch, f"{plan.path}: arch {plan.arch}")
    if file is None:
        assert told is not None
        return ExportedBackbone.random(told, seed or 0)
    backbone = ExportedBackbone.read(file, told)
    backbone.release()  # The weights of all checkpoints of a plan may not fit into memory.
    return backbone


def make_jobs(plan: Plan, only: Sequence[str] = ()) -> list[Job]:
    """Return all jobs; those that share features follow each other.

    Args:
        plan: The plan.
        only: Names of checkpoints; all by default.

    Raises:
        UserError: A checkpoint cannot be read or is unknown, or two jobs would write the same row.
    """
    names = [checkpoint.name for checkpoint in plan.checkpoints]
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: {plan.path} has {', '.join(names)}")
    jobs = []
    files: dict[str, ExportedBackbone] = {}
    for checkpoint in plan.checkpoints:
        if only and checkpoint.name not in only:
            continue
        for task in plan.tasks:
            varies = isinstance(task.spec, (FewShot, Finetuning)) or (
                isinstance(task.spec, LinearProbe) and "val" not in plan.data[str(task.data)].parts
            )
            for seed, file in checkpoint.variants(varies, plan.seeds):
                backbone = files.get(file or "") or read_backbone(plan, file, seed)
                if file is not None:
                    files[file] = backbone
                jobs.append(_job(plan, checkpoint.name, task, seed, file, backbone))
    seen: set[Identity] = set()
    for job in jobs:
        for identity in job.identities:
            if identity in seen:
                raise UserError(
                    f"{plan.path}: two tasks give the same row ({job.title}: {identity.sentence}). "
                    "Remove one of them."
                )
            seen.add(identity)
    finetuning = [job for job in jobs if job.task.data is None]
    frozen = [job for job in jobs if job.task.data is not None]
    keys = list(plan.data)
    first: dict[Any, int] = {}
    for job in frozen:
        first.setdefault(job.weights, len(first))
    frozen.sort(key=lambda job: (first[job.weights], keys.index(str(job.task.data))))
    return frozen + finetuning


def _job(
    plan: Plan,
    name: str,
    task: Task,
    seed: int | None,
    file: str | None,
    backbone: ExportedBackbone,
) -> Job:
    config = plan.path
    if isinstance(task.spec, Finetuning):
        assert task.measurement is not None
        columns = list(task.measurement.columns.values())
        config = find_config(task.spec.config)
    else:
        data, architecture = plan.data[str(task.data)], backbone.architecture
        if architecture.config is None:
            raise UserError(
                f"{plan.path}: {file} is not a ResNet. "
                "Give its backbone as arch: {type: ..., ...}."
            )
        model = Architecture.parse(architecture.config).name  # the file's network, not the plan's
        columns = [
            Column(dataset=data.name, split=data.split, measured_by=p, model=model, metric="top-1")
            for p in protocols_of(task.spec, data)
        ]
    own: dict[str, Any] = dict(
        seed=seed,
        pretraining=name,
        checkpoint_sha256=backbone.sha256,
        config=config_name(config),
    )
    identities = [Identity(**dict(column), **own) for column in columns]
    return Job(task, name, seed, file, identities, backbone)
