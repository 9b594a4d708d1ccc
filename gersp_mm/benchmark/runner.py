"""The runner of the jobs that have no rows yet."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from mmengine.logging import print_log
from torch import nn

from gersp_mm.benchmark.data import Data, lists_sha256
from gersp_mm.benchmark.finetuning import finetune
from gersp_mm.benchmark.jobs import Job
from gersp_mm.benchmark.spec import KNN, FewShot, LinearProbe, Plan, TaskSpec
from gersp_mm.checkpoints.integrity import weights_sha256
from gersp_mm.evaluation.features import EvalImages, extract_features
from gersp_mm.evaluation.few_shot import few_shot_accuracies, mean_and_std
from gersp_mm.evaluation.knn import knn_accuracy
from gersp_mm.evaluation.linear_probe import linear_probe
from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.results import Identity, Row, store
from gersp_mm.results.protocol import Unparsed
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import counted, listed
from gersp_mm.utils.files import escape_name, save_atomically
from gersp_mm.utils.provenance import Provenance


class Part(NamedTuple):
    """Features of one part of a data set.

    Attributes:
        features: Features, N×D.
        labels: Labels, N.
        left_out: Index in the part's list, path and reason of each unreadable image, for which
            there are no features.
    """

    features: torch.Tensor
    labels: torch.Tensor
    left_out: Sequence[tuple[int, str, str]] = ()


Features = Mapping[str, Part]


class Runner:
    """Runs the jobs of a plan that have no rows yet.

    Several processes may work on one plan; each job is run by one of them.

    Args:
        plan: The plan.
        out: File that the rows are appended to.
        device: Where to run.
        num_workers: Number of processes that decode images.
    """

    def __init__(self, plan: Plan, out: Path, device: str, num_workers: int = 0) -> None:
        self.plan = plan
        self.out = out
        self.device = device
        self.num_workers = num_workers
        self._told_old = False
        self._network: tuple[Any, nn.Module] | None = None  # of the latest weights
        self._features: tuple[Any, Features] | None = None  # of the latest weights and data set

    def finished(self) -> set[Identity]:
        """Return the identities of the rows that are recorded."""
        if not self.out.is_file():
            return set()
        store.append_rows(self.out, [])  # removes a last line that a killed process left unfinished
        rows = store.read_rows(self.out)
        old = sum(isinstance(row.measured_by, Unparsed) for row in rows)
        if old and not self._told_old:
            print(f"{self.out}: {counted(old, 'row')} of an older version are ignored")
            self._told_old = True
        return {row.identity for row in rows}

    def run(self, jobs: Sequence[Job]) -> int:
        """Run the jobs without rows, print a line for each, and return their number."""
        ran = 0
        waiting = list(enumerate(jobs, 1))
        for wait in (False, True):  # The second pass waits for jobs of other processes.
            left = []
            for number, job in waiting:
                lock = self.plan.work_dir / "jobs" / f"{job.id}.lock"
                with _claimed(lock, wait) as taken:
                    if not taken:
                        left.append((number, job))
                        continue
                    missing = set(job.identities) - self.finished()
                    if not missing:
                        continue
                    started = time.perf_counter()
                    made = [row for row in self._rows(job) if row.identity in missing]
                    store.append_rows(self.out, made)
                    seconds = time.perf_counter() - started
                ran += 1
                values = ", ".join(f"{row.value:.2f}" for row in made) or "no value is defined"
                print(f"[{number}/{len(jobs)}] {job.title}: {values} ({seconds:.1f} s)", flush=True)
            waiting = left
        return ran

    def _rows(self, job: Job) -> list[Row]:
        if job.task.data is None:
            return finetune(job, self.plan.work_dir / "finetune" / job.id, self.device)
        data = self.plan.data[job.task.data]
        features = self.features(job, data)
        started = time.perf_counter()
        values = evaluate(job.task.spec, data, features, job.seed or 0)
        seconds = round(time.perf_counter() - started, 3)
        shared: dict[str, Any] = {**dict(Provenance.now()), "seconds": seconds}
        return [
            Row(**dict(identity), value=round(value, 4), settings=job.settings, **shared)
            for identity, value in zip(job.identities, values)
        ]

    def features(self, job: Job, data: Data) -> Features:
        """Return the features of a job's weights, from memory, from the cache, or extracted.

        Raises:
            RuntimeError: Extraction changed the backbone.
        """
        wanted = (job.weights, job.task.data)
        if self._features is not None and self._features[0] == wanted:
            return self._features[1]
        if self._network is None or self._network[0] != job.weights:
            self._network = job.weights, job.backbone.build()
            job.backbone.release()
        backbone = self._network[1]
        before = weights_sha256({n: t.cpu() for n, t in backbone.state_dict().items()})
        mean, std, _ = job.backbone.meta.normalisation
        arch = job.backbone.architecture.config
        pixels = job.backbone.meta.pixel_scale
        key = [before, arch, lists_sha256(data.parts), data.size, data.resize, mean, std]
        if pixels is not None:
            key.append(pixels.as_dict())
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        path = self.plan.work_dir / "features" / f"{digest}.pt"
        with _claimed(path.with_suffix(".lock"), wait=True):
            found = _read_features(path)
            if found is None or _is_repaired(found):
                backbone.to(self.device)
                found = {}
                for part, entries in data.parts.items():
                    images = EvalImages(entries, data.size, data.resize, pixel_scale=pixels)
                    extracted = extract_features(
                        backbone,
                        images,
                        mean=mean,
                        std=std,
                        num_workers=self.num_workers,
                        progress=f"features of {job.pretraining}, {data.name} {part}",
                    )
                    found[part] = Part(*extracted, images.left_out)
                after = weights_sha256({n: t.cpu() for n, t in backbone.state_dict().items()})
                if after != before:
                    raise RuntimeError(f"{job.title}: extracting features changed the backbone")
                save_atomically({part: tuple(row) for part, row in found.items()}, path)
            else:
                _tell_left_out(found, data)
        self._features = (wanted, found)
        return found


def _read_features(path: Path) -> Features | None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {part: Part(*row) for part, row in content.items()}
    except FileNotFoundError:
        return None
    except Exception:  # A damaged file is extracted again.
        return None


def _is_repaired(features: Features) -> bool:
    """Return whether an image that was left out can be read again."""
    for row in features.values():
        for _, path, _ in row.left_out:
            with contextlib.suppress(BadImageError):
                load_rgb(path)
                return True
    return False


def _tell_left_out(features: Features, data: Data) -> None:
    for part, row in features.items():
        if row.left_out:
            names = listed([escape_name(path) for _, path, _ in row.left_out], 3)
            print_log(
                f"{data.name}: {len(row.left_out)} of {len(data.parts[part])} {part} images could "
                f"not be read when their features were made, and are left out: {names}",
                logger="current",
                level=logging.WARNING,
            )


def evaluate(task: TaskSpec, data: Data, features: Features, seed: int) -> list[float]:
    """Return the values of a task in per cent, one for each of the job's rows.

    Args:
        task: A task on frozen features.
        data: The data set.
        features: Features of its parts.
        seed: Seed of the random choices. A linear probe without a validation list draws the
            training images on which C is chosen; few-shot uses the draws seed·draws to
            seed·draws + draws - 1.
    """
    parts = {part: Part(*row) for part, row in features.items()}
    train, test = parts["train"][:2], parts["test"][:2]
    if isinstance(task, KNN):
        return [knn_accuracy(*train, *test, k=task.k, temperature=task.temperature)]
    if isinstance(task, LinearProbe):
        val = parts["val"][:2] if "val" in parts else None
        probe = linear_probe(*train, *test, task.sweep, val=val, seed=seed, progress="linear probe")
        return [probe.accuracy]
    assert isinstance(task, FewShot)
    without = {index for index, _, _ in parts["train"].left_out}
    listing = enumerate(data.parts["train"])
    names = [path for index, (path, _) in listing if index not in without]
    draws = range(seed * task.draws, (seed + 1) * task.draws)
    values = []
    for shots in progress(task.shots, "few-shot", "size"):
        accuracies = few_shot_accuracies(*train, *test, names, shots, draws)
        values.append(mean_and_std(accuracies)[0])
    return values


@contextlib.contextmanager
def _claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock file; yield False if another process holds it and ``wait`` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path).acquire(timeout=-1 if wait else 0):
            yield True
    except Timeout:
        yield False
