"""Options of a resumed run that differ from those of its checkpoint."""

from __future__ import annotations

import os.path as osp
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapperDict
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler

from gersp_mm.checkpoints.read import UNREAD, config_values
from gersp_mm.checkpoints.resume import flat_schedulers, states_of_optimizers
from gersp_mm.engine.config import NOT_GIVEN
from gersp_mm.engine.options import plain_leaves
from gersp_mm.utils.errors import UserError, listed

# Options that are applied to the optimizer and the schedule after their states were loaded.
APPLIED = ("auto_scale_lr.*", "optim_wrapper.optimizer.*", "optim_wrapper.paramwise_cfg.*",
           "param_scheduler", "param_scheduler.*")  # fmt: skip
# Options that a resumed run cannot change.
FIXED = ("*.init_cfg.*", "optim_wrapper.optimizer.amsgrad", "optim_wrapper.optimizer.foreach",
         "optim_wrapper.optimizer.fused", "optim_wrapper.optimizer.type", "pretrained",
         "randomness.diff_rank_seed", "randomness.seed",
         "train_dataloader.sampler.seed")  # fmt: skip
# Options that concern the start of a run, which are logged elsewhere.
SILENT = ("launcher", "load_from", "local_rank", "resume")
NOTHING = object()
UNSET = (None, NOTHING)
# Options of the computation of a step, which belong to the optimizer's state.
IMPLEMENTATION = {"params", "fused", "foreach", "capturable", "differentiable"}
STEPS = {"last_step", "verbose"}  # Every scheduler has these besides its options.


class OptionChanges:
    """Options of a resumed run that differ from those of its checkpoint, in three lists.

    Attributes:
        in_effect: Options that take effect because the run is built from them.
        applied: Options that the states of the checkpoint replace, so that they are applied after
            the states are loaded.
        refused: Options that a resumed run cannot change.
    """

    def __init__(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        self.in_effect: list[str] = []
        self.applied: list[str] = []
        self.refused: list[str] = []
        sides = [dict(plain_leaves(side)) for side in (before, now)]
        for key in sorted({**sides[0], **sides[1]}):
            old, new = (side.get(key, NOTHING) for side in sides)
            if old == new or key in SILENT or (old in UNSET and new in UNSET):
                continue
            if any(_is_unread(key, side) for side in sides):
                continue
            text = f"{key}={_shown(new)} (was {_shown(old)})"
            if _matches(key, FIXED):
                if new not in (NOTHING, NOT_GIVEN) and not _is_kept(key, old, new):
                    self.refused.append(text)
            elif _matches(key, APPLIED):
                self.applied.append(text)
            else:
                self.in_effect.append(text)

    @classmethod
    def of_checkpoint(
        cls, meta: Mapping[str, Any], now: Mapping[str, Any] | Config
    ) -> OptionChanges:
        """Compare the config in a checkpoint's ``meta`` with that of the run."""
        before = config_values(meta.get("cfg"))
        values = now._cfg_dict if isinstance(now, Config) else now
        return cls(before, values) if before else cls({}, {})

    def refuse(self, path: str) -> None:
        """Refuse options that a resumed run cannot change.

        Args:
            path: Path of the checkpoint.

        Raises:
            UserError: There is such an option; the message names all of them.
        """
        if self.refused:
            raise UserError(
                f"{path}: a resumed run cannot change {listed(self.refused)}. Leave "
                f"{'it' if len(self.refused) == 1 else 'them'} as before, or start a new run from "
                f"the weights in a new work directory, with --cfg-options load_from={path}"
            )


class OptimizerChanges:
    """Options of optimizers and schedules that the states of a checkpoint would replace.

    Schedules that differ are replayed up to the step of the checkpoint: the learning rate of each
    group becomes the one of a run that had these options from the start.

    Args:
        checkpoint: Content of the file before any of it is loaded.
        optim_wrapper: The optimizer wrapper, as built from the config.
        schedulers: The schedulers, as built from the config: a list, a dict of lists, or None. They
            are stepped.
        epoch_length: Iterations of an epoch.

    Raises:
        UserError: A schedule that follows a metric differs.
    """

    def __init__(
        self,
        checkpoint: Mapping[str, Any],
        optim_wrapper: Any,
        schedulers: Any,
        epoch_length: int,
    ) -> None:
        pairs = states_of_optimizers(checkpoint["optimizer"], optim_wrapper)
        stored = flat_schedulers(checkpoint.get("param_schedulers"))
        own = flat_schedulers(schedulers)
        self._groups: list[tuple[int, int, dict[str, Any]]] = []
        self._schedules: list[dict[str, Any]] = []
        scheduled = {scheduler.param_name for scheduler in own}
        for scheduler, state in zip(own, stored):
            if _options(scheduler) != _options_of_state(scheduler, state):
                self._replay(own, stored, checkpoint, epoch_length)
                break
        kept = set() if self._schedules else scheduled | {f"initial_{name}" for name in scheduled}
        for number, (state, optimizer) in enumerate(pairs):
            for place, (group, loaded) in enumerate(
                zip(optimizer.param_groups, state["param_groups"])
            ):
                names = (group.keys() & loaded.keys()) - IMPLEMENTATION - kept
                changed = {n: group[n] for n in names if not _same(group[n], loaded[n])}
                if changed:
                    self._groups.append((number, place, changed))

    def _replay(
        self, own: list[Any], stored: list[Any], checkpoint: Mapping[str, Any], length: int
    ) -> None:
        if any(isinstance(scheduler, ReduceOnPlateauParamScheduler) for scheduler in own):
            raise UserError(
                "a resumed run cannot change the options of a schedule that follows a metric "
                "(ReduceOnPlateau), because its learning rate depends on past metrics. Resume with "
                "the param_scheduler and the learning rate of the first run"
            )
        hub = checkpoint.get("message_hub") or {}
        before = (hub.get("runtime_info") or {}).get("iters_per_epoch", length)
        steps = [
            state["_global_step"] if scheduler.by_epoch
            else round(state["_global_step"] * length / before)
            for scheduler, state in zip(own, stored)
        ]  # fmt: skip
        by_iter = max((n for n, s in zip(steps, own) if not s.by_epoch), default=0)
        by_epoch = max((n for n, s in zip(steps, own) if s.by_epoch), default=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns without steps of the optimizer.
            for iteration in range(1, max(by_iter, by_epoch * length if by_iter else 0) + 1):
                for scheduler, wanted in zip(own, steps):
                    if not scheduler.by_epoch and scheduler._global_step < wanted:
                        scheduler.step()
                if iteration % length == 0:
                    _step_epoch(own, steps)
            for _ in range(0 if by_iter else by_epoch):
                _step_epoch(own, steps)
        self._schedules = [dict(scheduler.state_dict()) for scheduler in own]

    def apply(self, optim_wrapper: Any, schedulers: Any) -> None:
        """Replace the loaded options by those of the run."""
        several = isinstance(optim_wrapper, OptimWrapperDict)
        wrappers = list(optim_wrapper.values()) if several else [optim_wrapper]
        for number, place, changed in self._groups:
            wrappers[number].optimizer.param_groups[place].update(changed)
        for scheduler, state in zip(flat_schedulers(schedulers), self._schedules):
            scheduler.load_state_dict(state)


def _step_epoch(schedulers: list[Any], steps: list[int]) -> None:
    for scheduler, wanted in zip(schedulers, steps):
        if scheduler.by_epoch and scheduler._global_step < wanted:
            scheduler.step()


def _options(scheduler: Any) -> dict[str, Any]:
    return _options_of_state(scheduler, scheduler.state_dict())


def _options_of_state(scheduler: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a scheduler without its progress."""
    names = {name for name in state if not name.startswith("_")} - STEPS
    if isinstance(scheduler, ReduceOnPlateauParamScheduler):
        names -= {"best", "num_bad_epochs", "cooldown_counter", "mode_worse", "rule_worse"}
    return {name: state[name] for name in names & scheduler.state_dict().keys()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list(a) == list(b)
    return bool(a == b)


def _is_unread(key: str, side: Mapping[str, Any]) -> bool:
    """Return whether a value, or a section around it, is not plain data on one side."""
    names = key.split(".")
    return any(side.get(".".join(names[:n])) is UNREAD for n in range(1, len(names) + 1))


def _is_kept(key: str, old: Any, new: Any) -> bool:
    """Return whether a changed value is allowed, because a resumed run does not read its file."""
    if ".init_cfg." in key and old is NOTHING:
        return not key.endswith(".checkpoint")
    moved = isinstance(old, str) and isinstance(new, str)
    return moved and osp.basename(old) == osp.basename(new)


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shown(value: Any) -> str:
    return "not set" if value is NOTHING else str(value).replace(" ", "")
