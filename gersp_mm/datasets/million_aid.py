"""Unlabelled remote-sensing images: Million-AID, or any folder of your own."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.dataset import force_full_init
from mmpretrain.datasets import CustomDataset

from gersp_mm.datasets.image_io import IMAGE_EXTENSIONS
from gersp_mm.datasets.packed import DATABASE, LISTING
from gersp_mm.registry import DATASETS
from gersp_mm.utils.errors import UserError


@DATASETS.register_module()
class MillionAID(CustomDataset):
    """Images without labels, from a folder (flat or nested, searched recursively) or a list.

    GeRSP pre-trains on the 990,848 unlabelled images of Million-AID's test split
    (``data/million_aid/test/P*.jpg``); a folder of your own works just as well::

        remote_sensing=dict(type='gersp_mm.MillionAID', data_root='/my/images')

    A folder that ``tools/dataset_converters/pack_images.py`` packed is read through the list in it.

    The order is the sorted order of the paths, so it is the same on every machine.

    Args:
        data_root: folder of the images.
        ann_file: optional text file with one image path a line, relative to ``data_root`` (or to
            ``data_prefix`` inside it). A relative ``ann_file`` is looked for in ``data_root``.
        extensions: file-name endings to look for, in any case.
        **kwargs: see mmpretrain's ``CustomDataset``.

    Raises:
        UserError: the folder or list does not exist or holds no image.
    """

    ann_file: str
    data_list: list[str]

    def __init__(
        self,
        data_root: str,
        ann_file: str = "",
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
        **kwargs: Any,
    ) -> None:
        kwargs["with_label"] = False
        super().__init__(data_root=data_root, ann_file=ann_file, extensions=extensions, **kwargs)

    @property
    def folder(self) -> str:
        """What the paths of the images are relative to."""
        return self.img_prefix or self.data_root

    def load_data_list(self) -> list[str]:
        """Return the path of every image, relative to :attr:`folder`."""
        folder = self.folder
        if not self.ann_file and osp.isdir(osp.join(folder, DATABASE)):
            self.ann_file = osp.join(folder, LISTING)
        source = self.ann_file or folder
        if not (fileio.exists(source) if self.ann_file else fileio.isdir(source)):
            raise UserError(
                f"{source} is no {'list' if self.ann_file else 'folder'}: set data_root of the "
                "remote-sensing images to a folder of images"
                + (" and ann_file to a list inside it" if self.ann_file else "")
            )
        if self.ann_file:
            lines = map(str.strip, fileio.list_from_file(self.ann_file, encoding="utf-8-sig"))
            paths = [line for line in lines if line]
        else:
            files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
            paths = sorted(name for name in files if self.is_valid_file(name))
        if not paths:
            endings = " ".join(self.extensions) if not self.ann_file else "one path a line"
            raise UserError(f"{source} holds no image (looked for: {endings})")
        return paths

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return ``dict(img_path=..., sample_idx=...)`` of one image."""
        idx = range(len(self))[idx]
        if self.serialize_data:
            start = self.data_address[idx - 1] if idx else 0
            path = os.fsdecode(self.data_bytes[start : self.data_address[idx]].tobytes())
        else:
            path = self.data_list[idx]
        return dict(img_path=osp.join(self.folder, path), sample_idx=idx)

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all paths in one array of bytes, and where each ends: MMEngine's own layout.

        MMEngine pickles a dict an image, which takes several times the time and memory.
        """
        encoded = [os.fsencode(path) for path in self.data_list]
        self.data_list = []
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return np.frombuffer(b"".join(encoded), np.uint8), ends
