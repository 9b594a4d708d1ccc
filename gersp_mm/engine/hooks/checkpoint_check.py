"""Checks of a checkpoint before a run resumes from it, and before it is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop

from gersp_mm.checkpoints.compare import not_finite
from gersp_mm.checkpoints.find import ATTEMPT, RUN_ID, find_checkpoints
from gersp_mm.checkpoints.resume import optimizer_tensors, require_same_run
from gersp_mm.engine.precision import PRECISION, precision_of
from gersp_mm.engine.resumed_options import OptimizerChanges, OptionChanges
from gersp_mm.engine.runs import together
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.model import unwrap

EARLY_STOPPING = "early_stopping"  # key of a checkpoint: best value and patience by metric


@HOOKS.register_module()
class CheckpointCheckHook(Hook):
    """Refuse to resume another run's checkpoint, and to save weights that are not finite.

    Options that differ from those of the checkpoint are logged. Options of the optimizer and the
    schedule are applied after their states are loaded; options that cannot change are refused.

    Every checkpoint holds the id of its run in ``meta['run_id']``, which a resumed run keeps, and
    the number of earlier resumes in ``meta['attempt']``. The tools of this package add this
    hook to every run. A resumed run keeps the best value and the patience of each
    ``EarlyStoppingHook``.

    Raises:
        UserError: A run is resumed from a file whose model, optimizer, schedule or averaged model
            differs from the run's, or with an option that a resumed run cannot change; or the
            weights or the optimizer's state that would be saved hold NaN or infinity.
    """

    priority = "VERY_HIGH"  # before anything is loaded, averaged or exported
    run_id: str | None = None
    attempt = 0
    _options: OptionChanges | None = None
    _optimizers: OptimizerChanges | None = None
    _restarted: Sequence[str] = ()  # metrics whose EarlyStoppingHook lost its count

    def before_run(self, runner: Any) -> None:
        """Draw the id of the run, and note buffers that hold infinity by design, such as masks."""
        self.run_id = secrets.token_hex(6)
        self._infinite = set(not_finite(dict(unwrap(runner.model).named_buffers())))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare the checkpoint with the run, if the run is resumed."""
        if not runner._resume:
            return
        path = str(runner._load_from or "the checkpoint")
        options = OptionChanges.of_checkpoint(checkpoint.get("meta") or {}, runner.cfg)
        with together():  # all ranks read the same file
            if runner.rank == 0:
                options.refuse(path)
                require_same_run(
                    checkpoint,
                    path,
                    model=unwrap(runner.model),
                    optim_wrapper=runner.optim_wrapper,
                    schedulers=runner.param_schedulers,
                    averaged=averaged_model(runner),
                )
        self.run_id = checkpoint["meta"].get(RUN_ID)  # None in old checkpoints
        if runner.rank == 0:
            earlier, _ = find_checkpoints(os.path.dirname(path), runner.work_dir)
            own = [e.progress.attempt for e in earlier if e.progress.run_id == self.run_id]
            self.attempt = 1 + max([checkpoint["meta"].get(ATTEMPT) or 0, *own])
        stored = checkpoint.get(EARLY_STOPPING, {})
        self._restarted = []
        for hook in early_stopping_hooks(runner):
            if (state := stored.get(hook.monitor)) is None:
                self._restarted.append(hook.monitor)
            else:
                hook.best_score, hook.wait_count = state
        self._options = options
        self._optimizers = OptimizerChanges(
            checkpoint,
            runner.optim_wrapper,
            runner.param_schedulers,
            len(runner.train_dataloader),
        )

    def before_train(self, runner: Any) -> None:
        """Apply options that the loaded states have replaced, and log all that differ."""
        if self._options is None or self._optimizers is None:
            return
        self._optimizers.apply(runner.optim_wrapper, runner.param_schedulers)
        for title, options in (
            ("changed since the checkpoint, in effect from now on", self._options.in_effect),
            ("changed since the checkpoint, applied to its optimizer and schedule",
             self._options.applied),
        ):  # fmt: skip
            if options:
                runner.logger.info(f"{title}: {listed(options, 20)}")
        if self._restarted:
            runner.logger.warning(
                "EarlyStoppingHook starts counting again, because the checkpoint does not hold its "
                f"best value of {listed(self._restarted)}: the run may end later than without the "
                "interruption"
            )
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, whole = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        if done >= whole:
            unit = "epochs" if by_epoch else "iters"
            runner.logger.warning(
                f"nothing is left to train: {done} of {whole} {unit} are done. Raise "
                f"train_cfg.max_{unit} to continue"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the run's id and precision, and refuse weights or a state that are not finite."""
        if self.run_id is not None:
            checkpoint["meta"][RUN_ID] = self.run_id
        checkpoint["meta"][ATTEMPT] = self.attempt
        checkpoint["meta"][PRECISION] = precision_of(runner.optim_wrapper)
        if hooks := early_stopping_hooks(runner):
            checkpoint[EARLY_STOPPING] = {
                hook.monitor: (float(hook.best_score), hook.wait_count) for hook in hooks
            }
        tensors = dict(checkpoint["state_dict"])
        if "optimizer" in checkpoint:
            model = unwrap(runner.model)
            tensors |= optimizer_tensors(checkpoint["optimizer"], runner.optim_wrapper, model)
        averaged = averaged_model(runner)
        if averaged is not None:
            tensors |= {f"averaged {n}": tensor for n, tensor in averaged.state_dict().items()}
        broken = [name for name in not_finite(tensors) if name not in self._infinite]
        if broken:
            meta = checkpoint["meta"]
            how = getattr(runner, "to_continue", "with --resume")
            raise UserError(
                f"after epoch {meta['epoch']}, iteration {meta['iter']}, {listed(broken)} hold NaN "
                "or infinity, so neither a checkpoint nor an export was written. The files written "
                f"before are kept: run the same command {how} to continue, with a lower "
                "optim_wrapper.optimizer.lr or with optim_wrapper.clip_grad"
            )


def averaged_model(runner: Any) -> Any:
    """Return the averaged model of the run's ``EMAHook``, or None."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    return hooks[0].ema_model if hooks else None


def early_stopping_hooks(runner: Any) -> list[EarlyStoppingHook]:
    """Return the hooks that may end the run before its last epoch."""
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]
