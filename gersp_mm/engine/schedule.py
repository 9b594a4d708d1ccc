"""The simulated learning rate of a run, and schedules fitted to another length."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

PAPER_STEPS = 2000  # steps of a simulated schedule
WARM_UPS = ("ConstantLR", "LinearLR")
# Arguments that are numbers of epochs or iterations.
LENGTHS = ("begin", "end", "T_max", "milestones", "periods", "step_size", "total_steps")


class Curve(NamedTuple):
    """The learning rate of one run.

    Attributes:
        first, last: Rate of the first step and of the last step.
        rates: Rates of all simulated steps.
    """

    first: float
    last: float
    rates: list[float]


class Length(NamedTuple):
    """Length of a run: ``number`` of ``'epochs'`` or ``'iters'``, under the config key ``key``."""

    number: int
    unit: str
    key: str


def run_length(cfg: Config) -> Length | None:
    """Return the length of a config's training, or None if it has none."""
    train = cfg.get("train_cfg") or {}
    for key, unit in (("max_epochs", "epochs"), ("max_iters", "iters")):
        if isinstance(train.get(key), int) and not isinstance(train.get(key), bool):
            return Length(train[key], unit, f"train_cfg.{key}")
    return None


def schedulers_of(cfg: Config) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the learning-rate schedulers of a config with their dotted keys."""
    held = cfg.get("param_scheduler") or []
    entries = list(enumerate(held)) if isinstance(held, (list, tuple)) else [(None, held)]
    return [
        ("param_scheduler" if number is None else f"param_scheduler.{number}", entry)
        for number, entry in entries
        if isinstance(entry, Mapping) and _kind(entry).endswith("LR")
    ]


def planned_length(cfg: Config, epoch_length: int = 1) -> float | None:
    """Return the length that the schedule is made for, in the unit of the run.

    Args:
        cfg: The config; its schedulers may count epochs or iterations.
        epoch_length: Iterations of an epoch.

    Returns:
        Epochs or iterations, or None if only warm-ups have an end.
    """
    length = run_length(cfg)
    ends = []
    for _, entry in schedulers_of(cfg):
        end = own_end(entry)
        if length is None or end is None or _is_warm_up(entry):
            continue
        by_epoch = entry.get("by_epoch", True)
        if by_epoch and length.unit == "iters":
            end = end * epoch_length
        elif not by_epoch and length.unit == "epochs":
            end = end / epoch_length
        ends.append(end)
    return max(ends, default=None)


def own_end(entry: Mapping[str, Any]) -> float | None:
    """Return the end of a scheduler according to its own arguments, or None."""
    begin = entry.get("begin", 0)
    if entry.get("periods"):
        return begin + sum(entry["periods"])
    if entry.get("T_max"):
        return begin + entry["T_max"]
    return entry.get("end")


def learning_rates(cfg: Config, epoch_length: int, length: int | None = None) -> Curve:
    """Simulate the schedulers of a config.

    All lengths of long runs are divided by the same number.

    Args:
        cfg: The config.
        epoch_length: Iterations of an epoch.
        length: Epochs or iterations, in the unit of the run; by default the length of the run.
    """
    import mmengine.optim  # noqa: F401  (registers the schedulers)
    import torch
    from mmengine.registry import PARAM_SCHEDULERS

    own = run_length(cfg)
    assert own is not None
    number = own.number if length is None else length
    by_epoch = own.unit == "epochs"
    epochs, iterations = (number, number * epoch_length) if by_epoch else (1, number)
    scale = max(1.0, iterations / max(PAPER_STEPS, 2 * epochs))
    paper_epoch = max(1, round((epoch_length if by_epoch else iterations) / scale))
    base = float(cfg.optim_wrapper.optimizer.lr)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    schedulers = []
    for _, entry in schedulers_of(cfg):
        paper = copy.deepcopy(dict(entry))
        counts_epochs = paper.get("by_epoch", True)
        paper.setdefault("end", epochs if counts_epochs and by_epoch else iterations)
        if not counts_epochs:
            _shrink(paper, scale)
        paper.pop("verbose", None)
        default_args = dict(optimizer=optimizer, epoch_length=paper_epoch)
        schedulers.append(PARAM_SCHEDULERS.build(paper, default_args=default_args))
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns without steps of the optimizer.
        for step in range(paper_epoch * (epochs if by_epoch else 1)):
            rates.append(optimizer.param_groups[0]["lr"])
            ends_epoch = by_epoch and (step + 1) % paper_epoch == 0
            for scheduler in schedulers:
                if ends_epoch or not scheduler.by_epoch:
                    scheduler.step()
    return Curve(rates[0], rates[-1], rates)


def _shrink(entry: dict[str, Any], scale: float) -> None:
    for name in LENGTHS:
        value = entry.get(name)
        if isinstance(value, (list, tuple)):
            entry[name] = [max(1, round(item / scale)) for item in value]
        elif value:
            entry[name] = max(1, round(value / scale))
    if entry.get("begin") and entry.get("end") is not None:
        entry["end"] = max(entry["end"], entry["begin"] + 1)
    if "gamma" in entry and "milestones" not in entry and "step_size" not in entry:
        entry["gamma"] = entry["gamma"] ** scale


def fitted_options(cfg: Config, number: int, epoch_length: int = 1) -> dict[str, Any]:
    """Return the options that train for another length, with the schedule fitted to it.

    Warm-ups do not change, cosines and polynomials end with the run, and milestones and cycles keep
    their shares of the run.

    Args:
        cfg: The config.
        number: Epochs or iterations, in the unit of the run.
        epoch_length: Iterations of an epoch, for schedulers in the other unit.

    Returns:
        Values by dotted key.
    """
    length = run_length(cfg)
    if length is None:
        return {}
    options: dict[str, Any] = {length.key: number}
    for key, entry in schedulers_of(cfg):
        end = own_end(entry)
        if _is_warm_up(entry) or end is None:
            continue
        ratio = 1.0
        if entry.get("by_epoch", True) != (length.unit == "epochs"):
            ratio = 1 / epoch_length if length.unit == "iters" else float(epoch_length)
        whole = max(1, round(number * ratio))
        options.update(_fitted(key, entry, end, whole))
    return options


def _fitted(
    key: str, entry: Mapping[str, Any], end: float, whole: int
) -> Iterator[tuple[str, Any]]:
    begin = entry.get("begin", 0)
    if entry.get("periods"):
        yield f"{key}.periods", _shares(entry["periods"], max(1, whole - begin))
    elif "T_max" in entry:
        yield f"{key}.T_max", max(1, whole - begin)
    if entry.get("milestones"):
        yield f"{key}.milestones", [max(1, round(m * whole / end)) for m in entry["milestones"]]
    if entry.get("end") is not None:
        yield f"{key}.end", max(begin + 1, whole)


def _shares(periods: Sequence[int], whole: int) -> list[int]:
    """Divide a length in the ratio of earlier periods, each at least 1."""
    total = sum(periods)
    borders = [round(whole * sum(periods[: n + 1]) / total) for n in range(len(periods))]
    shares = [border - before for before, border in zip([0, *borders], borders)]
    return [max(1, share) for share in shares]


def with_epochs(cfg: Config, epochs: int) -> Config:
    """Return a copy of a config that trains for ``epochs``, with its schedule fitted.

    Args:
        cfg: A config with ``train_cfg.max_epochs``; it is not changed.
        epochs: Number of epochs, at least 1.
    """
    changed = copy.deepcopy(cfg)
    changed.merge_from_dict(fitted_options(cfg, epochs))
    return changed


def as_options(options: Mapping[str, Any]) -> list[str]:
    """Return values in the syntax of ``--cfg-options``."""
    return [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]


def _kind(entry: Mapping[str, Any]) -> str:
    kind = entry.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def _is_warm_up(entry: Mapping[str, Any]) -> bool:
    return _kind(entry) in WARM_UPS and entry.get("begin", 0) == 0
