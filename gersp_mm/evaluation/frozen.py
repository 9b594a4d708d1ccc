"""kNN and few-shot evaluation of a downstream config's frozen backbone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATASETS
from mmengine.runner import BaseLoop
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from gersp_mm.backbones.normalisation import Normalisation
from gersp_mm.constants import CHANNEL_ORDER, FEW_SHOT_DRAWS, KNN_K, KNN_TEMPERATURE
from gersp_mm.evaluation.features import extract_features
from gersp_mm.evaluation.few_shot import few_shot_predictions, mean_and_std
from gersp_mm.evaluation.knn import knn_predict
from gersp_mm.registry import LOOPS
from gersp_mm.utils.errors import UserError, check_number, listed
from gersp_mm.utils.model import unwrap

OPTIONS = {"knn": ("k", "temperature"), "fewshot": ("shots", "draws")}


@LOOPS.register_module()
class FrozenFeaturesLoop(BaseLoop):
    """Classify the test images by the frozen features of training images, without training.

    The backbone starts from its ``init_cfg``. Training images go through the test pipeline. The
    config's ``test_evaluator`` computes the metrics, which get a prefix: ``knn/accuracy/top1``,
    ``fewshot_5/accuracy/top1`` (the mean over the draws) and ``fewshot_5/accuracy/top1_std``.

    Args:
        runner: Runner of a classification config of mmpretrain.
        dataloader: Data loader of the test images.
        evaluator: Metrics that take ``pred_label`` and ``gt_label``.
        train_ann_file: List of the training images, which replaces the test set's ``ann_file``.
        knn: ``k`` and ``temperature`` of :func:`gersp_mm.evaluation.knn_predict`, or None.
        fewshot: ``shots``, the number of images per class, and ``draws``, the number of random
            subsets of :func:`gersp_mm.datasets.splits.few_shot`; or None. The classifier is that of
            :mod:`gersp_mm.evaluation.few_shot`.

    Raises:
        UserError: Neither ``knn`` nor ``fewshot`` is given, or one of them has an unknown option.
    """

    starts_from_pretrained = True  # read by PretrainedCheckHook

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Any,
        train_ann_file: str,
        knn: dict | None = None,
        fewshot: dict | None = None,
    ) -> None:
        if not knn and not fewshot:
            raise UserError(
                "test_cfg names neither knn nor fewshot. Add one to evaluate the features."
            )
        for name, options in (("knn", knn), ("fewshot", fewshot)):
            unknown = [key for key in options or {} if key not in OPTIONS[name]]
            if unknown:
                raise UserError(
                    f"test_cfg.{name} has no {listed(unknown)}. Choose among "
                    f"{listed(OPTIONS[name])}."
                )
        if knn:
            k, temperature = knn.get("k", KNN_K), knn.get("temperature", KNN_TEMPERATURE)
            check_number("test_cfg.knn.k", k, 1, whole=True, such_as=KNN_K)
            check_number("test_cfg.knn.temperature", temperature, above=0, such_as=KNN_TEMPERATURE)
        if fewshot:
            draws = fewshot.get("draws", FEW_SHOT_DRAWS)
            check_number("test_cfg.fewshot.draws", draws, 1, whole=True, such_as=FEW_SHOT_DRAWS)
            for shots in fewshot.get("shots", ()):
                check_number("test_cfg.fewshot.shots", shots, 1, whole=True, such_as=5)
        super().__init__(runner, dataloader)
        memory = copy.deepcopy(runner.cfg.test_dataloader.dataset)
        memory.ann_file = train_ann_file
        self.memory = DATASETS.build(memory)
        self.evaluator = runner.build_evaluator(evaluator)
        self.evaluator.dataset_meta = self.dataloader.dataset.metainfo
        self.knn = knn
        self.fewshot = fewshot

    def run(self) -> dict[str, float]:
        """Load the backbone, extract the features once, classify, and return the metrics."""
        runner = self.runner
        unwrap(runner.model).init_weights()
        runner.call_hook("before_test")
        runner.call_hook("before_test_epoch")
        train = self._features(self.memory, "training images")
        test = self._features(self.dataloader.dataset, "test images")
        metrics: dict[str, float] = {}
        if self.knn:
            predicted = knn_predict(*train, test[0], **self.knn)
            scores = self._evaluate(predicted, test[1])
            metrics.update((f"knn/{name}", value) for name, value in scores.items())
        if self.fewshot:
            names = [self.memory.get_data_info(i)["img_path"] for i in range(len(self.memory))]
            metrics.update(self._evaluate_few_shot(train, test, names, **self.fewshot))
        runner.call_hook("after_test_epoch", metrics=metrics)
        runner.call_hook("after_test")
        return metrics

    def _features(self, dataset: Any, progress: str) -> tuple[torch.Tensor, torch.Tensor]:
        model = unwrap(self.runner.model)
        scale = Normalisation.of(model.data_preprocessor)
        if scale is None:
            raise UserError("model.data_preprocessor does not normalise. Give it mean and std.")
        return extract_features(
            model,
            PreparedImages(dataset, scale.channel_order == CHANNEL_ORDER),
            mean=scale.mean,
            std=scale.std,
            batch_size=self.dataloader.batch_size,
            num_workers=self.dataloader.num_workers,
            progress=progress,
        )

    def _evaluate(self, predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        rank, world_size = get_dist_info()
        for label, prediction in zip(labels[rank::world_size], predicted[rank::world_size]):
            sample = DataSample().set_gt_label(label).set_pred_label(prediction)
            self.evaluator.process([sample])
        return self.evaluator.evaluate(len(labels))

    def _evaluate_few_shot(
        self, train: Any, test: Any, names: list[str], shots: tuple[int, ...], draws: int
    ) -> dict[str, float]:
        (x, y), (x_test, y_test) = train, test
        metrics: dict[str, float] = {}
        for count in shots:
            predictions = few_shot_predictions(x, y, x_test, names, count, range(draws))
            results = [self._evaluate(predicted, y_test) for predicted in predictions]
            for name in results[0]:
                mean, std = mean_and_std([result[name] for result in results])
                metrics[f"fewshot_{count}/{name}"] = mean
                metrics[f"fewshot_{count}/{name}_std"] = std
        return metrics


class PreparedImages(Dataset):
    """Images of a data set of mmpretrain for :func:`extract_features`.

    An item is (RGB tensor 3×H×W with values 0 to 255, label).

    Args:
        dataset: A data set whose items hold ``inputs`` and ``data_samples`` with a ``gt_label``.
        flip: Whether the channels of ``inputs`` are BGR.
    """

    def __init__(self, dataset: Any, flip: bool) -> None:
        self.dataset = dataset
        self.flip = flip

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (tensor 3×H×W, label)."""
        item = self.dataset[index]
        image = item["inputs"]
        return image.flip(0) if self.flip else image, int(item["data_samples"].gt_label)
