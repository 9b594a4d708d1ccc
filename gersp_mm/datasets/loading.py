"""Loading the images of downstream data sets as in the pre-training."""

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

PIXEL_SCALE = "pixel_scale"  # key of an export's and a checkpoint's meta
REMOTE_SENSING = "remote_sensing"  # the source whose scale downstream tasks use
HOST_LOADER, LOADER = "LoadImageFromFile", "gersp_mm.LoadImage"
INSTEAD = "instead_of"  # key of a scale that a tool wrote into a config, with the replaced loader
CARRIED = {"backend_args", "to_float32"}  # settings that the hosts' loader shares with ours
OUR_WAY = dict(color_type="color", ignore_empty=False, file_client_args=None)  # fixed in ours


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image as in a pre-training; replaces the hosts' ``LoadImageFromFile``.

    In a pipeline of mmpretrain, mmdet, mmrotate or mmseg::

        dict(type='gersp_mm.LoadImage', pixel_scale='work_dirs/own/gersp_r50_backbone.pth')

    The transform sets ``img`` (H×W×3 uint8, BGR, as the hosts do), ``img_shape`` and ``ori_shape``.
    Photographs have the values of the hosts' loader; the pixel scale is applied to rasters. Three
    settings of the hosts' loader are missing: ``imdecode_backend``, because the decoder is ours,
    ``color_type``, because networks take three channels, and ``ignore_empty``, because an
    unreadable image is an error.

    Args:
        pixel_scale: Path of an exported backbone or of a ``pixel_scale.json``, or the content of
            ``meta['pixel_scale']`` of an export. None stretches each raster by its own values.
        scale: Limits that replace ``pixel_scale``, see
            :class:`gersp_mm.images.pixels.PixelScale`.
        bands: Bands that replace those of ``pixel_scale``.
        backend_args: Storage of the files, see ``mmengine.fileio.get``.
        to_float32: Whether ``img`` is float32, with the same values from 0 to 255.

    Raises:
        UserError: The file does not exist or holds no pixel scale, or two settings contradict each
            other.
    """

    def __init__(
        self,
        pixel_scale: str | os.PathLike | Mapping[str, Any] | None = None,
        scale: Scale = PERCENTILE,
        bands: Sequence[int | str] | int | str | None = None,
        backend_args: dict | None = None,
        to_float32: bool = False,
    ) -> None:
        super().__init__()
        self.backend_args = backend_args
        self.to_float32 = to_float32
        if pixel_scale is not None and (bands is not None or scale != PERCENTILE):
            raise UserError("LoadImage: give pixel_scale, or scale and bands, and not both")
        asked = PixelScale(scale, bands)  # type: ignore[arg-type]
        self.pixel_scale = asked if pixel_scale is None else read_pixel_scale(pixel_scale)

    def transform(self, results: dict) -> dict:
        """Load ``results['img_path']``.

        Raises:
            BadImageError: See :func:`gersp_mm.images.decode.load_rgb`.
        """
        pixels = np.asarray(load_rgb(results["img_path"], self.backend_args, self.pixel_scale))
        kind = np.float32 if self.to_float32 else np.uint8
        results["img"] = np.ascontiguousarray(pixels[..., ::-1], kind)
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(pixel_scale={self.pixel_scale})"


def read_pixel_scale(given: str | os.PathLike | Mapping[str, Any]) -> PixelScale:
    """Return the pixel scale of a file or of a dict, see :class:`LoadImage`.

    Raises:
        UserError: The file does not exist or holds no pixel scale.
    """
    if isinstance(given, Mapping):
        content: Any = given
    elif not Path(given).is_file():
        raise UserError(f"pixel_scale={str(given)!r} is not a file. Correct the path.")
    elif str(given).endswith(".json"):
        try:
            content = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"pixel_scale={str(given)!r} cannot be read ({error}). Copy it again from the work "
                "directory of the pre-training, or name its exported backbone"
            ) from None
    else:
        content = stored_meta(given).get(PIXEL_SCALE)
    found = scale_of({PIXEL_SCALE: content})
    if found is None:
        raise UserError(
            f"pixel_scale={given!r} holds no pixel scale. Give the export of a pre-training on "
            "rasters, or the pixel_scale.json of its work directory"
        )
    return found


def stored_meta(path: str | os.PathLike) -> Mapping[str, Any]:
    """Return the meta of a local file of weights; empty if the file cannot be read."""
    with contextlib.suppress(Exception):  # The reader of the weights reports the error.
        meta = read_outline(path)["meta"]
        return meta if isinstance(meta, Mapping) else {}
    return {}


def scales_of(meta: Mapping[str, Any]) -> dict[str, PixelScale]:
    """Return the pixel scales in a file's meta by the name of the source.

    Checkpoints of a pre-training hold a scale for each source; exports and fine-tuned checkpoints
    hold the scale of the remote-sensing images.
    """
    content = meta.get(PIXEL_SCALE)
    if not isinstance(content, Mapping):
        return {}
    named = {REMOTE_SENSING: content} if "scale" in content else content
    found = {name: PixelScale.stored(scale) for name, scale in named.items()}
    return {name: scale for name, scale in found.items() if scale}


def scale_of(meta: Mapping[str, Any]) -> PixelScale | None:
    """Return the pixel scale of remote-sensing images in a file's meta."""
    return scales_of(meta).get(REMOTE_SENSING)


def use_pixel_scale(cfg: Any, scale: PixelScale | None) -> None:
    """Make every pipeline of a config load its images with a pixel scale.

    The hosts' loaders and those of an earlier call are replaced. A :class:`LoadImage` in the config
    itself stays, so that :func:`require_same_scale` can compare it. A loader with values of
    ``color_type``, ``ignore_empty`` or ``file_client_args`` that ours does not support stays too.

    Args:
        cfg: A config or a part of one, changed in place.
        scale: The scale; None restores the hosts' loaders that an earlier call replaced.
    """
    for transform in loaders(cfg):
        if transform["type"] == LOADER:
            given = transform.get(PIXEL_SCALE)
            replaced = given.get(INSTEAD) if isinstance(given, Mapping) else None
        else:
            same = all(transform.get(key, value) == value for key, value in OUR_WAY.items())
            replaced = str(transform["type"]) if same else None
        if replaced is None:
            continue
        kept = {key: value for key, value in transform.items() if key in CARRIED}
        transform.clear()
        if scale is None:
            transform.update(type=replaced, **kept)
        else:
            content = dict(scale.as_dict(), **{INSTEAD: replaced})
            transform.update(type=LOADER, pixel_scale=content, **kept)


def used_scale(cfg: Any) -> PixelScale | None:
    """Return the pixel scale with which a config trains; None with the hosts' loaders."""
    found = list(loaders(cfg.get("train_dataloader"))) or list(loaders(cfg))
    scales = (_scale_of_loader(loader) for loader in found if loader["type"] == LOADER)
    return next(scales, None)


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
    """Refuse a config whose pipelines scale rasters in another way than a file's network expects.

    Args:
        cfg: The config.
        meta: ``meta`` of the file.
        path: The file, for messages.

    Returns:
        A warning if the pixel scale of the file would not be applied to rasters, else None.

    Raises:
        UserError: A pipeline has other limits or bands for a kind of raster, or none.
    """
    expected = scale_of(meta)
    if expected is None:
        return None
    line = f"dict(type='{LOADER}', pixel_scale={path!r})"
    plain = False
    for transform in loaders(cfg):
        if transform["type"] != LOADER:
            plain = True
            continue
        own = _scale_of_loader(transform)
        if kind := _difference(expected, own):
            raise UserError(
                f"{path} was trained on {_words(expected, kind)}, but a {LOADER} of the config "
                f"has {_words(own, kind)}. Write {line} in its place"
            )
    if plain and not (expected.limits and all(kind.endswith("uint8") for kind in expected.limits)):
        return (
            f"{path} was trained on rasters ({', '.join(expected.limits)}). Where the images here "
            f"are rasters too, load them by {line}"
        )
    return None


def require_same_sources(dataset: Any, meta: Mapping[str, Any], path: str) -> None:
    """Refuse a pre-training that reads rasters in another way than the file it starts from.

    Args:
        dataset: A :class:`gersp_mm.PairedDataset` with the pixel scales of its sources.
        meta: ``meta`` of the file.
        path: The file, for messages.

    Raises:
        UserError: A source has other limits or bands for a kind of raster.
    """
    for name, expected in scales_of(meta).items():
        source = getattr(dataset, name, None)
        if source is None or not hasattr(source, "asked_scale"):
            continue
        own = source.pixel_scale
        kind = _difference(expected, own) if own.limits else None
        if kind is None:
            continue
        key = f"train_dataloader.dataset.{name}"
        pairs = [list(pair) for pair in expected.limits_of(kind) or ()]
        given = pairs if pairs[1:] != pairs[:-1] else pairs[0]
        bands = None if expected.bands is None else list(expected.bands)
        raise UserError(
            f"{path} was trained on {_words(expected, kind)}, but {key} has {_words(own, kind)}. "
            f"Set {key}.scale={given} and {key}.bands={bands}"
        )


def _scale_of_loader(transform: Mapping[str, Any]) -> PixelScale:
    given = transform.get(PIXEL_SCALE)
    if given is not None:
        return read_pixel_scale(given)
    return PixelScale(transform.get("scale", PERCENTILE), transform.get("bands"))


def _difference(expected: PixelScale, own: PixelScale) -> str | None:
    """Return a kind of raster that two scales read differently.

    A kind that only one scale knows is not a difference: an image of that kind is refused when it
    is read.
    """
    for kind in {**expected.limits, **own.limits} or ("rasters",):
        wanted, found = expected.limits_of(kind), own.limits_of(kind)
        if (wanted is None and expected.limits) or (found is None and own.limits):
            continue
        if (wanted is None) != (found is None) or expected.bands != own.bands:
            return kind
        if wanted is not None and found is not None and not np.allclose(wanted, found):
            return kind
    return None


def _words(scale: PixelScale, kind: str) -> str:
    limits = scale.limits_of(kind)
    known = "no limits, which stretches each image by its own values"
    known = known if limits is None else f"limits {[list(pair) for pair in limits]}"
    return f"{kind} with bands={scale.bands} and {known}"
