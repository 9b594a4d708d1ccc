"""The normalisation of a network's input images, read from modules, configs and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gersp_mm.checkpoints.read import config_values
from gersp_mm.constants import CHANNEL_ORDER


class Normalisation(NamedTuple):
    """The normalisation of a network's input images.

    Attributes:
        mean: Mean per channel, in the network's channel order, range 0 to 255.
        std: Standard deviation per channel, range 0 to 255.
        channel_order: ``RGB`` or ``BGR``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str

    @classmethod
    def of(cls, preprocessor: Any) -> Normalisation | None:
        """Return the normalisation of a model's data preprocessor, None if it has none."""
        if not hasattr(preprocessor, "mean") or not hasattr(preprocessor, "std"):
            return None
        names = ("to_rgb", "bgr_to_rgb", "channel_conversion", "_channel_conversion")
        converts = any(getattr(preprocessor, name, False) for name in names)
        # MMCV reads images as BGR; our own preprocessor gets them as it says
        order = getattr(preprocessor, "channel_order", "RGB" if converts else "BGR")
        mean, std = preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
        return cls(tuple(mean), tuple(std), order)

    @classmethod
    def in_config(cls, values: Mapping[str, Any]) -> Normalisation | None:
        """Return the normalisation that a config's :func:`config_values` name, if they do."""
        model = values.get("model")
        inner = model.get("data_preprocessor") if isinstance(model, Mapping) else None
        inputs = inner or values.get("data_preprocessor")
        if not isinstance(inputs, Mapping) or not (inputs.get("mean") and inputs.get("std")):
            return None
        ours = str(inputs.get("type")).startswith("gersp_mm.")  # which is RGB always
        rgb = ours or inputs.get("to_rgb", inputs.get("bgr_to_rgb", False))
        try:
            mean, std = (tuple(float(value) for value in inputs[key]) for key in ("mean", "std"))
        except (TypeError, ValueError):
            return None
        return cls(mean, std, "RGB" if rgb else "BGR")

    @classmethod
    def stored(cls, meta: Any) -> Normalisation | None:
        """Return the normalisation in a file's ``meta``, or in the text of its config."""
        if not isinstance(meta, Mapping):
            return None
        found = meta.get("normalisation")
        if not isinstance(found, Mapping) or not {"mean", "std"} <= set(found):
            return cls.in_config(config_values(meta.get("cfg") or meta.get("config_text")))
        order = found.get("channel_order", CHANNEL_ORDER)
        return cls(tuple(found["mean"]), tuple(found["std"]), order)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a file's ``meta`` holds it, in plain Python."""
        return dict(mean=list(self.mean), std=list(self.std), channel_order=self.channel_order)
