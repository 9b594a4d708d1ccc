"""kNN accuracy of the backbone during pre-training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook, ParamSchedulerHook

from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.constants import KNN_K, KNN_TEMPERATURE
from gersp_mm.engine.preflight.findings import RULE
from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy
from gersp_mm.evaluation.features import read_parts
from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.model import unwrap

TRIED = 128  # images per part that are decoded before the first step


@HOOKS.register_module()
class KNNEvalHook(Hook):
    """Classify labelled images by their nearest neighbours every few epochs.

    The features are those of the student's backbone in eval mode. The result goes to the log and
    to every visualisation backend as ``knn_top1``, in per cent. All ranks share the work. The best
    checkpoint (``default_hooks.checkpoint.save_best='knn_top1'``), an ``EarlyStoppingHook`` and a
    ``ReduceOnPlateauLR`` can follow it.

    The evaluation follows the checkpoint of its epoch. A failed evaluation is reported on every
    rank, and training continues.

    Args:
        train: Voting images: a folder with one sub-folder per class, or a list of
            ``path label`` lines.
        test: Images to classify, in the same form and with the classes of ``train``.
        interval: Epochs between two evaluations, or -1; the last epoch is always evaluated.
        k: Number of neighbours that vote.
        temperature: T in the weights exp(similarity / T) of the votes.
        size: Side of the images in pixels.
        batch_size: Number of images in one forward pass.
        num_workers: Number of processes that decode images.
        limit: Greatest number of images of either part, to save time.

    Raises:
        UserError: Before the first step, when a number is of another type or outside its range,
            when the images do not exist, or when all examined images of a class are unreadable.
    """

    priority = "LOWEST"  # after the checkpoint hook
    metric_names = ("knn_top1",)

    def __init__(
        self,
        train: str,
        test: str,
        interval: int = 10,
        k: int = KNN_K,
        temperature: float = KNN_TEMPERATURE,
        size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        limit: int | None = None,
    ) -> None:
        check_number("KNNEvalHook: k", k, 1, whole=True, such_as=KNN_K)
        check_number("KNNEvalHook: size", size, 1, whole=True, such_as=224)
        check_number("KNNEvalHook: batch_size", batch_size, 1, whole=True, such_as=64)
        check_number("KNNEvalHook: num_workers", num_workers, 0, whole=True, such_as=0)
        check_number("KNNEvalHook: temperature", temperature, above=0, such_as=KNN_TEMPERATURE)
        if limit is not None:
            check_number("KNNEvalHook: limit", limit, 1, whole=True, such_as=1000)
        if interval != -1:
            check_number("KNNEvalHook: interval", interval, 1, whole=True, such_as=10)
        self.sources = dict(train=train, test=test)
        self.interval = interval
        self.k = k
        self.temperature = temperature
        self.size = size
        self.limit = limit
        self.batch_size = batch_size
        self.num_workers = num_workers

    @cached_property
    def images(self) -> dict[str, EvalImages]:
        """The voting and the classified images, listed at their first use."""
        try:
            return read_parts(self.sources, self.size, limit=self.limit, refuse_shared=False)
        except UserError as error:
            raise UserError(f"KNNEvalHook: {error}") from error

    def before_train(self, runner: Any) -> None:
        """List the images, and leave out unreadable images of a sample."""
        loader = getattr(runner, "train_dataloader", None)
        source = getattr(getattr(loader, "dataset", None), "remote_sensing", None)
        for images in self.images.values():
            images.pixel_scale = getattr(source, "pixel_scale", None)  # None for photographs
            _leave_out_unreadable(images)
        counts = {part: len(images) for part, images in self.images.items()}
        runner.logger.info(f"kNN evaluation every {self.interval} epochs on {counts} images")

    def after_train_epoch(self, runner: Any) -> None:
        """Evaluate after every ``interval``-th epoch and after the last."""
        if not (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)):
            return
        try:
            accuracy = self.evaluate(runner)
        except Exception as error:
            runner.logger.warning(
                f"\n{RULE}\n  The kNN evaluation after epoch {runner.epoch + 1} failed and has no "
                f"result; training continues.\n  {type(error).__name__}: {error}\n{RULE}",
                exc_info=not isinstance(error, UserError),
            )
            return
        _tell(runner, dict(knn_top1=accuracy))

    def evaluate(self, runner: Any) -> float:
        """Return the top-1 accuracy of the model, or of its averaged weights, in per cent."""
        model = unwrap(runner.model)
        scale = Normalisation.of(model.data_preprocessor)
        if scale is None:
            raise UserError("model.data_preprocessor does not normalise. Give it mean and std.")
        with _averaged_weights(runner):
            features = [
                extract_features(
                    model,
                    images,
                    mean=scale.mean,
                    std=scale.std,
                    batch_size=self.batch_size,
                    num_workers=self.num_workers,
                    progress=f"kNN {part}",
                )
                for part, images in self.images.items()
            ]
        accuracy = knn_accuracy(*features[0], *features[1], k=self.k, temperature=self.temperature)
        runner.logger.info(f"kNN top-1 on {self.sources['test']}: {accuracy:.2f} %")
        runner.visualizer.add_scalar("knn_top1", accuracy, step=runner.iter)  # iterations done
        return accuracy


def _tell(runner: Any, metrics: dict[str, float]) -> None:
    """Pass the result to the hooks that act on metrics, as MMEngine does after a validation.

    Other hooks are left out, because ``EMAHook`` would swap the weights.
    """
    steered = (CheckpointHook, EarlyStoppingHook, ParamSchedulerHook)
    hooks = [hook for hook in runner.hooks if isinstance(hook, steered)]
    runner.train_loop._epoch += 1  # MMEngine counts an epoch before its validation.
    try:
        for hook in hooks:
            hook.after_val_epoch(runner, metrics=metrics)
    finally:
        runner.train_loop._epoch -= 1


@contextlib.contextmanager
def _averaged_weights(runner: Any) -> Iterator[None]:
    """Put the averaged weights of an ``EMAHook`` into the model inside the context."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    for hook in hooks:
        hook.before_val_epoch(runner)
    try:
        yield
    finally:
        for hook in hooks:
            hook.after_val_epoch(runner)


def _leave_out_unreadable(images: EvalImages) -> None:
    """Decode evenly spread images, and leave out those that are unreadable."""
    unreadable = {}
    for index in range(0, len(images), max(len(images) // TRIED, 1)):
        try:
            load_rgb(images.samples[index][0], scale=images.pixel_scale)
        except BadImageError as error:
            unreadable[index] = str(error)
    images.leave_out(unreadable)
