"""Checks that a checkpoint belongs to a run, before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict

from gersp_mm.checkpoints.compare import compare, not_finite
from gersp_mm.checkpoints.read import config_values
from gersp_mm.utils.errors import UserError, counted, listed

# Parts that a training checkpoint has and a file of weights lacks.
TRAINING_PARTS = ("state_dict", "optimizer", "message_hub")
# Options that distinguish kinds of optimizers. Others depend on PyTorch's version.
OPTIMIZER_OPTIONS = {"momentum", "betas", "alpha", "rho", "lr_decay", "lambd", "etas"}
# Entries of an optimizer's state that have the shape of their parameter.
PARAMETER_SHAPED = {
    "momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg",
    "grad_avg", "sum", "acc_delta", "ax", "prev", "step_size",
}  # fmt: skip


def require_training_state(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuse a file that only holds weights, from which a training cannot be resumed.

    Args:
        checkpoint: Content of the file.
        path: Name of the file in the message.

    Raises:
        UserError: The optimizer, the log or the epoch and iteration are missing.
    """
    meta = checkpoint.get("meta")
    counted = isinstance(meta, Mapping) and all(
        isinstance(meta.get(name), int) for name in ("epoch", "iter")
    )
    missing = [name for name in TRAINING_PARTS if name not in checkpoint]
    missing += [] if counted else ["meta with epoch and iter"]
    if missing:
        raise UserError(
            f"{path} cannot be resumed, because it is not a checkpoint of a training: it holds no "
            f"{listed(missing)}. Start a new run from its weights with --cfg-options "
            f"pretrained={path} (an exported backbone) or load_from={path} (a whole model)"
        )


def require_same_run(
    checkpoint: Mapping[str, Any],
    path: str,
    *,
    model: torch.nn.Module,
    optim_wrapper: Any,
    schedulers: Any = None,
    averaged: torch.nn.Module | None = None,
) -> None:
    """Refuse a checkpoint whose model, optimizer or schedule differs from the run's.

    PyTorch's fused optimizers read and write past the end of a state of another shape, so this
    comparison has to come before ``load_state_dict``.

    Args:
        checkpoint: Content of a training checkpoint, before anything of it is loaded.
        path: Name of the file in the message.
        model: The model without wrappers.
        optim_wrapper: An ``OptimWrapper`` or ``OptimWrapperDict`` of MMEngine.
        schedulers: Parameter schedulers of the run: a list, or a dict of lists, or None.
        averaged: The averaged model of an ``EMAHook``, or None.

    Raises:
        UserError: Names, shapes, types or numbers differ, of which the message lists all, or the
            weights hold NaN or infinity.
    """
    require_training_state(checkpoint, path)
    parts = {
        "model": _compare_model(checkpoint, model),
        "optimizer": _compare_optimizers(checkpoint["optimizer"], optim_wrapper, model),
        "param_scheduler": _compare_schedulers(checkpoint, schedulers),
        "averaged model": _compare_averaged(checkpoint.get("ema_state_dict"), averaged),
    }
    different = [f"{part}: {'; '.join(found)}" for part, found in parts.items() if found]
    if different:
        raise UserError(
            f"{path} is of another run than this config describes, so nothing of it was loaded. "
            f"{'. '.join(different)}. Resume with the config of the first run, or start a new run "
            f"in a new work directory from the backbone alone, with --cfg-options pretrained={path}"
        )
    broken = not_finite(_tensors(checkpoint["state_dict"]))
    broken = [name for name in broken if name not in not_finite(dict(model.named_buffers()))]
    if broken:
        raise UserError(
            f"{path} holds NaN or infinity in {listed(broken)}, so nothing of it was loaded. "
            "Resume from an earlier checkpoint with --resume PATH, with a lower learning rate"
        )


def optimizer_tensors(
    state: Mapping[str, Any], optim_wrapper: Any, model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """Return the tensors of an optimizer's state as ``<parameter>.<name>``.

    Args:
        state: ``state_dict`` of the optimizer wrapper, with the groups of ``optim_wrapper``.
        optim_wrapper: An ``OptimWrapper`` or ``OptimWrapperDict`` of MMEngine.
        model: The model without wrappers, which names the parameters.
    """
    return {
        f"{name}.{key}": value
        for part, optimizer in states_of_optimizers(state, optim_wrapper)
        for name, _, entry in _states(part, optimizer, model)
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }


def _compare_model(checkpoint: Mapping[str, Any], model: torch.nn.Module) -> list[str]:
    given, own = _tensors(checkpoint["state_dict"]), _tensors(model.state_dict())
    found = compare(given, own, types=True).sentences()
    gradients = _tensors(checkpoint.get("gradients") or {})
    parameters = dict(model.named_parameters())
    accumulated = compare(gradients, parameters, optional=parameters.keys())
    return found + [f"accumulated gradients, {text}" for text in accumulated.sentences()]


def _compare_optimizers(
    state: Mapping[str, Any], optim_wrapper: Any, model: torch.nn.Module
) -> list[str]:
    if isinstance(optim_wrapper, OptimWrapperDict):
        given, own = sorted(state), sorted(optim_wrapper.keys())
        if given != own:
            return [f"optimizers {listed(given)} instead of {listed(own)}"]
    pairs = states_of_optimizers(state, optim_wrapper)
    return [text for part, own in pairs for text in _compare_optimizer(part, own, model)]


def _compare_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> list[str]:
    groups, own = state.get("param_groups", []), optimizer.param_groups
    counts = [[len(group["params"]) for group in side] for side in (groups, own)]
    if counts[0] != counts[1]:
        texts = [
            f"{counted(sum(sizes), 'parameter')} in {counted(len(sizes), 'group')}"
            for sizes in counts
        ]
        if texts[0] == texts[1]:
            texts = [f"{text} ({listed(sizes)})" for text, sizes in zip(texts, counts)]
        return [f"{texts[0]} instead of {texts[1]}"]
    for given, mine in zip(groups, own):
        kinds = [sorted(OPTIMIZER_OPTIONS & side.keys()) for side in (given, mine)]
        if kinds[0] != kinds[1]:
            return [
                f"one with the options {listed(kinds[0])} instead of "
                f"{type(optimizer).__name__} with {listed(kinds[1])}"
            ]
    stored: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    for name, parameter, entry in _states(state, optimizer, model):
        for key in PARAMETER_SHAPED & entry.keys():
            if isinstance(entry[key], torch.Tensor):
                stored[f"{name}.{key}"], expected[f"{name}.{key}"] = entry[key], parameter
    return compare(stored, expected).sentences()


def _compare_schedulers(checkpoint: Mapping[str, Any], own: Any) -> list[str]:
    flat = flat_schedulers(checkpoint.get("param_schedulers"))
    mine = flat_schedulers(own)
    if len(flat) != len(mine):
        return [f"{counted(len(flat), 'scheduler')} instead of {len(mine)}"]
    configs = config_values(checkpoint["meta"].get("cfg")).get("param_scheduler")
    known: list[Any] = configs if isinstance(configs, list) and len(configs) == len(flat) else []
    found = []
    for number, (state, scheduler, config) in enumerate(zip(flat, mine, known or flat)):
        names = [_public(side) for side in (state, scheduler.state_dict())]
        if names[0] != names[1] or state.get("param_name") != scheduler.param_name:
            kind = config.get("type") if known and isinstance(config, Mapping) else None
            kind = kind if isinstance(kind, str) else "scheduler of another type"
            found.append(
                f"param_scheduler.{number} is a {kind} of {state.get('param_name')} instead of a "
                f"{type(scheduler).__name__} of {scheduler.param_name}"
            )
    return found


def _compare_averaged(given: Any, averaged: torch.nn.Module | None) -> list[str]:
    if given is None or averaged is None:
        if (given is None) == (averaged is None):
            return []
        return [f"{'none' if given is None else 'one'} instead of "
                f"{'none' if averaged is None else 'the one of EMAHook'}"]  # fmt: skip
    return compare(_tensors(given), _tensors(averaged.state_dict()), types=True).sentences()


def states_of_optimizers(
    state: Mapping[str, Any], optim_wrapper: Any
) -> list[tuple[Mapping[str, Any], torch.optim.Optimizer]]:
    """Return pairs of an optimizer's state and the optimizer, for each one in a wrapper."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        return [(state[name], wrapper.optimizer) for name, wrapper in optim_wrapper.items()]
    return [(state, optim_wrapper.optimizer)]


def _states(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> Iterator[tuple[str, torch.nn.Parameter, Mapping[str, Any]]]:
    """Yield the name, the parameter and the state of each parameter of an optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, own):
        name = names.get(id(parameter), f"parameter {number}")
        yield name, parameter, state["state"].get(number) or {}


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def flat_schedulers(schedulers: Any) -> list[Any]:
    """Return schedulers, or their states, as one list, sorted by optimizer if there are several."""
    if isinstance(schedulers, Mapping):
        return [entry for name in sorted(schedulers) for entry in schedulers[name]]
    return list(schedulers or [])


def _public(state: Mapping[str, Any]) -> set[str]:
    return {name for name in state if not name.startswith("_") and name != "verbose"}
