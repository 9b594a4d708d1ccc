"""Training loops by epoch and by iteration that can stop at any step and resume exactly."""

from __future__ import annotations

import abc
import bisect
import os
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.utils import calc_dynamic_intervals

from gersp_mm.datasets.seeded import (
    SeededBatches,
    find_private_randomness,
    seed_samples,
    set_epoch,
)
from gersp_mm.engine.hooks.checkpoint import ATOMIC_BACKEND
from gersp_mm.engine.hooks.checkpoint_check import early_stopping_hooks
from gersp_mm.engine.hooks.rng_state import RNGStateHook
from gersp_mm.engine.signals import StopRequest, held_back
from gersp_mm.registry import LOOPS
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.model import unwrap

# Parts of models whose state no checkpoint holds.
FORGETFUL = {
    "BatchSyncRandomResize": "BatchSyncRandomResize forgets its size until it draws the next",
    "DynamicRoIHead": "DynamicRoIHead forgets its thresholds until it computes the next",
}


class _Resumable(BaseLoop):
    """Common parts of both loops: signals, seeds of samples, and skipping batches on resume."""

    runner: Runner
    _epoch: int
    _iter: int
    _batches: SeededBatches | None

    def _prepare(self) -> None:
        """Seed the samples of the data loader and the steps."""
        loader = self.dataloader
        if loader.batch_sampler is not None and len(loader) == 0:
            pairs = len(loader.sampler) * get_world_size()
            batch = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
            raise UserError(
                f"an epoch has no iteration, because {pairs} samples do not fill a batch of "
                f"{batch * get_world_size()} ({batch} per process). Lower "
                "train_dataloader.batch_size or add images."
            )
        self._batches = seed_samples(loader)
        if not any(isinstance(hook, RNGStateHook) for hook in self.runner.hooks):
            self.runner.register_hook(RNGStateHook())

    def run(self) -> torch.nn.Module:
        """Train and handle signals; return the model."""
        runner = self.runner
        self._keep_sampler_seed()
        self._warn_of_inexact_resume()
        self._stop = StopRequest(runner.logger.warning)
        loaders = [self.dataloader]
        if runner.val_loop is not None:
            loaders.append(runner.val_loop.dataloader)
            self._leave_evaluations()
        for loader in loaders:
            self._stop.protect_workers(loader)
        with self._stop.listening():
            runner.call_hook("before_train")
            due = runner.message_hub.get_info("evaluation_due", False)
            if due and runner.val_loop is not None:
                self._evaluate()
            try:
                self._train()
            except Exception:
                if self._stop.number and runner.rank:  # Rank 0 has saved and exited.
                    raise SystemExit(128 + self._stop.number) from None
                raise
            runner.call_hook("after_train")
        return runner.model

    @abc.abstractmethod
    def _train(self) -> None:
        """Run all remaining epochs or iterations, with their evaluations."""

    def _start(self, done: int) -> Iterator[Any]:
        """Return an iterator over the batches of one pass.

        Args:
            done: Number of batches that are skipped without reading their images.
        """
        if self._batches is not None:
            self._batches.begin(self.runner.seed, self._pass, done)
        with held_back():
            return iter(self.dataloader)

    @property
    @abc.abstractmethod
    def _pass(self) -> int:
        """Number of the pass over the data, on which the random numbers of the samples depend."""

    def _evaluation_due(self, done: int, last: int) -> bool:
        """Return whether to evaluate after epoch or iteration ``done`` of ``last``."""
        step = bisect.bisect(self.dynamic_milestones, done + 1)
        self.val_interval = self.dynamic_intervals[step - 1]
        due = done % self.val_interval == 0 or done == last
        return self.runner.val_loop is not None and done >= self.val_begin and due

    def _evaluate(self) -> None:
        self._note_evaluation(False)
        try:
            self.runner.val_loop.run()
        except _EvaluationLeft:
            self._note_evaluation(True)
            self._stop.leave(self._save)
        self._stop_between_steps()

    def _note_evaluation_to_come(self, due: bool) -> None:
        """Let a run that resumes from the checkpoint written next begin with its evaluation.

        The checkpoint precedes the evaluation, which an ``EarlyStoppingHook`` has to count.
        """
        if early_stopping_hooks(self.runner):
            self._note_evaluation(due)

    def _note_evaluation(self, due: bool) -> None:
        self.runner.message_hub.update_info("evaluation_due", due)

    def _leave_evaluations(self) -> None:
        """Let a signal end an evaluation, which the resumed run then repeats.

        With an ``EMAHook``, the model holds the averaged weights during the evaluation, so that
        it cannot be saved before the end of the evaluation.
        """
        if not any(isinstance(hook, EMAHook) for hook in self.runner.hooks):
            self.runner.register_hook(_LeaveEvaluation(self), priority="LOWEST")

    def _stop_if_asked(self, evaluation_due: bool = False) -> None:
        """Save and exit if a signal arrived; called after every iteration."""
        if self.runner.optim_wrapper.should_update() and self._stop.due():
            self._note_evaluation(evaluation_due)
            self._stop.leave(self._save)

    def _stop_between_steps(self) -> None:
        """Save and exit outside a step, where several ranks could not agree on the moment."""
        if get_world_size() == 1:
            self._stop_if_asked()

    def _save(self) -> None:
        runner = self.runner
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        folder, backend = runner.work_dir, dict(backend=ATOMIC_BACKEND)
        if hook is not None and hook.out_dir:
            folder = hook.out_dir
            backend = hook.backend_args if "://" in folder else backend
        name = f"iter_{self._iter}.pth"
        runner.save_checkpoint(
            folder,
            name,
            meta=dict(epoch=self._epoch, iter=self._iter),
            by_epoch=False,
            backend_args=backend,
        )
        how = getattr(runner, "to_continue", "with --resume")
        runner.logger.warning(
            f"saved {os.path.join(folder, name)}; run the same command {how} to continue"
        )

    def _keep_sampler_seed(self) -> None:
        """Keep the order of the data in a resumed run, even if no seed is configured."""
        loader, hub = self.dataloader, self.runner.message_hub
        sampler = loader.sampler
        if not hasattr(sampler, "seed"):  # A batch sampler may hold the run's sampler.
            sampler = getattr(loader.batch_sampler, "sampler", None)
        if hasattr(sampler, "seed"):
            sampler.seed = hub.get_info("sampler_seed", sampler.seed)
            hub.update_info("sampler_seed", sampler.seed)

    def _warn_of_inexact_resume(self) -> None:
        found = find_private_randomness(self.dataloader.dataset)
        kinds = {type(module).__name__ for module in unwrap(self.runner.model).modules()}
        found += [text for name, text in FORGETFUL.items() if name in kinds]
        if self._batches is None:
            found.append("the data loader has no batch sampler")
        if found:
            self.runner.logger.warning(
                f"a resumed run will not exactly equal the uninterrupted run: {listed(found)}"
            )


class _EvaluationLeft(Exception):
    pass


class _LeaveEvaluation(Hook):
    def __init__(self, loop: _Resumable) -> None:
        self.loop = loop

    def after_val_iter(self, *args: Any, **kwargs: Any) -> None:
        if self.loop._stop.arrived():
            raise _EvaluationLeft


@LOOPS.register_module()
class ResumableTrainLoop(_Resumable, EpochBasedTrainLoop):
    """MMEngine's epoch loop, made safe to interrupt and exact to resume.

    After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 the run finishes the current optimizer step, writes
    ``iter_<n>.pth`` and exits. A second Ctrl-C, at least a second later, ends it at once.
    A checkpoint from the middle of an epoch resumes with the next batch of that epoch, without
    reading the images before it.

    The random numbers of a sample depend only on the run's seed, the epoch, the sample's place in
    the epoch and the rank; those of a step depend on the seed, the iteration and the rank.

    Raises:
        UserError: An epoch has no iteration, or a checkpoint from the middle of an epoch is
            resumed with epochs of another length (another batch size, number of GPUs or data set).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    @property
    def _pass(self) -> int:
        return self._epoch

    def run(self) -> torch.nn.Module:
        """Train and handle signals; return the model."""
        self._check_epoch_length()
        return super().run()

    def _train(self) -> None:
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            if self._evaluation_due(self._epoch, self._max_epochs):
                self._evaluate()

    def run_epoch(self) -> None:
        """Run the rest of the current epoch."""
        self._stop_between_steps()
        done = self._iter - self._epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for idx, data_batch in enumerate(self._start(done), start=done):
            self.run_iter(idx, data_batch)
            self._stop_if_asked()
        done = self._epoch + 1
        self._note_evaluation_to_come(self._evaluation_due(done, self._max_epochs))
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _check_epoch_length(self) -> None:
        """Compare the length of an epoch with that of the run that is resumed, and note it."""
        now = len(self.dataloader)
        hub = self.runner.message_hub
        before = hub.get_info("iters_per_epoch", now)
        done = self._iter - self._epoch * before
        if before != now and done:
            raise UserError(
                f"the checkpoint is {done} iterations into an epoch of {before}, but an epoch now "
                f"has {now}. Resume with the batch size, number of processes and data of the "
                "first run, or from a checkpoint written at the end of an epoch."
            )
        if before != now:
            self.runner.logger.warning(
                f"an epoch had {before} iterations before and has {now} now. The run continues at "
                f"epoch {self._epoch}, but not as it would without the interruption."
            )
            self._iter = self._epoch * now
            self.runner.optim_wrapper.initialize_count_status(
                self.runner.model, self._iter, self._max_iters
            )
        if done and self._batches is None:
            raise UserError(
                f"the checkpoint is {done} iterations into an epoch, which a data loader without "
                "batches cannot continue. Use a checkpoint written at the end of an epoch."
            )
        hub.update_info("iters_per_epoch", now)


@LOOPS.register_module()
class ResumableIterTrainLoop(_Resumable, IterBasedTrainLoop):
    """MMEngine's loop by iteration, safe to interrupt and exact to resume.

    See :class:`ResumableTrainLoop` for signals and random numbers.

    Args:
        runner: The run.
        dataloader: A data loader or its config.
        max_iters: Number of iterations of the run.
        val_begin: First iteration that may be evaluated.
        val_interval: Iterations between two evaluations.
        dynamic_intervals: Pairs of an iteration and the interval from there on.

    Raises:
        UserError: The data do not fill a batch.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        # In some releases, MMEngine's own __init__ already starts the workers.
        BaseLoop.__init__(self, runner, dataloader)
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._epoch = self._iter = 0
        self.val_begin, self.val_interval = val_begin, val_interval
        self.stop_training = False  # set by EarlyStoppingHook
        metainfo = getattr(self.dataloader.dataset, "metainfo", None)
        runner.visualizer.dataset_meta = metainfo
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(
            val_interval, dynamic_intervals
        )
        self._passes = 0
        self._prepare()

    @property
    def _pass(self) -> int:
        return self._passes

    def _train(self) -> None:
        self.runner.call_hook("before_train_epoch")
        batches = self._endless()
        self._stop_between_steps()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            due = self._evaluation_due(self._iter + 1, self._max_iters)
            self._note_evaluation_to_come(due)
            self.run_iter(next(batches))
            self._stop_if_asked(evaluation_due=due)
            if due:
                self._evaluate()
        self.runner.call_hook("after_train_epoch")

    def _endless(self) -> Iterator[Any]:
        """Yield the batches of all passes from the current iteration on."""
        done = self._iter
        if self._batches is not None:
            self._passes, done = self._batches.locate(done)
        while True:
            set_epoch(self._passes, self.dataloader.batch_sampler, self.dataloader.sampler)
            yield from self._start(done)
            self._passes, done = self._passes + 1, 0


def make_resumable(runner: Runner) -> None:
    """Replace MMEngine's training loop of a run by the resumable one, without changing its config.

    Args:
        runner: A run that has not started.
    """
    options = getattr(runner, "_train_loop", None)
    if not isinstance(options, dict):
        return
    given = options.get("type")
    if given is None:
        given = "EpochBasedTrainLoop" if options.get("by_epoch", True) else "IterBasedTrainLoop"
    kind = LOOPS.get(given) if isinstance(given, str) else given
    own = {EpochBasedTrainLoop: ResumableTrainLoop, IterBasedTrainLoop: ResumableIterTrainLoop}
    if kind in own:
        left_out = ("type", "by_epoch", "fast_forward_on_resume")
        rest = {name: value for name, value in options.items() if name not in left_out}
        runner._train_loop = dict(rest, type=f"gersp_mm.{own[kind].__name__}")
        runner.logger.info(
            f"the training loop is gersp_mm.{own[kind].__name__}: signals save a checkpoint, and "
            "random numbers depend on the seed and the iteration, so that a resumed run is exact"
        )
    elif kind is not None and not issubclass(kind, _Resumable):
        runner.logger.warning(
            f"train_cfg.type={given!r} is none of MMEngine's loops: signals do not save a "
            "checkpoint, and a resumed run will not exactly equal the uninterrupted run"
        )
