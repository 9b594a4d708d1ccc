"""The dataset of pairs of one remote-sensing image and one natural image."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmpretrain.registry import DATASETS as HOST_DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset, get_worker_info

from gersp_mm.datasets.pipelines import Pipeline
from gersp_mm.datasets.reading import BadImage, DecodedImages
from gersp_mm.datasets.sampler import PairIndex
from gersp_mm.images.decode import load_pixels
from gersp_mm.registry import DATASETS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything


@DATASETS.register_module()
class PairedDataset(Dataset):
    """Pairs of two views of one remote-sensing image and one labelled natural image.

    Each file is decoded once; ``rs_pipeline`` then runs twice on the decoded image. A sample of
    :class:`PairedSampler` depends only on its :class:`PairIndex`, not on the number of workers or
    on earlier samples.

    An unreadable image is replaced by the next one of its source and named in the sample's
    ``bad_images``, which :class:`gersp_mm.BadImageHook` counts and lists.

    Args:
        remote_sensing: Config of a dataset of mmpretrain's kind (``gersp_mm.MillionAID``), or
            None to train the natural-image branch alone.
        natural: Config of a labelled dataset of mmpretrain's kind (``ImageNet``,
            ``CustomDataset``), or None to train the contrastive branch alone.
        rs_pipeline: Transforms of one remote-sensing view. They get ``img``, a PIL RGB image (or,
            if the first transform has ``takes_tensor``, a 3×H×W uint8 tensor that they must not
            change), and replace it by a 3×H×W uint8 tensor, a PIL image or an H×W×3 RGB array.
            Their ``draw`` is passed to the data preprocessor.
        natural_pipeline: Transforms of the natural image, of the same form.
        cache_images: Number of decoded images that every worker process keeps in memory, for small
            data sets that are read many times.

    Raises:
        UserError: Both sources are None, a source cannot be listed, the natural images have no
            labels, the result of a pipeline has another form, or too many images in a row are
            unreadable.
    """

    def __init__(
        self,
        remote_sensing: dict | None = None,
        natural: dict | None = None,
        rs_pipeline: Sequence[dict] = (),
        natural_pipeline: Sequence[dict] = (),
        cache_images: int = 0,
    ) -> None:
        if remote_sensing is None and natural is None:
            raise UserError("PairedDataset needs remote_sensing, natural or both")
        check_number("cache_images", cache_images, 0, whole=True, such_as=0)
        self.remote_sensing = _build_source("remote_sensing", remote_sensing)
        self.natural = _build_source("natural", natural)
        self.rs_pipeline = Pipeline("rs_pipeline", rs_pipeline)
        self.natural_pipeline = Pipeline("natural_pipeline", natural_pipeline)
        self._cached: OrderedDict[tuple[int, str], torch.Tensor] = OrderedDict()
        self.cache_images = cache_images
        # DeviceImagesHook replaces these readers.
        self.readers: dict[str, Any] = {}
        for name in ("remote_sensing", "natural"):
            if (source := getattr(self, name)) is not None:
                decode = functools.partial(self._decode, source)
                # Windows of scenes are read by their source.
                read = getattr(source, "read_window", decode)
                self.readers[name] = DecodedImages(name, source, read)
        if self.natural is not None and "gt_label" not in self.natural.get_data_info(0):
            raise UserError(
                f"the natural images ({type(self.natural).__name__}) have no gt_label. Use a "
                "labelled dataset: one sub-folder per class, or a list of `path label` lines."
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of remote-sensing and of natural images; 0 for a source that is None."""
        return _size(self.remote_sensing), _size(self.natural)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the natural images, with their classes."""
        return {} if self.natural is None else self.natural.metainfo

    def __len__(self) -> int:
        return max(self.sizes)

    def __getitem__(self, index: PairIndex | Sequence[int] | int) -> dict[str, Any]:
        """Return ``dict(inputs=dict(rs_query, rs_key, natural), data_samples=DataSample)``.

        The images are uint8 tensors, 3×H×W RGB; if the device finishes them, ``draw`` holds the
        random draws of each view. A plain number gives the pair of images with that number in
        each source, augmented with the global random state.
        """
        if isinstance(index, (int, np.integer)):
            number = range(len(self))[index]
            rs_index, natural_index = (number % max(size, 1) for size in self.sizes)
            return self._load(rs_index, natural_index)
        pair = PairIndex(*index)
        # The dataset must not change the random states of the main process.
        guard = preserved_rng_state() if get_worker_info() is None else contextlib.nullcontext()
        with guard:
            seed_everything(pair.seed, cpu_only=True)
            return self._load(pair.remote_sensing, pair.natural)

    def _load(self, rs_index: int, natural_index: int) -> dict[str, Any]:
        for pipeline in (self.rs_pipeline, self.natural_pipeline):
            pipeline.seed_generators()
        views: dict[str, dict[str, Any]] = {}
        sample = DataSample()
        bad: list[BadImage] = []
        if self.remote_sensing is not None:
            results = self.readers["remote_sensing"].read(rs_index, bad)
            views["rs_query"] = self.rs_pipeline.view(results)
            if "key_img" in results:  # a neighbouring window
                results["img"] = results.pop("key_img")
            views["rs_key"] = self.rs_pipeline.view(results)
            sample.set_field(results["img_path"], "rs_path", field_type="metainfo")
        if self.natural is not None:
            results = self.readers["natural"].read(natural_index, bad)
            views["natural"] = self.natural_pipeline.view(results)
            sample.set_gt_label(results["gt_label"])
            sample.set_field(results["img_path"], "natural_path", field_type="metainfo")
        sample.set_field(bad, "bad_images", field_type="metainfo")
        inputs = {name: view["img"] for name, view in views.items()}
        loaded = dict(inputs=inputs, data_samples=sample)
        if draws := {name: view["draw"] for name, view in views.items() if "draw" in view}:
            loaded["draw"] = draws
        return loaded

    def _decode(self, source: Any, info: dict[str, Any]) -> dict[str, Any]:
        path = info["img_path"]
        key = id(source), path  # Two sources may read the same raster with different scales.
        if key in self._cached:
            self._cached.move_to_end(key)
            return dict(img=self._cached[key])
        image = load_pixels(path, scale=getattr(source, "pixel_scale", None))
        if self.cache_images:
            self._cached[key] = image
            if len(self._cached) > self.cache_images:
                self._cached.popitem(last=False)
        return dict(img=image)


def _build_source(name: str, cfg: dict | None) -> Any:
    if not isinstance(cfg, dict):
        return cfg
    try:
        return HOST_DATASETS.build(cfg)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # raised by mmpretrain's datasets
        raise UserError(
            f"the images of dataset.{name} cannot be listed ({error}). Check its data_root "
            f"{cfg.get('data_root', '')!r} and ann_file {cfg.get('ann_file', '')!r}."
        ) from error


def _size(source: Any) -> int:
    return 0 if source is None else len(source)
