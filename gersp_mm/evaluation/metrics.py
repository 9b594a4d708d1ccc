"""The host's metric keys and scales, and the rows that are made of them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gersp_mm.backbones.architectures import Architecture
from gersp_mm.resources import resource_root
from gersp_mm.utils import provenance
from gersp_mm.utils.errors import UserError

# What the hosts' values are multiplied by to be per cent. An unknown key is an error, not a guess.
SCALES = {
    r"coco/bbox_mAP(_50|_75|_s|_m|_l)?": 100,
    r"coco/.+_precision": 100,  # of one class
    r"dota/(mAP|AP\d+)": 100,
    r"((knn|fewshot_\d+)/)?accuracy/top\d+(_std)?": 1,
    r"single-label/(precision|recall|f1-score)(_\w+)?": 1,
    r"aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)": 1,
}


UNDEFINED = -1.0  # COCO's AP of what is not there
# mmdet's CocoMetric returns no key at all where the detector found nothing, which is an AP of 0.
# (Whether there are objects of one size or class is not known then.)
ZERO_IF_NOTHING_FOUND = re.compile(r"coco/(bbox|segm)_mAP(_50|_75)?")


class Metric(NamedTuple):
    """One entry of ``evaluation.metrics``."""

    key: str  # the host's name
    name: str  # the name spelled out
    scale: float  # to per cent


# -------------------------------------------------------------------------------------- metrics


def wanted_metrics(evaluation: Mapping[str, Any]) -> list[Metric]:
    """Read ``evaluation.metrics`` of a config.

    Args:
        evaluation: ``dataset``, ``protocol``, ``split`` and ``metrics``, which maps the host's
            metric keys to names, or to ``dict(name=..., scale=...)`` where the key is none of
            :data:`SCALES`.

    Raises:
        UserError: a field is missing, or a key's scale is not known.
    """
    missing = [name for name in ("dataset", "protocol", "split") if not evaluation.get(name)]
    if missing:
        raise UserError(f"the config's evaluation has no {', '.join(missing)}")
    found = []
    for key, value in (evaluation.get("metrics") or {}).items():
        if isinstance(value, Mapping):
            found.append(Metric(key, value["name"], value["scale"]))
            continue
        scales = [scale for pattern, scale in SCALES.items() if re.fullmatch(pattern, key)]
        if not scales:
            raise UserError(
                f"evaluation.metrics: whether {key!r} is a fraction or per cent is not known; "
                f"write {{{key!r}: dict(name={value!r}, scale=100)}} for a fraction, scale=1 for "
                "per cent"
            )
        found.append(Metric(key, value, scales[0]))
    return found


def in_per_cent(
    evaluation: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, float | None]:
    """Give the wanted metrics their names and scale.

    Args:
        evaluation: see :func:`wanted_metrics`.
        metrics: What the host's evaluator returned; nothing, if a detector found no object in any
            image.

    Returns:
        Values in per cent by name; None where the value is not defined, such as the AP of small
        objects where there are none.

    Raises:
        UserError: A wanted metric is missing.
    """
    wanted = wanted_metrics(evaluation)
    if not metrics and all(metric.key.startswith("coco/") for metric in wanted):
        metrics = {
            m.key: 0.0 if ZERO_IF_NOTHING_FOUND.fullmatch(m.key) else UNDEFINED for m in wanted
        }
    values: dict[str, float | None] = {}
    for key, name, scale in wanted:
        if key not in metrics:
            raise UserError(
                f"the evaluation gave no {key}, only {', '.join(metrics) or 'nothing'}. Correct "
                "evaluation.metrics of the config."
            )
        value = float(metrics[key])
        defined = math.isfinite(value) and value >= 0
        values[name] = round(value * scale, 4) if defined else None
    return values


def summary(evaluation: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """One line: ``DIOR, horizontal boxes, trainval to test: AP50 61.2, AP50:95 38.0``."""
    values = in_per_cent(evaluation, metrics)
    decimals = {m.name: 1 if m.scale == 100 else 2 for m in wanted_metrics(evaluation)}
    texts = [
        f"{name} undefined" if value is None else f"{name} {value:.{decimals[name]}f}"
        for name, value in values.items()
    ]
    return f"{evaluation['dataset']}, {protocol(evaluation)}: {', '.join(texts)}"


def protocol(evaluation: Mapping[str, Any]) -> str:
    """Protocol and split, as the rows name them."""
    return f"{evaluation['protocol']}, {evaluation['split']}"


# ----------------------------------------------------------------------------------------- rows


def result_rows(
    evaluation: Mapping[str, Any],
    metrics: Mapping[str, float],
    *,
    model: str,
    config: str,
    seed: int | None,
    pretrained: Mapping[str, Any] | None,
    seconds: float | None,
) -> list[dict[str, Any]]:
    """One row for each wanted metric that is defined.

    Args:
        evaluation: see :func:`wanted_metrics`.
        metrics: what the host's evaluator returned.
        model: see :func:`model_name`.
        config: see :func:`config_name`.
        seed: of the training.
        pretrained: what the training started from, as ``PretrainedCheckHook`` notes it in
            ``meta['pretrained']`` of a checkpoint; None if that is not known.
        seconds: how long it took.

    Raises:
        UserError: a wanted metric is not there.
    """
    shared = dict(
        seed=seed,
        pretraining=_pretraining(pretrained),
        checkpoint_sha256=(pretrained or {}).get("sha256"),
        config=config,
        commit=provenance.commit(),
        hardware=provenance.hardware(),
        versions=provenance.versions(),
        seconds=None if seconds is None else round(seconds, 3),
    )
    what = dict(dataset=evaluation["dataset"], protocol=protocol(evaluation), model=model)
    values = in_per_cent(evaluation, metrics)
    return [
        dict(what, metric=name, value=value, **shared)
        for name, value in values.items()
        if value is not None
    ]


def _pretraining(pretrained: Mapping[str, Any] | None) -> str | None:
    if not pretrained:
        return None
    if not pretrained.get("method"):
        return os.path.basename(pretrained.get("path") or "") or None
    epochs = f", {pretrained['epoch']} epochs" if pretrained.get("epoch") else ""
    return f"{pretrained['method']}{epochs}"


def model_name(cfg: Mapping[str, Any], config: str) -> str:
    """Name of a config's model.

    ``evaluation.model`` if the config has it, else the backbone of a classifier, else the config's
    name without schedule and data set: ``retinanet_r50_fpn`` for ``retinanet_r50_fpn_24e_dior.py``.

    Args:
        cfg: the config.
        config: its path.
    """
    name = (cfg.get("evaluation") or {}).get("model")
    if name:
        return name
    model = cfg["model"]
    if model["type"].rpartition(".")[2] == "ImageClassifier":
        return Architecture.parse(model["backbone"]).name
    return re.sub(r"_\d+[xek]_[^_]+$", "", Path(config).stem)


def config_name(path: str | os.PathLike) -> str:
    """Path of a config relative to the repository; of a config elsewhere its name alone."""
    path, root = Path(path).resolve(), resource_root().resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
