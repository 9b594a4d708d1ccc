"""kNN accuracy of the backbone while it is being pre-trained."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mmengine.hooks import Hook

from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy
from gersp_mm.evaluation.features import read_parts
from gersp_mm.registry import HOOKS
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class KNNEvalHook(Hook):
    """Classify labelled images by their nearest neighbours every few epochs.

    The features are those of the student's backbone in eval mode. The result goes to the log and
    to every visualisation backend as ``knn_top1``, in per cent. All ranks share the work.

    Args:
        train: images that vote: a folder with one sub-folder a class, or a list of
            ``path label`` lines.
        test: images that are classified, likewise; numbered by the classes of ``train``.
        interval: epochs between two evaluations; the last epoch is always evaluated.
        k: number of neighbours that vote.
        temperature: T of their weights exp(similarity / T).
        size: side of the images in pixels.
        batch_size: images of one forward pass.
        num_workers: processes that decode images.
        limit: use at most this many images of either part, to save time.

    Raises:
        UserError: before the first step, when the images are not there.
    """

    priority = "LOW"

    def __init__(
        self,
        train: str,
        test: str,
        interval: int = 10,
        k: int = 20,
        temperature: float = 0.07,
        size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        limit: int | None = None,
    ) -> None:
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
        """Both parts, listed at their first use."""
        return read_parts(self.sources, self.size, limit=self.limit, refuse_shared=False)

    def before_train(self, runner: Any) -> None:
        """Make sure that the images are there."""
        counts = {part: len(images) for part, images in self.images.items()}
        runner.logger.info(f"kNN evaluation every {self.interval} epochs on {counts} images")

    def after_train_epoch(self, runner: Any) -> None:
        """Evaluate when it is time."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self.evaluate(runner)

    def evaluate(self, runner: Any) -> float:
        """Evaluate the model as it is and return the top-1 accuracy in per cent."""
        model = unwrap(runner.model)
        preprocessor = model.data_preprocessor
        features = [
            extract_features(
                model,
                images,
                mean=preprocessor.mean.flatten().tolist(),
                std=preprocessor.std.flatten().tolist(),
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                progress=f"kNN {part}",
            )
            for part, images in self.images.items()
        ]
        accuracy = knn_accuracy(*features[0], *features[1], k=self.k, temperature=self.temperature)
        runner.logger.info(f"kNN top-1 on {self.sources['test']}: {accuracy:.2f} %")
        runner.visualizer.add_scalar("knn_top1", accuracy, step=runner.iter + 1)
        return accuracy
