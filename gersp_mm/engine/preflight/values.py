"""Checks of the types and ranges of values that no class of this package checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from mmengine.config import Config

from gersp_mm.engine.preflight.findings import Finding
from gersp_mm.engine.preflight.names import _flat
from gersp_mm.utils import provenance
from gersp_mm.utils.errors import UserError, check_choice, check_flag, check_number, counted

Rule = Callable[[str, Any], None]


def check_section(name: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is a section of a config."""
    if not isinstance(value, Mapping):
        raise UserError(f"{name} cannot be {value!r}. Set it to a dict, or to None.")


def check_fraction_pair(name: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is a pair like Adam's betas."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"{name} cannot be {value!r}. Set it to two numbers, such as (0.9, 0.999).")
    for number in value:
        check_number(name, number, 0, 0.9999999, such_as="(0.9, 0.999)")


def check_interval(name: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is an interval, or -1 for never."""
    if value != -1:
        check_number(name, value, 1, whole=True, such_as=1)


def check_per_channel(name: str, value: Any) -> None:
    """Raise a :class:`UserError` unless ``value`` is a list of one number per channel."""
    is_std = name.endswith("std")
    example = [58.395, 57.12, 57.375] if is_std else [123.675, 116.28, 103.53]
    if not isinstance(value, (list, tuple)) or len(value) < 1:
        raise UserError(f"{name} cannot be {value!r}. Set it to one number per channel, {example}.")
    for number in value:
        check_number(name, number, above=0 if is_std else None, such_as=example)


def check_log_level(name: str, value: Any) -> None:
    """Raise a :class:`UserError` unless Python's logging knows the level."""
    if not isinstance(value, int):
        check_choice(name, value, ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))


count = partial(check_number, low=1, whole=True)
share = partial(check_number, low=0)
# The first matching pattern decides on a key. None is allowed.
RULES: dict[str, Rule] = {
    "model": check_section,
    "*_dataloader": check_section,
    "train_cfg": check_section,
    "val_cfg": check_section,
    "test_cfg": check_section,
    "env_cfg": check_section,
    "optim_wrapper": check_section,
    "default_hooks": check_section,
    "randomness": check_section,
    "*_dataloader.batch_size": partial(count, such_as=32),
    "*_dataloader.num_workers": partial(check_number, low=0, whole=True, such_as=4),
    "*_dataloader.prefetch_factor": partial(count, such_as=2),
    "*_dataloader.timeout": partial(check_number, low=0),
    "*_dataloader.drop_last": check_flag,
    "*_dataloader.pin_memory": check_flag,
    "*_dataloader.persistent_workers": check_flag,
    "optim_wrapper.accumulative_counts": partial(count, such_as=1),
    "optim_wrapper.clip_grad.max_norm": partial(check_number, above=0, such_as=10),
    "optim_wrapper.optimizer": check_section,
    "optim_wrapper.optimizer.lr": partial(check_number, low=0, such_as=0.01),
    "optim_wrapper.optimizer.momentum": partial(check_number, low=0, high=1, such_as=0.9),
    "optim_wrapper.optimizer.weight_decay": partial(check_number, low=0, such_as=5e-4),
    "optim_wrapper.optimizer.eps": partial(check_number, low=0, such_as=1e-8),
    "optim_wrapper.optimizer.betas": check_fraction_pair,
    "optim_wrapper.paramwise_cfg.*_mult": partial(check_number, low=0, such_as=1),
    "train_cfg.max_epochs": partial(count, such_as=100),
    "train_cfg.max_iters": partial(count, such_as=80000),
    "train_cfg.val_interval": partial(count, such_as=1),
    "train_cfg.val_begin": partial(check_number, low=0, whole=True, such_as=1),
    "default_hooks.*.interval": check_interval,
    "param_scheduler.*.eta_min": share,
    "param_scheduler.*.T_max": partial(check_number, above=0, such_as=100),
    "param_scheduler.*.gamma": partial(check_number, above=0, such_as=0.1),
    "randomness.seed": partial(check_number, low=0, high=2**32 - 1, whole=True, such_as=0),
    "env_cfg.mp_cfg.mp_start_method": partial(
        check_choice, choices=("fork", "spawn", "forkserver")
    ),
    "auto_scale_lr.base_batch_size": partial(check_number, above=0, such_as=256),
    "model.data_preprocessor.mean": check_per_channel,
    "model.data_preprocessor.std": check_per_channel,
    "log_level": check_log_level,
}


def check_values(cfg: Config) -> Iterator[Finding]:
    """Find values of the wrong type or out of range."""
    for key, value in _flat(cfg):
        rule = next((RULES[name] for name in RULES if _matches(key, name)), None)
        if rule is None or value is None:
            continue
        try:
            rule(key, value)
        except UserError as error:
            yield Finding(key, str(error), "")


def _matches(key: str, pattern: str) -> bool:
    return key.count(".") == pattern.count(".") and fnmatchcase(key, pattern)


def check_normalisation(cfg: Config) -> Iterator[Finding]:
    """Find a mean and a standard deviation that are meant for pixel values of 0 to 1."""
    model = cfg.get("model")
    preprocessor = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    if not isinstance(preprocessor, Mapping):
        return
    sides = {name: preprocessor.get(name) for name in ("mean", "std")}
    lengths = {len(side) for side in sides.values() if isinstance(side, (list, tuple))}
    key = "model.data_preprocessor"
    if len(lengths) > 1:
        yield Finding(
            f"{key}.std",
            f"{key}: mean={sides['mean']} and std={sides['std']} have different lengths.",
            "Give one number per channel to each.",
        )
    std = sides["std"] if isinstance(sides["std"], (list, tuple)) else ()
    if std and all(isinstance(number, (int, float)) and 0 < number < 1 for number in std):
        yield Finding(
            f"{key}.std",
            f"{key}.std={std} is meant for pixel values of 0 to 1, but images have values of 0 to "
            "255.",
            "Multiply mean and std by 255.",
        )


def check_initialisation(cfg: Config) -> Iterator[Finding]:
    """Find an ``init_cfg`` without a type, which an option for one of its keys creates."""
    for key, value in _flat(cfg):
        is_filled = key.endswith(".init_cfg") and isinstance(value, Mapping) and value
        if is_filled and "type" not in value:
            yield Finding(
                f"{key}.type",
                f"{key} has no type.",
                f"Add {key}.type=Pretrained, or use pretrained=PATH for a backbone.",
            )


def check_workers(cfg: Config) -> Iterator[Finding]:
    """Warn of many more worker processes than cores."""
    cores = provenance.cores()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    for name in _loaders(cfg):
        workers = (cfg.get(name) or {}).get("num_workers") or 0
        if isinstance(workers, int) and workers * processes > max(16, 4 * cores):
            yield Finding(
                f"{name}.num_workers",
                f"{name}.num_workers={workers} starts {workers * processes} worker processes on "
                f"{counted(cores, 'core')}, which costs memory and time.",
                f"Set it to about {max(1, cores // processes)}.",
                "warning",
            )


def check_learning_rate(cfg: Config) -> Iterator[Finding]:
    """Warn of a learning rate of 0."""
    wrapper = cfg.get("optim_wrapper")
    optimizer = wrapper.get("optimizer") if isinstance(wrapper, Mapping) else None
    if isinstance(optimizer, Mapping) and optimizer.get("lr") == 0:
        yield Finding(
            "optim_wrapper.optimizer.lr",
            "optim_wrapper.optimizer.lr=0 changes no weight.",
            "Set it to a number above 0 to train.",
            "warning",
        )


def check_host(cfg: Config) -> Iterator[Finding]:
    """Find a default scope whose library is not installed."""
    import importlib.util

    scope = cfg.get("default_scope")
    if scope and scope != "mmengine" and importlib.util.find_spec(str(scope)) is None:
        yield Finding(
            "default_scope",
            f"default_scope={scope!r} names a library that is not installed.",
            f"Install {scope}, or correct the name.",
        )


def _loaders(cfg: Config) -> Iterable[str]:
    return [name for name in ("train_dataloader", "val_dataloader") if cfg.get(name)]
