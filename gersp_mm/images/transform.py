"""From a file, an image or an array to the input of a backbone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F

from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.images.pixels import EIGHT_BITS, PixelScale
from gersp_mm.images.rasters import Raster, RasterInfo
from gersp_mm.utils.errors import UserError


class BackboneTransform:
    """Prepare one image for a backbone: bands and pixel scale, size, normalisation.

    Args:
        mean: Mean per channel, RGB, in the range 0 to 255.
        std: Standard deviation per channel, RGB, in the range 0 to 255.
        pixel_scale: Bands and limits of rasters, as the backbone was pre-trained with; None
            stretches each raster by its own values.
        size: Side of the square centre crop in pixels, to which the shorter side is resized first
            (bilinear with antialiasing); None keeps the size of the image.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        pixel_scale: PixelScale | None = None,
        size: int | None = 224,
    ) -> None:
        self.mean = tuple(map(float, mean))
        self.std = tuple(map(float, std))
        self.pixel_scale = pixel_scale
        self.size = size

    def __call__(self, image: str | os.PathLike | Image.Image | np.ndarray) -> torch.Tensor:
        """Return the normalised image, 3×H×W float32.

        Args:
            image: Path of a photograph or raster, a PIL image, or an array: H×W or H×W×3 uint8
                RGB, or the values of a raster, H×W×bands.

        Raises:
            UserError: The file cannot be read, or the array does not fit the bands.
        """
        pixels = self._rgb(image)
        if self.size is not None:
            pixels = F.center_crop(F.resize(pixels, [self.size], antialias=True), [self.size])
        return F.normalize(F.pil_to_tensor(pixels).float(), self.mean, self.std)

    def __repr__(self) -> str:
        scale = "" if self.pixel_scale is None else f", bands={self.pixel_scale.bands}"
        return f"BackboneTransform(mean={self.mean}, std={self.std}, size={self.size}{scale})"

    def _rgb(self, image: Any) -> Image.Image:
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        if isinstance(image, (str, os.PathLike)):
            try:
                return load_rgb(os.fspath(image), scale=self.pixel_scale)
            except BadImageError as error:
                raise UserError(f"{os.fspath(image)} cannot be read: {error}") from error
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise UserError(
                f"the transform got a {type(image).__name__}{_shape(image)}. Give the path of an "
                "image, a PIL image, or an array H×W or H×W×bands"
            )
        return Image.fromarray(self._levels(image if image.ndim == 3 else image[..., None]))

    def _levels(self, values: np.ndarray) -> np.ndarray:
        """Return H×W×bands values as H×W×3 grey levels."""
        info = RasterInfo.of_array(values)
        scale = self.pixel_scale or PixelScale()
        if info.kind.endswith(EIGHT_BITS) and values.shape[2] == 3 and self.pixel_scale is None:
            return np.ascontiguousarray(values)
        try:
            chosen = values[..., [band - 1 for band in scale.choose(info)]].transpose(2, 0, 1)
        except ValueError as error:
            raise UserError(f"the array does not fit the backbone: {error}") from error
        valid = np.isfinite(chosen).all(axis=0)
        if scale.limits_of(info.kind) is None:
            scale = scale.find({info.kind: [chosen[:, valid]]})
        levels = scale.to_rgb(Raster(chosen, valid), info.kind)
        return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return "" if shape is None else f" of the shape {tuple(shape)}"
