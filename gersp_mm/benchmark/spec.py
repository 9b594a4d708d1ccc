"""The plan: a YAML file of checkpoints, tasks and seeds, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.benchmark.data import Data, described, known_data
from gersp_mm.constants import FEW_SHOT_DRAWS, KNN_K, KNN_TEMPERATURE, RESNETS
from gersp_mm.datasets.known import SCENES
from gersp_mm.engine.changes import changes_of_run
from gersp_mm.engine.config import apply_switches
from gersp_mm.evaluation.features import read_parts
from gersp_mm.evaluation.linear_probe import DEFAULT_SWEEP
from gersp_mm.evaluation.measurement import Measurement
from gersp_mm.resources import find_config
from gersp_mm.results.protocol import Positive, Typed
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.paths import expand_home
from gersp_mm.utils.validation import validated

T = TypeVar("T")
SET_BY_PLAN = ("pretrained", "randomness.seed", "work_dir")


def _different(values: list) -> list:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"must be a list of different numbers, got {values}")
    return values


def _files(value: Any) -> dict[int | None, str | None]:
    """Read one checkpoint: a file, None for random weights, or a file for each seed."""
    files = value if isinstance(value, Mapping) else {None: value}
    seeded = isinstance(value, Mapping)
    for seed, file in files.items():
        good_seed = type(seed) is int and seed >= 0 if seeded else True
        if not good_seed or not isinstance(file, str if seeded else (str, type(None))):
            raise ValueError(
                f"must be a file, null (random weights), or {{seed: file}}, got {value!r}"
            )
        if file is not None and not os.path.isfile(file):
            raise ValueError(f"there is no file {file}")
    if not files:
        raise ValueError("names no file")
    return dict(files)


def _arch(value: Any) -> dict[str, Any] | None:
    if value is None or (isinstance(value, Mapping) and isinstance(value.get("type"), str)):
        return value if value is None else dict(value)
    if value not in RESNETS:
        raise ValueError(
            f"must be one of {', '.join(RESNETS)}, or a backbone {{type: ..., ...}}, got {value!r}"
        )
    config = Architecture.parse(value).config
    return None if config is None else dict(config)


def _options(value: dict[str, Any]) -> dict[str, Any]:
    for key, inner in value.items():
        if key in SET_BY_PLAN:
            raise ValueError(f"{key} is set by checkpoints and seeds. Remove it.")
        if isinstance(inner, Mapping):
            raise ValueError(f"{key} is a mapping. Write {key}.name: value.")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    return value


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    return "own" if isinstance(value, (Mapping, OwnData)) else None


Whole = Annotated[int, Field(strict=True, ge=1)]
# YAML reads 1e-3 as a string, which is accepted as the number.
Number = Annotated[Positive, BeforeValidator(_number)]
FilePath = Annotated[str, Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], AfterValidator(_different)]


class OwnData(Typed):
    """A user's data set: folders with a sub-folder per class, or lists of ``path label`` lines."""

    name: str | None = None
    train: FilePath
    val: str | None = None
    test: FilePath
    size: Whole
    resize: Whole | None = None

    @model_validator(mode="after")
    def _crop_fits(self) -> OwnData:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize must be at least size ({self.size}), got {self.resize}")
        return self


Sources = Annotated[
    Annotated[str, Tag("name")] | Annotated[OwnData, Tag("own")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message="must be the name of a data set, or {name, train, test, size}",
    ),
]


class _FrozenTask(Typed):
    data: Annotated[
        list[Sources],
        BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
        Field(min_length=1),
    ]


class KNN(_FrozenTask):
    """Weighted k nearest neighbours on frozen features."""

    protocol: Literal["knn"] = "knn"
    k: Whole = KNN_K
    temperature: Number = KNN_TEMPERATURE


class LinearProbe(_FrozenTask):
    """Logistic regression on frozen features, with the best C of several."""

    protocol: Literal["linear"] = "linear"
    sweep: Annotated[
        list[Number], Field(min_length=1), AfterValidator(lambda values: sorted(set(values)))
    ] = list(DEFAULT_SWEEP)


class FewShot(_FrozenTask):
    """Logistic regression on frozen features of a few images per class."""

    protocol: Literal["fewshot"] = "fewshot"
    shots: Annotated[list[Whole], AfterValidator(_different)] = [1, 5, 10, 50]
    draws: Whole = FEW_SHOT_DRAWS


class Finetuning(Typed):
    """Training and test of a downstream config."""

    protocol: Literal["finetune"] = "finetune"
    config: FilePath
    cfg_options: Annotated[dict[str, Any], AfterValidator(_options)] = {}


TaskSpec = KNN | LinearProbe | FewShot | Finetuning


class PlanFile(Typed):
    """The content of a plan's file."""

    checkpoints: Annotated[
        dict[str, Annotated[dict[Any, Any], BeforeValidator(_files)]], Field(min_length=1)
    ]
    arch: Annotated[dict[str, Any] | None, BeforeValidator(_arch)] = None
    tasks: Annotated[
        list[Annotated[TaskSpec, Field(discriminator="protocol")]], Field(min_length=1)
    ]
    datasets: dict[str, Sources] = {}
    seeds: Seeds = [0]
    work_dir: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One line of ``checkpoints``.

    Attributes:
        name: Label of the pre-training in rows.
        files: Weights by seed; seed None for a single file, no file for random weights.
    """

    name: str
    files: Mapping[int | None, str | None]

    def variants(self, varies: bool, seeds: Sequence[int]) -> list[tuple[int | None, str | None]]:
        """Return seed and file of each run of a task.

        Args:
            varies: Whether the seed changes the result even when the weights are the same.
            seeds: Seeds of the plan.
        """
        if set(self.files) == {None}:
            own = seeds if varies or self.files[None] is None else [None]
            return [(seed, self.files[None]) for seed in own]
        return list(self.files.items())


@dataclass(frozen=True)
class Task:
    """One task on one data set.

    Attributes:
        spec: The task as written in the file.
        data: Key of its data set in the plan; None for a fine-tuning, whose config names it.
        measurement: The columns of a fine-tuning's values.
    """

    spec: TaskSpec
    data: str | None = None
    measurement: Measurement | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Plan:
    """A plan that was read and checked."""

    path: Path
    checkpoints: Sequence[Checkpoint]
    arch: Any
    tasks: Sequence[Task]
    data: Mapping[str, Data]
    seeds: Sequence[int]
    work_dir: Path


class _Loader(yaml.SafeLoader):
    """A loader that refuses a repeated key; YAML would silently take the last value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Build a dict."""
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = own[number].start_mark.line + 1
                raise UserError(f"line {line}: the key {key!r} appears twice. Remove one of them.")
        return super().construct_mapping(node, deep)


def read_plan(path: str | os.PathLike, work_dir: str | os.PathLike | None = None) -> Plan:
    """Read a YAML file of checkpoints, tasks and seeds, see ``gersp benchmark --help``.

    Args:
        path: The file. Paths in it are relative to the current folder.
        work_dir: Work directory that replaces the file's.

    Raises:
        UserError: A field is missing, unknown or wrong. The message has a line for each of these
            fields and names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no plan {path}")
    try:
        content = expand_home(yaml.load(path.read_text(encoding="utf-8"), _Loader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    given: PlanFile = validated(PlanFile, content, str(path))
    problems: list[str] = []
    data: dict[str, Data] = {}

    def tried(where: str, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except UserError as error:
            problems.append(f"{path}{where}: {error}")
            return None

    checkpoints = [Checkpoint(name, files) for name, files in given.checkpoints.items()]
    if given.arch is None and any(None in c.files.values() for c in checkpoints):
        problems.append(
            f"{path}: arch is missing, but random weights (null) need it. Write arch: resnet18."
        )
    for name in set(given.datasets) & set(SCENES):
        problems.append(f"{path}: datasets.{name} is the name of a known data set. Choose another.")
    tasks = []
    for number, spec in enumerate(given.tasks, 1):
        where = f": task {number} ({spec.protocol})"
        if isinstance(spec, Finetuning):
            tasks.append(Task(spec, measurement=tried(where, _measurement, spec)))
            continue
        for source in spec.data:
            key = tried(where, _resolve_data, source, given.datasets, data)
            tasks.append(Task(spec, key))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    folder = Path(work_dir or given.work_dir or Path("work_dirs", "benchmarks", path.stem))
    return Plan(path, checkpoints, given.arch, tasks, data, given.seeds, folder)


def _measurement(task: Finetuning) -> Measurement:
    """Read the config of a fine-tuning and return the columns of its values."""
    from mmengine.config import Config

    try:
        path = find_config(task.config)
        shipped, cfg = Config.fromfile(path), Config.fromfile(path)
        trains = bool(cfg.get("train_cfg"))
        cfg.merge_from_dict(dict(task.cfg_options))
    except Exception as error:  # A config is code and may raise any error.
        raise UserError(f"config {task.config} cannot be read: {error}") from None
    if not trains:
        raise UserError(f"{task.config} trains nothing. Use protocol knn or fewshot.")
    apply_switches(cfg)
    measurement = Measurement(cfg, task.config, None, changes_of_run(shipped, cfg))
    if not measurement.metrics:
        raise UserError(f"{task.config} has no evaluation.metrics, so there is no value to record")
    return measurement


def option(value: Any) -> str:
    """Write a value in the syntax of ``--cfg-options``."""
    return "[" + ",".join(map(option, value)) + "]" if isinstance(value, list) else str(value)


def _resolve_data(source: Sources, named: Mapping[str, Sources], data: dict[str, Data]) -> str:
    """Read a data set into ``data`` unless it is there, and return its key."""
    if isinstance(source, str):
        key, source = source, named.get(source, source)
    else:
        key = json.dumps(source.model_dump(), sort_keys=True)
    if isinstance(source, str) and source not in SCENES:
        choices = ", ".join([*SCENES, *named])
        raise UserError(
            f"data must be one of {choices}, or {{name, train, test, size}}, got {source!r}"
        )
    if key not in data:
        data[key] = known_data(source) if isinstance(source, str) else _own_data(source, key)
    return key


def _own_data(source: OwnData, key: str) -> Data:
    name = source.name or (None if key.startswith("{") else key)
    if not name:
        raise UserError("data: name is missing")
    given = {part: getattr(source, part) for part in ("train", "val", "test")}
    sources = {part: folder for part, folder in given.items() if folder}
    try:
        parts = {part: images.samples for part, images in read_parts(sources).items()}
    except UserError as error:
        raise UserError(f"data: {error}") from None
    listed = len({label for _, label in parts["train"]} | {label for _, label in parts["test"]})
    if listed < 2:
        raise UserError(f"data: {name} has fewer than two classes")
    split = described("own split", parts)
    return Data(name, split, parts, source.size, source.resize or source.size)
