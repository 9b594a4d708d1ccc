"""Loading the images of downstream data sets as those of a pre-training were read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config

from gersp_mm.checkpoints.find import read_outline
from gersp_mm.images.decode import load_rgb
from gersp_mm.images.pixels import PERCENTILE, PixelScale, Scale
from gersp_mm.registry import TRANSFORMS
from gersp_mm.utils.errors import UserError

PIXEL_SCALE = "pixel_scale"  # key of an export's meta
HOST_LOADER, LOADER = "LoadImageFromFile", "gersp_mm.LoadImage"


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image as a pre-training did, in place of the hosts' ``LoadImageFromFile``.

    In a pipeline of mmpretrain, mmdet, mmrotate or mmseg::

        dict(type='gersp_mm.LoadImage', pixel_scale='work_dirs/own/gersp_r50_backbone.pth')

    It sets ``img`` (H×W×3 uint8, BGR, as the hosts' own), ``img_shape`` and ``ori_shape``.
    Photographs have the values of the hosts' loader; rasters go through the pixel scale.

    Args:
        pixel_scale: An exported backbone or a ``pixel_scale.json``, by its path, or what
            ``meta['pixel_scale']`` of an export holds. None stretches each raster by itself.
        scale: In place of ``pixel_scale``: limits that are given, see
            :class:`gersp_mm.images.pixels.PixelScale`.
        bands: In place of ``pixel_scale``: the bands.

    Raises:
        UserError: The file does not exist or holds no pixel scale, or two settings contradict.
    """

    def __init__(
        self,
        pixel_scale: str | os.PathLike | Mapping[str, Any] | None = None,
        scale: Scale = PERCENTILE,
        bands: Sequence[int | str] | int | str | None = None,
    ) -> None:
        super().__init__()
        if pixel_scale is not None and (bands is not None or scale != PERCENTILE):
            raise UserError("LoadImage: give pixel_scale, or scale and bands, and not both")
        self.asked = PixelScale(scale, bands)  # type: ignore[arg-type]
        self.pixel_scale = None if pixel_scale is None else read_pixel_scale(pixel_scale)

    def transform(self, results: dict) -> dict:
        """Load ``results['img_path']``.

        Raises:
            BadImageError: See :func:`gersp_mm.images.decode.load_rgb`.
        """
        scale = self.pixel_scale
        if scale is None and (self.asked.bands is not None or self.asked.scale != PERCENTILE):
            scale = self.asked
        pixels = np.asarray(load_rgb(results["img_path"], scale=scale))
        results["img"] = np.ascontiguousarray(pixels[..., ::-1])
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(pixel_scale={self.pixel_scale})"


def read_pixel_scale(given: str | os.PathLike | Mapping[str, Any]) -> PixelScale:
    """Return a pixel scale by what it is given as, see :class:`LoadImage`.

    Raises:
        UserError: The file does not exist or holds no pixel scale.
    """
    if isinstance(given, Mapping):
        content: Any = given
    elif str(given).endswith(".json"):
        path = Path(given)
        if not path.is_file():
            raise UserError(f"pixel_scale={str(given)!r} is no file")
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("remote_sensing", content)
    else:
        content = stored_pixel_scale(given)
    found = PixelScale.stored(content)
    if found is None:
        raise UserError(
            f"pixel_scale={given!r} holds no pixel scale: it is that of a pre-training on rasters, "
            "an export or the pixel_scale.json of its work directory"
        )
    return found


def stored_pixel_scale(path: str | os.PathLike) -> Any:
    """Return what an exported backbone says of the pixel scale; None where it says nothing."""
    with contextlib.suppress(Exception):  # whatever is wrong with it, its own reader says
        return read_outline(path)["meta"].get(PIXEL_SCALE)
    return None


def use_pixel_scale(cfg: Any, pixel_scale: Any) -> None:
    """Have every pipeline of a config load its images by a pixel scale.

    Args:
        cfg: A config or a part of one, changed in place.
        pixel_scale: See :class:`LoadImage`.
    """
    for transform in loaders(cfg):
        transform.clear()
        transform.update(type=LOADER, pixel_scale=pixel_scale)


def loaders(cfg: Any) -> Iterator[Any]:
    """Yield the transforms of a config that load images: the hosts' and ours."""
    if isinstance(cfg, (Mapping, Config)):
        kind = str(cfg.get("type"))
        if kind == LOADER or kind.rpartition(".")[2] == HOST_LOADER:
            yield cfg
        else:
            for value in cfg.values():
                yield from loaders(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from loaders(value)


def require_same_scale(cfg: Any, meta: Mapping[str, Any], path: str) -> str | None:
    """Make sure that no pipeline of a config scales rasters in another way than a file's network.

    Args:
        cfg: The config.
        meta: ``meta`` of the file.
        path: The file, for messages.

    Returns:
        A warning, where rasters would not go through the file's pixel scale at all.

    Raises:
        UserError: A pipeline has other limits or bands for a kind of raster.
    """
    expected = PixelScale.stored(meta.get(PIXEL_SCALE))
    if expected is None:
        return None
    plain = False
    for transform in loaders(cfg):
        if transform["type"] != LOADER:
            plain = True
            continue
        given = transform.get(PIXEL_SCALE)
        if given is None:
            own = PixelScale(transform.get("scale", PERCENTILE), transform.get("bands"))
        else:
            own = read_pixel_scale(given)
        for kind, limits in expected.limits.items():
            theirs = own.limits.get(kind) if own.scale == PERCENTILE else own.given_limits(kind)
            if (theirs is not None and not np.allclose(theirs, limits)) or (
                theirs is not None and own.bands != expected.bands
            ):
                raise UserError(
                    f"{path} was trained on {kind} with bands={expected.bands} and limits "
                    f"{list(limits)}, but gersp_mm.LoadImage has bands={own.bands} and "
                    f"{list(theirs)}. Set its pixel_scale={path!r}"
                )
    if plain and any(not kind.endswith("uint8") for kind in expected.limits):
        return (
            f"{path} was trained on rasters ({', '.join(expected.limits)}). Where the images here "
            f"are rasters too, load them by dict(type='{LOADER}', pixel_scale={path!r})"
        )
    return None
