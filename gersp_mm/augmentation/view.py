"""The augmentation of one view, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from gersp_mm.augmentation.draw import draw_view, pack
from gersp_mm.augmentation.host import apply_compiled, apply_with_pil, compile_kernel, has_numba
from gersp_mm.registry import TRANSFORMS
from gersp_mm.utils.errors import UserError, check_choice, check_flag, check_number, nearest

# `released`: configs/selfsup/GeRSP/GeRSP.py of the released code, for both of its branches; the
# content of the paper's Figure 3 was not found. `mocov2`: MoCo v2 (arXiv:2003.04297).
# `overhead`: ours, for images without an up side and with stretched values; not measured yet.
RELEASED: dict[str, Any] = dict(
    scale=(0.2, 1.0),
    grayscale_prob=0.2,
    grayscale_first=True,
    jitter=(0.4, 0.4, 0.4, 0.4),
    jitter_prob=1.0,
    blur_prob=0.0,
    horizontal_flip_prob=0.5,
    vertical_flip_prob=0.0,
    quarter_turns=False,
)
MOCOV2 = dict(
    RELEASED, grayscale_first=False, jitter=(0.4, 0.4, 0.4, 0.1), jitter_prob=0.8, blur_prob=0.5
)
OVERHEAD = dict(
    MOCOV2,
    scale=(0.3, 1.0),
    grayscale_prob=0.1,
    jitter=(0.2, 0.2, 0.2, 0.02),
    blur_prob=0.2,
    vertical_flip_prob=0.5,
    quarter_turns=True,
)
PRESETS = dict(released=RELEASED, mocov2=MOCOV2, overhead=OVERHEAD)


@TRANSFORMS.register_module()
class ViewAugmentation:
    """Random crop, colour and flip: one augmented view of one image.

    ``dict(type='gersp_mm.ViewAugmentation', preset='released', size=224)`` is the released code's
    pipeline; any part of a preset can be replaced by name. The draws have the distributions of
    torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale and flips.

    The worker process crops and resizes. If the training device is an accelerator,
    :class:`gersp_mm.PairedDataPreprocessor` changes colours, blurs and flips there in batches. Else
    the worker process does so too, by a compiled kernel if numba is installed and with PIL
    otherwise. The images are the same.

    Args:
        preset: ``'released'``, ``'mocov2'``, or ``'overhead'``, for images from above: quarter
            turns, both flips and milder colours.
        size: Side of the square view in pixels.
        colour: Place of colours, blur and flips: ``'device'``, ``'workers'``, or ``'auto'`` for the
            device if there is an accelerator.
        engine: Engine of the workers: ``'numba'``, ``'pil'`` (the reference, which also resizes
            with PIL and differs by at most 2 of 255 grey levels), or ``'auto'`` for numba if it is
            installed.
        **changes: ``scale``, the area share of the crop; ``jitter``, strengths of brightness,
            contrast, saturation and hue; ``jitter_prob``, ``grayscale_prob``, ``blur_prob``,
            ``horizontal_flip_prob``, ``vertical_flip_prob`` in [0, 1]; ``grayscale_first``,
            whether greyscale comes before the colour jitter; ``quarter_turns``, whether views of
            overhead images are turned by 0, 90, 180 or 270 degrees, each equally likely.

    Raises:
        UserError: An argument is not one of its choices or is out of its range, a part of a preset
            is unknown, or numba is requested and not installed.
    """

    takes_tensor = True  # results['img'] is a 3×H×W tensor, not a PIL image
    keyword_names = tuple(PRESETS["released"])  # of ``changes``

    def __init__(
        self,
        preset: str = "released",
        size: int = 224,
        colour: str = "auto",
        engine: str = "auto",
        **changes: Any,
    ) -> None:
        check_choice("preset", preset, tuple(PRESETS))
        check_choice("colour", colour, ("auto", "device", "workers"))
        check_choice("engine", engine, ("auto", "numba", "pil"))
        unknown = sorted(set(changes) - set(PRESETS[preset]))
        if unknown:
            close = nearest(unknown[0], PRESETS[preset])
            fix = f"Did you mean {close}? Correct the name." if close else "Remove it."
            raise UserError(
                f"ViewAugmentation has no {', '.join(unknown)}; it has "
                f"{', '.join(PRESETS[preset])}. {fix}"
            )
        if engine == "numba" and not has_numba():
            raise UserError("engine='numba' needs numba: pip install numba, or use engine='auto'")
        check_number("size", size, 1, whole=True, such_as=224)
        self.preset = preset
        self.size = size
        self.parts = {**PRESETS[preset], **changes}
        _check_parts(self.parts)
        self.on_device = colour == "device" or (colour == "auto" and get_device() != "cpu")
        self.engine = engine
        self.compiled = engine != "pil" and has_numba()
        if self.compiled and not self.on_device:
            compile_kernel()

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace the image by one view of it.

        Args:
            results: ``img``, a 3×H×W uint8 RGB tensor or a PIL RGB image.

        Returns:
            ``results`` with ``img``, a uint8 tensor, 3×size×size, channels last in memory; and, if
            the device finishes the view, ``draw``, the bytes of a record of
            :mod:`gersp_mm.augmentation.draw`.
        """
        image = results["img"]
        if not isinstance(image, torch.Tensor):
            image = pil_to_tensor(image)
        draw = draw_view(image.shape[1], image.shape[2], self.parts)
        _, *crop, turns = draw.item()[:6]
        view = self._resize(image, *crop)
        if turns:
            view = torch.rot90(view, turns, (1, 2))
            view = view.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last again
        if self.on_device:
            return {**results, "img": view, "draw": pack(draw)}
        return {**results, "img": self._finish(view, draw)}

    def _resize(
        self, image: torch.Tensor, top: int, left: int, height: int, width: int
    ) -> torch.Tensor:
        """Crop and resize with antialiasing to 3×size×size."""
        # torch has a fast kernel for channels last with a batch dimension.
        part = image.permute(1, 2, 0)[None, top : top + height, left : left + width]
        if self.engine == "pil":
            pil = Image.fromarray(part[0].numpy())
            pil = pil.resize((self.size, self.size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(pil)).permute(2, 0, 1)
        return F.interpolate(
            part.permute(0, 3, 1, 2), (self.size, self.size), mode="bilinear", antialias=True
        )[0]

    def _finish(self, view: torch.Tensor, draw: np.void) -> torch.Tensor:
        pixels = np.ascontiguousarray(view.permute(1, 2, 0).numpy())
        if self.compiled:
            coloured = apply_compiled(pixels, draw)
        else:
            coloured = np.array(apply_with_pil(Image.fromarray(pixels), draw))
        return torch.from_numpy(coloured).permute(2, 0, 1)

    def __repr__(self) -> str:
        where = "on the device" if self.on_device else "numba" if self.compiled else "PIL"
        return (
            f"{type(self).__name__}(preset={self.preset!r}, size={self.size}, "
            f"colour work: {where}, {self.parts})"
        )


def _check_parts(parts: dict[str, Any]) -> None:
    """Raise a :class:`UserError` unless each part of an augmentation is in its range."""
    for name, value in parts.items():
        if name.endswith("_prob"):
            check_number(name, value, 0, 1, such_as=0.5)
    for name in ("grayscale_first", "quarter_turns"):
        check_flag(name, parts[name])
    for name, count in (("scale", 2), ("jitter", 4)):
        if not isinstance(parts[name], (list, tuple)) or len(parts[name]) != count:
            example = PRESETS["released"][name]
            raise UserError(f"{name} cannot be {parts[name]!r}. Set it to numbers like {example}.")
    for number in parts["scale"]:
        check_number("scale", number, above=0, high=1, such_as=(0.2, 1.0))
    if parts["scale"][0] > parts["scale"][1]:
        raise UserError(
            f"scale={parts['scale']} has its smallest share above its largest. Give the smallest "
            "share of the image's area first."
        )
    for number in parts["jitter"][:3]:
        check_number("jitter", number, 0, such_as=(0.4, 0.4, 0.4, 0.1))
    check_number("the hue of jitter", parts["jitter"][3], 0, 0.5, such_as=0.1)
