"""The host's metric keys and scales, and the rows that are made of its values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.resources import resource_root
from gersp_mm.results.protocol import Protocol
from gersp_mm.results.row import Column, Pretraining, Row, SplitRef, label_of
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.provenance import Provenance
from gersp_mm.utils.validation import validated

# Factors that make the hosts' values per cent. An unknown key is an error, not a guess.
SCALES = {
    r"coco/bbox_mAP(_50|_75|_s|_m|_l)?": 100,
    r"coco/.+_precision": 100,  # of one class
    r"dota/(mAP|AP\d+)": 100,
    r"((knn|fewshot_\d+)/)?accuracy/top\d+(_std)?": 1,
    r"single-label/(precision|recall|f1-score)(_\w+)?": 1,
    r"aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)": 1,
}
UNDEFINED = -1.0  # COCO's AP where there is no object
# mmdet's CocoMetric returns no key at all where the detector found nothing, which is an AP of 0.
# Whether there are objects of one size or class is not known then.
ZERO_IF_NOTHING_FOUND = re.compile(r"coco/(bbox|segm)_mAP(_50|_75)?")


class Metric(NamedTuple):
    """One entry of ``evaluation.metrics``.

    Attributes:
        key: The host's name.
        name: The name in rows.
        scale: Factor that makes its values per cent.
        fields: Fields of the protocol that this metric has for itself, such as ``shots``.
    """

    key: str
    name: str
    scale: float
    fields: Mapping[str, Any]


def wanted_metrics(evaluation: Mapping[str, Any]) -> list[Metric]:
    """Read ``evaluation.metrics`` of a config.

    Args:
        evaluation: ``dataset``, ``split``, ``measured_by`` and ``metrics``. The last maps the
            host's metric keys to names, or to ``dict(name=..., scale=...)`` where the key is not in
            :data:`SCALES`. Other entries of this dict are fields of the protocol.

    Raises:
        UserError: A field is missing, or a key's scale is not known.
    """
    missing = [name for name in ("dataset", "split") if not evaluation.get(name)]
    if not evaluation.get("measured_by") and not evaluation.get("protocol"):
        missing.append("measured_by")
    if missing:
        raise UserError(f"the config's evaluation has no {', '.join(missing)}")
    found = []
    for key, value in (evaluation.get("metrics") or {}).items():
        fields = dict(value) if isinstance(value, Mapping) else dict(name=value)
        name, scale = fields.pop("name"), fields.pop("scale", None)
        if scale is None:
            scale = next((s for pattern, s in SCALES.items() if re.fullmatch(pattern, key)), None)
        if scale is None:
            raise UserError(
                f"evaluation.metrics: whether {key!r} is a fraction or per cent is not known. "
                f"Write {{{key!r}: dict(name={name!r}, scale=100)}} for a fraction, scale=1 for "
                "per cent."
            )
        found.append(Metric(key, name, scale, fields))
    return found


def in_per_cent(wanted: Sequence[Metric], metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Give the wanted metrics their scale.

    Args:
        wanted: See :func:`wanted_metrics`.
        metrics: The values of the host's evaluator, by its keys; empty if a detector found no
            object in any image.

    Returns:
        Values in per cent by the host's keys; None where the value is not defined, such as the AP
        of small objects where there are none.

    Raises:
        UserError: A wanted metric is missing.
    """
    if not metrics and all(metric.key.startswith("coco/") for metric in wanted):
        metrics = {
            m.key: 0.0 if ZERO_IF_NOTHING_FOUND.fullmatch(m.key) else UNDEFINED for m in wanted
        }
    values: dict[str, float | None] = {}
    for metric in wanted:
        if metric.key not in metrics:
            raise UserError(
                f"the evaluation gave no {metric.key}, only {', '.join(metrics) or 'nothing'}. "
                "Correct evaluation.metrics of the config."
            )
        value = float(metrics[metric.key])
        defined = math.isfinite(value) and value >= 0
        values[metric.key] = round(value * metric.scale, 4) if defined else None
    return values


class Measurement:
    """The columns in which the values of a test stand.

    Args:
        cfg: The config with all overrides.
        config: Its path, which models are named after.
        checkpoint_meta: ``meta`` of the tested checkpoint.
        changes: Options that differ from the config's file; those that no field of the protocol
            holds become overrides of the rows.

    Raises:
        UserError: The config's ``evaluation`` has a field missing or wrong.
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
        """Say what was measured, one line for each protocol.

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
            pretrained: What the training started from, as ``PretrainedCheckHook`` notes it in
                ``meta['pretrained']`` of a checkpoint; None if that is not known.
            seconds: Duration of the test.

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


def model_name(cfg: Mapping[str, Any], config: str) -> str:
    """Return the name of a config's model.

    That is ``evaluation.model`` if the config has it, else the backbone of a classifier, else the
    config's name without schedule and data set: ``retinanet_r50_fpn`` for
    ``retinanet_r50_fpn_24e_dior.py``.

    Args:
        cfg: The config.
        config: Its path.
    """
    name = (cfg.get("evaluation") or {}).get("model")
    if name:
        return name
    model = cfg["model"]
    if model["type"].rpartition(".")[2] == "ImageClassifier":
        return Architecture.parse(model["backbone"]).name
    return re.sub(r"_\d+[xek]_[^_]+$", "", Path(config).stem)


def config_name(path: str | os.PathLike) -> str:
    """Return the path of a config relative to the repository; of a config elsewhere its name."""
    path, root = Path(path).resolve(), resource_root().resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
