"""The rows of a test: a config's names, the protocol of the run, and the host's values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.evaluation.metrics import Metric, in_per_cent, wanted_metrics
from gersp_mm.resources import resource_root
from gersp_mm.results.protocol import Protocol
from gersp_mm.results.row import Column, Pretraining, Row, SplitRef, label_of
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.provenance import Provenance
from gersp_mm.utils.validation import validated


class Measurement:
    """The columns in which the values of a test stand.

    Args:
        cfg: The config with all overrides.
        config: Path of the config, which may name the model.
        checkpoint_meta: ``meta`` of the tested checkpoint.
        changes: Options that differ from the config's file; those that no field of the protocol
            holds become overrides of the rows.

    Raises:
        UserError: The config's ``evaluation`` has a field missing or wrong, or names a metric of
            frozen features that ``test_cfg`` does not evaluate.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any],
        config: str,
        checkpoint_meta: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        evaluation = cfg.get("evaluation") or {}
        self.metrics = wanted_metrics(evaluation)
        _require_evaluated(self.metrics, cfg.get("test_cfg") or {})
        split = evaluation["split"]
        if not isinstance(split, Mapping):
            split = dict(name=split, part=None) if evaluation.get("protocol") else dict(name=split)
        self.columns: dict[str, Column] = {}
        for metric in self.metrics:
            protocol = Protocol.of(cfg, checkpoint_meta, **metric.fields)
            self.columns[metric.key] = Column(
                dataset=evaluation["dataset"],
                split=validated(SplitRef, dict(split), "evaluation.split"),
                measured_by=protocol,
                model=model_name(cfg, config),
                metric=metric.name,
                overrides=protocol.overrides_of(changes or {}),
            )

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return a text with the measured values, one line for each protocol.

        Args:
            metrics: The values of the host's evaluator.
        """
        values = in_per_cent(self.metrics, metrics)
        lines: dict[str, list[str]] = {}
        for metric in self.metrics:
            column, value = self.columns[metric.key], values[metric.key]
            decimals = 1 if metric.scale == 100 else 2
            text = "undefined" if value is None else f"{value:.{decimals}f}"
            start = f"{column.dataset}, {column.sentence}"
            lines.setdefault(start, []).append(f"{metric.name} {text}")
        return "\n".join(f"{start}: {', '.join(texts)}" for start, texts in lines.items())

    def rows(
        self,
        metrics: Mapping[str, float],
        *,
        config: str,
        seed: int | None,
        pretrained: Mapping[str, Any] | None,
        seconds: float | None,
    ) -> list[Row]:
        """Return a row for each metric that is defined.

        Args:
            metrics: The values of the host's evaluator.
            config: See :func:`config_name`.
            seed: Seed of the training.
            pretrained: The start of the training, as ``PretrainedCheckHook`` notes it in
                ``meta['pretrained']`` of a checkpoint; None if unknown.
            seconds: Duration of the test in seconds.

        Raises:
            UserError: A wanted metric is missing.
        """
        shared: dict[str, Any] = dict(
            seed=seed,
            pretraining=label_of(pretrained),
            settings=Pretraining.of_origin(pretrained),
            checkpoint_sha256=(pretrained or {}).get("sha256"),
            config=config,
            seconds=None if seconds is None else round(seconds, 3),
            **dict(Provenance.now()),
        )
        return [
            Row(**dict(self.columns[key]), value=value, **shared)
            for key, value in in_per_cent(self.metrics, metrics).items()
            if value is not None
        ]


def _require_evaluated(metrics: list[Metric], test_cfg: Mapping[str, Any]) -> None:
    """Refuse metrics of frozen features that a test will not compute."""
    shots = (test_cfg.get("fewshot") or {}).get("shots", ())
    given = [f"fewshot_{count}" for count in shots] + ["knn"] * bool(test_cfg.get("knn"))
    for metric in metrics:
        found = re.match(r"(knn|fewshot_\d+)/", metric.key)
        if found and found[1] not in given:
            raise UserError(
                f"evaluation.metrics names {metric.key!r}, but test_cfg only evaluates "
                f"{listed(given)}. Change evaluation.metrics or test_cfg so that they agree."
            )


def model_name(cfg: Mapping[str, Any], config: str) -> str:
    """Return the name of a config's model.

    The name is ``evaluation.model`` if the config has it, else the backbone of a classifier, else
    the config's name without schedule and data set: ``retinanet_r50_fpn`` for
    ``retinanet_r50_fpn_24e_dior.py``.

    Args:
        cfg: The config.
        config: Path of the config.
    """
    name = (cfg.get("evaluation") or {}).get("model")
    if name:
        return name
    model = cfg["model"]
    if model["type"].rpartition(".")[2] == "ImageClassifier":
        return Architecture.parse(model["backbone"]).name
    return re.sub(r"_\d+[xek]_[^_]+$", "", Path(config).stem)


def config_name(path: str | os.PathLike) -> str:
    """Return the path of a config relative to the repository, or the name of any other config."""
    path, root = Path(path).resolve(), resource_root().resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
