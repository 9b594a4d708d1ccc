"""Images of a folder or list: unlabelled (Million-AID or own images) and labelled (ImageNet)."""

from __future__ import annotations

import functools
import os
import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.dataset import force_full_init
from mmengine.logging import MMLogger
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.custom import find_folders

from gersp_mm.images.listing import (
    IMAGE_EXTENSIONS,
    ImageList,
    find_classes,
    find_images,
    is_passed_over,
    require_entries,
)
from gersp_mm.images.packed import DATABASE, LABELLED_LISTING, LISTING
from gersp_mm.images.pixels import PERCENTILE, PixelScale, Scale, check_nodata
from gersp_mm.images.scaling import find_scale
from gersp_mm.registry import DATASETS
from gersp_mm.utils.errors import UserError, listed


@DATASETS.register_module()
class MillionAID(CustomDataset):
    """Images without labels, from a folder (flat or nested, searched recursively) or a list.

    GeRSP pre-trains on the 990,848 unlabelled images of Million-AID's test split
    (``data/million_aid/test/P*.jpg``). Any other folder works too::

        remote_sensing=dict(type='gersp_mm.MillionAID', data_root='/my/images')

    A folder that ``gersp prepare pack`` packed is read by its list. Hidden and
    system files and folders are skipped, see :func:`gersp_mm.images.listing.find_images`. The
    images are sorted by path, so that their order is the same on every machine.

    Args:
        data_root: Folder of the images.
        ann_file: Text file with one image path per line, relative to ``data_root`` (or to
            ``data_prefix`` inside it). A relative ``ann_file`` lies in ``data_root``.
        extensions: File-name endings to look for, in any case.
        scale: How the values of rasters become grey levels, see
            :class:`gersp_mm.images.pixels.PixelScale`. Photographs are not scaled.
        bands: Bands of rasters that become red, green and blue; see ``PixelScale``.
        nodata: A value that stands for no data in rasters that do not declare one; ``'auto'``
            takes the value of a large constant border and warns; None uses only declared values.
        **kwargs: Further arguments of mmpretrain's ``CustomDataset``.

    Raises:
        UserError: The folder or list does not exist or holds no image, or ``scale``, ``bands`` or
            ``nodata`` is wrong.
    """

    ann_file: str
    data_list: list[str]
    labelled = False
    listing = LISTING  # name of the list in a packed folder

    def __init__(
        self,
        data_root: str,
        ann_file: str = "",
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
        scale: Scale = PERCENTILE,
        bands: Sequence[int | str] | int | str | None = None,
        nodata: float | str | None = "auto",
        **kwargs: Any,
    ) -> None:
        check_nodata(type(self).__name__, nodata)
        self.nodata = nodata
        kwargs["with_label"] = self.labelled
        self.asked_scale = PixelScale(scale, bands)  # type: ignore[arg-type]
        super().__init__(data_root=data_root, ann_file=ann_file, extensions=extensions, **kwargs)

    @property
    def folder(self) -> str:
        """The folder to which the paths of the images are relative."""
        return self.img_prefix or self.data_root

    @functools.cached_property
    def pixel_scale(self) -> PixelScale:
        """The pixel scale of the rasters, found on a sample of the images when it is first needed.

        Raises:
            UserError: See :func:`gersp_mm.images.scaling.find_scale`.
        """
        return find_scale(
            self.folder,
            len(self),
            lambda index: self.get_data_info(index)["img_path"],
            self.asked_scale,
            nodata=self.nodata,
        )

    def load_data_list(self) -> list[str]:
        """Return the path of every image, relative to :attr:`folder`."""
        return self._listed() or self._found()

    def _listed(self) -> list[str]:
        """Return the entries of the list; empty if the source is a folder without a list."""
        folder = self.folder
        if not self.ann_file and osp.isdir(osp.join(folder, DATABASE)):
            self.ann_file = osp.join(folder, self.listing)
        source = self.ann_file or folder
        if not (fileio.exists(source) if self.ann_file else fileio.isdir(source)):
            option = f"train_dataloader.dataset.{'natural' if self.labelled else 'remote_sensing'}"
            raise UserError(
                f"{source} is not a {'list' if self.ann_file else 'folder'}. "
                f"Set {option}.data_root to a folder of images"
                + (f" and {option}.ann_file to a list inside it" if self.ann_file else "")
                + (", or train without natural images: model.natural_head=None "
                   f"{option}=None" if self.labelled else "") + "."
            )  # fmt: skip
        if not self.ann_file:
            return []
        images = ImageList.read(self.ann_file, folder, self.labelled)
        if not images.paths:
            form = "`path label` lines" if self.labelled else "one path per line"
            raise UserError(f"{source} holds no image (looked for: {form})")
        if not osp.isdir(osp.join(folder, DATABASE)):
            require_entries(source, images.paths, folder)
        if images.labels is None:
            return images.paths
        return [f"{path} {label}" for path, label in zip(images.paths, images.labels)]

    def _found(self) -> list[str]:
        """Return the images in the folder."""
        paths = find_images(self.folder, self.extensions)
        if not paths:
            raise self._no_image()
        return paths

    def _no_image(self) -> UserError:
        endings = " ".join(self.extensions)
        return UserError(f"{self.folder} holds no image (looked for: {endings})")

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return ``dict(img_path=..., sample_idx=...)`` of one image."""
        idx = range(len(self))[idx]
        return dict(img_path=osp.join(self.folder, self._entry(idx)), sample_idx=idx)

    def _entry(self, idx: int) -> str:
        if not self.serialize_data:
            return self.data_list[idx]
        start = self.data_address[idx - 1] if idx else 0
        return os.fsdecode(self.data_bytes[start : self.data_address[idx]].tobytes())

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all paths in one array of bytes and the end of each, in MMEngine's own layout.

        MMEngine pickles a dict per image, which takes several times the time and memory.
        """
        encoded = [os.fsencode(path) for path in self.data_list]
        self.data_list = []
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return np.frombuffer(b"".join(encoded), np.uint8), ends


@DATASETS.register_module()
class LabelledImages(MillionAID):
    """Images with labels, as in mmpretrain's ``CustomDataset``, for millions of images.

    The source is a folder with one sub-folder per class, a list of ``path label`` lines, or a
    folder that ``gersp prepare pack`` packed. Images, labels and order are
    those of ``CustomDataset``, at a fraction of its time and memory.

    Args:
        data_root: Folder of the images.
        ann_file: List of the images, see :class:`MillionAID`.
        extensions: File-name endings to look for, in any case.
        **kwargs: Further arguments of :class:`MillionAID` and of mmpretrain's ``CustomDataset``.

    Raises:
        UserError: The folder or list does not exist or holds no image, or a line has no label.
    """

    labelled = True
    listing = LABELLED_LISTING

    def _found(self) -> list[str]:
        classes = find_classes(self.folder, self.extensions)
        if not any(classes.values()):
            raise self._no_image()
        given = self.CLASSES
        if given is not None and len(given) != len(classes):
            raise UserError(
                f"{self.folder} has {len(classes)} class folders ({listed(list(classes))}), and "
                f"metainfo.classes names {len(given)} classes. Make both the same, or leave "
                "metainfo.classes out."
            )
        if given is None:
            self._metainfo["classes"] = tuple(classes)
        self.folder_to_idx = {name: label for label, name in enumerate(classes)}
        if empty := [name for name, paths in classes.items() if not paths]:
            MMLogger.get_current_instance().warning(
                f"{self.folder}: {len(empty)} class folders hold no image: {listed(empty)}"
            )
        return [f"{path} {label}" for label, paths in enumerate(classes.values()) for path in paths]

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return ``dict(img_path=..., gt_label=..., sample_idx=...)`` of one image."""
        idx = range(len(self))[idx]
        path, _, label = self._entry(idx).rpartition(" ")
        return dict(img_path=osp.join(self.folder, path), gt_label=int(label), sample_idx=idx)

    @force_full_init
    def get_gt_labels(self) -> np.ndarray:
        """Return the label of every image, int64."""
        labels = (self._entry(idx).rpartition(" ")[2] for idx in range(len(self)))
        return np.fromiter(map(int, labels), np.int64, len(self))

    def count_classes(self) -> int:
        """Return the number of classes, without listing the images of a folder."""
        if self.CLASSES is not None:
            return len(self.CLASSES)
        labels = (entry.rpartition(" ")[2] for entry in self._listed())
        count = max(map(int, labels), default=-1) + 1
        return count or sum(not is_passed_over(name) for name in find_folders(self.folder)[0])

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the label of one image as a list, as MMEngine's wrappers need it."""
        return [self.get_data_info(idx)["gt_label"]]
