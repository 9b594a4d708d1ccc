"""The augmentation of one view, by name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageFilter
from torchvision import transforms as T

from gersp_mm.registry import TRANSFORMS
from gersp_mm.utils.errors import UserError

# `released`: configs/selfsup/GeRSP/GeRSP.py of the released code, for both of its branches; what
# the paper's Figure 3 shows could not be sourced. `mocov2`: MoCo v2 (arXiv:2003.04297).
PRESETS: dict[str, dict[str, Any]] = {
    "released": dict(
        scale=(0.2, 1.0),
        grayscale_prob=0.2,
        grayscale_first=True,
        jitter=(0.4, 0.4, 0.4, 0.4),
        jitter_prob=1.0,
        blur_prob=0.0,
        horizontal_flip_prob=0.5,
        vertical_flip_prob=0.0,
    ),
    "mocov2": dict(
        scale=(0.2, 1.0),
        grayscale_prob=0.2,
        grayscale_first=False,
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_prob=0.8,
        blur_prob=0.5,
        horizontal_flip_prob=0.5,
        vertical_flip_prob=0.0,
    ),
}


@TRANSFORMS.register_module()
class ViewAugmentation:
    """Random crop, colour and flip: one augmented view of one image.

    ``dict(type='gersp_mm.ViewAugmentation', preset='released', size=224)`` is the released code's
    pipeline; any part of a preset can be replaced by name.

    Args:
        preset: ``'released'`` or ``'mocov2'``.
        size: side of the square view in pixels.
        **changes: ``scale``, the area share of the crop; ``jitter``, strengths of brightness,
            contrast, saturation and hue; ``jitter_prob``, ``grayscale_prob``, ``blur_prob``,
            ``horizontal_flip_prob``, ``vertical_flip_prob`` in [0, 1]; ``grayscale_first``,
            whether greyscale comes before the colour jitter.

    Raises:
        UserError: the preset or a part of it is unknown.
    """

    blur_sigma = (0.1, 2.0)

    def __init__(self, preset: str = "released", size: int = 224, **changes: Any) -> None:
        if preset not in PRESETS:
            raise UserError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        unknown = sorted(set(changes) - set(PRESETS[preset]))
        if unknown:
            raise UserError(
                f"ViewAugmentation has no {', '.join(unknown)}; it has {', '.join(PRESETS[preset])}"
            )
        parts = {**PRESETS[preset], **changes}
        colour: list[Any] = [_maybe(T.ColorJitter(*parts["jitter"]), parts["jitter_prob"])]
        grayscale = T.RandomGrayscale(parts["grayscale_prob"])
        colour.insert(0 if parts["grayscale_first"] else 1, grayscale)
        if parts["blur_prob"]:
            colour.append(_maybe(_GaussianBlur(self.blur_sigma), parts["blur_prob"]))
        self.preset = preset
        self.transform = T.Compose([
            T.RandomResizedCrop(size, scale=tuple(parts["scale"])),
            *colour,
            T.RandomHorizontalFlip(parts["horizontal_flip_prob"]),
            T.RandomVerticalFlip(parts["vertical_flip_prob"]),
            T.PILToTensor(),
        ])  # fmt: skip

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace the PIL RGB image ``results['img']`` by a uint8 tensor, 3×size×size."""
        return {**results, "img": self.transform(results["img"])}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(preset={self.preset!r}, transform={self.transform})"


def _maybe(transform: Any, prob: float) -> Any:
    return transform if prob >= 1 else T.RandomApply([transform], prob)


class _GaussianBlur:
    """Gaussian blur of PIL images with a random σ in pixels, as SimCLR and MoCo v2 use it."""

    def __init__(self, sigma: Sequence[float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))

    def __repr__(self) -> str:
        return f"GaussianBlur(sigma={tuple(self.sigma)})"
