"""The plan: a YAML file of checkpoints, tasks and seeds, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gersp_mm.benchmark.data import Data, described, known_data
from gersp_mm.datasets.known import SCENES
from gersp_mm.engine.config import apply_switches
from gersp_mm.evaluation import metrics
from gersp_mm.evaluation.features import read_parts
from gersp_mm.evaluation.linear_probe import DEFAULT_SWEEP
from gersp_mm.resources import find_config
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.paths import expand_home

PROTOCOLS: dict[str, dict[str, Any]] = {  # fields and their defaults
    "knn": dict(data=None, k=20, temperature=0.07),
    "linear": dict(data=None, sweep=list(DEFAULT_SWEEP)),
    "fewshot": dict(data=None, shots=[1, 5, 10, 50], draws=5),
    "finetune": dict(config=None, cfg_options={}),
}
DEPTHS = (18, 34, 50, 101)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Build a dict."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise UserError(f"line {node.value[number][0].start_mark.line + 1}: {key} is twice")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Checkpoint:
    """One line of ``checkpoints``.

    Attributes:
        name: what the rows call the pre-training.
        files: weights by seed; seed None for a single file, no file for random weights.
    """

    name: str
    files: Mapping[int | None, str | None]

    def variants(self, varies: bool, seeds: Sequence[int]) -> list[tuple[int | None, str | None]]:
        """Return (seed, file) of each run of a task.

        Args:
            varies: whether a result changes with the seed though the weights do not.
            seeds: of the plan.
        """
        if set(self.files) == {None}:
            own = seeds if varies or self.files[None] is None else [None]
            return [(seed, self.files[None]) for seed in own]
        return list(self.files.items())


@dataclass(frozen=True)
class Plan:
    """A YAML file that was read and checked."""

    path: Path
    checkpoints: Sequence[Checkpoint]
    arch: Any
    tasks: Sequence[Mapping[str, Any]]  # with `where`, and for frozen features one `data` each
    data: Mapping[str, Data]
    seeds: Sequence[int]
    work_dir: Path


class _Fields:
    """Reads one mapping of the file; messages name the file and the field."""

    def __init__(self, value: Any, where: str, allowed: Sequence[str], needed: Sequence[str]):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a mapping of {', '.join(allowed)}, got {value!r}")
        for name in value:
            if name not in allowed:
                raise UserError(f"{where}: no field {name!r}; there are {', '.join(allowed)}")
        for name in needed:
            if value.get(name) in (None, "", [], {}):
                raise UserError(f"{where}: {name} is missing")
        self.value, self.where = value, where

    def get(self, name: str, default: Any = None) -> Any:
        return self.value.get(name, default)

    def error(self, name: str, expected: str) -> UserError:
        return UserError(f"{self.where}: {name} must be {expected}, got {self.value.get(name)!r}")

    def text(self, name: str, default: str | None = None) -> Any:
        value = self.get(name, default)
        if value is not None and not isinstance(value, str):
            raise self.error(name, "a text")
        return value

    def whole(self, name: str, default: int, least: int = 1) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(name, f"a whole number from {least}")
        return value

    def wholes(self, name: str, default: Sequence[int], least: int) -> list[int]:
        value = self.get(name, default)
        good = isinstance(value, list) and value and len(set(map(str, value))) == len(value)
        if not good or any(type(v) is not int or v < least for v in value):
            raise self.error(name, f"a list of different whole numbers from {least}")
        return list(value)

    def positive(self, value: Any, name: str) -> float:
        try:  # YAML takes 1e-3 for a text
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if isinstance(value, bool) or not 0 < number < float("inf"):
            raise self.error(name, "a number above 0")
        return number


def read_plan(path: str | os.PathLike, work_dir: str | os.PathLike | None = None) -> Plan:
    """Read a YAML file of checkpoints, tasks and seeds, see ``tools/benchmarks/run.py --help``.

    Args:
        path: of the file. Paths in it are relative to the current folder.
        work_dir: in place of the file's.

    Raises:
        UserError: a field is missing, unknown or wrong; the message names file and field.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no plan {path}")
    try:
        content = expand_home(yaml.load(path.read_text(encoding="utf-8"), _Loader))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    names = ("checkpoints", "arch", "tasks", "datasets", "seeds", "work_dir")
    top = _Fields(content, str(path), names, ("checkpoints", "tasks"))
    seeds = top.wholes("seeds", [0], 0)
    checkpoints = _read_checkpoints(top)
    arch = _read_arch(top) if "arch" in top.value else None
    if arch is None and any(None in c.files.values() for c in checkpoints):
        raise UserError(f"{path}: arch is missing, which random weights (null) need: resnet18")

    if not isinstance(top.get("datasets", {}), Mapping):
        raise top.error("datasets", "a mapping of name to data set")
    named = dict(top.get("datasets", {}))
    for name in named:
        if name in SCENES:
            raise UserError(
                f"{path}: datasets.{name} is the name of a known data set, choose another"
            )
    data: dict[str, Data] = {}
    tasks: list[dict[str, Any]] = []
    if not isinstance(top.get("tasks"), list):
        raise top.error("tasks", "a list")
    for number, value in enumerate(top.get("tasks"), 1):
        where = f"{path}, task {number}"
        for task in _read_task(value, where):
            if "data" in task:
                task["data"] = _resolve_data(task["data"], named, data, where)
            tasks.append(task)
    folder = Path(work_dir or top.text("work_dir") or Path("work_dirs", "benchmarks", path.stem))
    return Plan(path, checkpoints, arch, tasks, data, seeds, folder)


def _read_checkpoints(top: _Fields) -> list[Checkpoint]:
    given = top.get("checkpoints")
    expected = "a mapping of name to file, to null (random weights), or to {seed: file}"
    if not isinstance(given, Mapping):
        raise top.error("checkpoints", expected)
    found = []
    for name, value in given.items():
        where = f"{top.where}: checkpoints.{name}"
        files = dict(value) if isinstance(value, Mapping) else {None: value}
        for seed, file in files.items():
            single = seed is None and not isinstance(value, Mapping)
            if not single and (type(seed) is not int or seed < 0 or file is None):
                raise UserError(f"{where} must be a file, null, or {{seed: file}}, got {value!r}")
            if file is not None and not isinstance(file, str):
                raise UserError(f"{where} must be a file, null, or {{seed: file}}, got {value!r}")
            if file is not None and not os.path.isfile(file):
                raise UserError(f"{where}: there is no file {file}")
        if not files:
            raise UserError(f"{where} names no file")
        found.append(Checkpoint(str(name), files))
    return found


def _read_arch(top: _Fields) -> Any:
    arch = top.get("arch")
    if isinstance(arch, Mapping) and isinstance(arch.get("type"), str):
        return dict(arch)
    choices = [f"resnet{depth}" for depth in DEPTHS]
    if arch not in choices:
        raise top.error("arch", f"one of {', '.join(choices)}, or a backbone {{type: ..., ...}}")
    return dict(type="ResNet", depth=int(arch.removeprefix("resnet")))


def _read_task(value: Any, where: str) -> Iterator[dict[str, Any]]:
    """Check a task; one for each of its data sets."""
    protocol = value.get("protocol") if isinstance(value, Mapping) else None
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise UserError(
            f"{where}: protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    defaults = PROTOCOLS[protocol]
    needed = [name for name, default in defaults.items() if default is None]
    fields = _Fields(value, f"{where} ({protocol})", ("protocol", *defaults), needed)
    task: dict[str, Any] = dict(protocol=protocol)
    if protocol == "finetune":
        task["config"], task["cfg_options"] = fields.text("config"), _read_options(fields)
        task["evaluation"], task["model"] = _read_config(task, fields.where)
        yield task
        return
    if protocol == "knn":
        task["k"] = fields.whole("k", 20)
        task["temperature"] = fields.positive(fields.get("temperature", 0.07), "temperature")
    elif protocol == "linear":
        sweep = fields.get("sweep", list(DEFAULT_SWEEP))
        if not isinstance(sweep, list) or not sweep:
            raise fields.error("sweep", "a list of values of C")
        task["sweep"] = sorted({fields.positive(c, "sweep") for c in sweep})
    else:
        task["shots"] = fields.wholes("shots", [1, 5, 10, 50], 1)
        task["draws"] = fields.whole("draws", 5)
    chosen = fields.get("data")
    for data in chosen if isinstance(chosen, list) else [chosen]:
        yield dict(task, data=data)


def _read_options(fields: _Fields) -> dict[str, Any]:
    options = fields.get("cfg_options", {})
    if not isinstance(options, Mapping):
        raise fields.error("cfg_options", "a mapping of key to value")
    for key, value in options.items():
        if key in ("pretrained", "randomness.seed", "work_dir"):
            raise UserError(f"{fields.where}: cfg_options.{key} is set by checkpoints and seeds")
        if isinstance(value, Mapping):
            raise UserError(f"{fields.where}: cfg_options.{key}: write {key}.name: value")
    return dict(options)


def _read_config(task: Mapping[str, Any], where: str) -> tuple[Any, str]:
    from mmengine.config import Config

    try:
        cfg = Config.fromfile(find_config(task["config"]))
        trains = bool(cfg.get("train_cfg"))
        cfg.merge_from_dict(dict(task["cfg_options"]))
    except Exception as error:  # a config is code, it may raise anything
        raise UserError(f"{where}: config {task['config']} cannot be read: {error}") from None
    if not trains:
        raise UserError(f"{where}: {task['config']} trains nothing: use protocol knn or fewshot")
    evaluation = cfg.get("evaluation") or {}
    if not metrics.wanted_metrics(evaluation):
        raise UserError(f"{where}: {task['config']} has no evaluation.metrics: no value to record")
    apply_switches(cfg)  # frozen layers are named in the protocol
    evaluation = dict(cfg.evaluation)
    options = [f"{key}={option(value)}" for key, value in sorted(task["cfg_options"].items())]
    options = [text for text in options if not text.startswith("frozen=")]
    if options:
        evaluation["protocol"] += f", with {' '.join(options)}"
    return evaluation, metrics.model_name(cfg, task["config"])


def option(value: Any) -> str:
    """Write a value as ``--cfg-options`` takes it."""
    return "[" + ",".join(map(option, value)) + "]" if isinstance(value, list) else str(value)


def _resolve_data(value: Any, named: Mapping[str, Any], data: dict[str, Data], where: str) -> str:
    """Read a data set once; return its key in ``data``."""
    if isinstance(value, str):
        if value not in named and value not in SCENES:
            choices = ", ".join([*SCENES, *named])
            raise UserError(
                f"{where}: data must be one of {choices}, or {{name, train, test, size}}, got "
                f"{value!r}"
            )
        key, source = value, named.get(value, value)
    else:
        key, source = json.dumps(value, sort_keys=True, default=str), value
    if key not in data:
        data[key] = known_data(source) if isinstance(source, str) else _own_data(source, key, where)
    return key


def _own_data(source: Any, key: str, where: str) -> Data:
    where = f"{where}: data"
    names = ("name", "train", "val", "test", "size", "resize")
    fields = _Fields(source, where, names, ("train", "test", "size"))
    name = fields.text("name", None if key.startswith("{") else key)
    if not name:
        raise UserError(f"{where}: name is missing")
    size = fields.whole("size", 0)
    resize = fields.whole("resize", size, size)
    sources = {part: fields.get(part) for part in ("train", "val", "test") if fields.text(part)}
    try:
        parts = {part: images.samples for part, images in read_parts(sources).items()}
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    listed = len({label for _, label in parts["train"]} | {label for _, label in parts["test"]})
    if listed < 2:
        raise UserError(f"{where}: {name} has fewer than two classes")
    return Data(name, described("own split", parts), parts, size, resize)
