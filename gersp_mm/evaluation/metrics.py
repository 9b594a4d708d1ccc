"""The host's metric keys and scales."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gersp_mm.utils.errors import UserError

# Factors that convert the hosts' values to per cent. An unknown key is an error.
SCALES = {
    r"coco/bbox_mAP(_50|_75|_s|_m|_l)?": 100,
    r"coco/.+_precision": 100,  # for a single class
    r"dota/(mAP|AP\d+)": 100,
    r"((knn|fewshot_\d+)/)?accuracy/top\d+(_std)?": 1,
    r"single-label/(precision|recall|f1-score)(_\w+)?": 1,
    r"aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)": 1,
}
UNDEFINED = -1.0  # COCO's AP where there is no object
# mmdet's CocoMetric returns no key at all if the detector found no object, which is an AP of 0.
# Whether objects of a size or class exist is not known in that case.
ZERO_IF_NOTHING_FOUND = re.compile(r"coco/(bbox|segm)_mAP(_50|_75)?")


class Metric(NamedTuple):
    """One entry of ``evaluation.metrics``.

    Attributes:
        key: The host's name.
        name: The name in rows.
        scale: Factor that converts the values to per cent.
        fields: Fields of the protocol that hold for this metric alone, such as ``shots``.
    """

    key: str
    name: str
    scale: float
    fields: Mapping[str, Any]


def wanted_metrics(evaluation: Mapping[str, Any]) -> list[Metric]:
    """Read ``evaluation.metrics`` of a config.

    Args:
        evaluation: ``dataset``, ``split``, ``measured_by`` and ``metrics``. ``metrics`` maps
            the host's metric keys to names, or to ``dict(name=..., scale=...)`` if the key is not
            in :data:`SCALES`. Other entries of this dict are fields of the protocol.

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
    """Return the wanted metrics in per cent.

    Args:
        wanted: See :func:`wanted_metrics`.
        metrics: The values of the host's evaluator, by its keys; empty if a detector found no
            object in any image.

    Returns:
        Values in per cent by the host's keys; None if the value is not defined, such as the AP of
        small objects on images without small objects.

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
