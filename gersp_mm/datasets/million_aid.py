"""Unlabelled remote-sensing images: Million-AID, or any folder of your own."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Any

from mmengine import fileio
from mmpretrain.datasets import CustomDataset

from gersp_mm.datasets.image_io import IMAGE_EXTENSIONS
from gersp_mm.registry import DATASETS
from gersp_mm.utils.errors import UserError


@DATASETS.register_module()
class MillionAID(CustomDataset):
    """Images without labels, from a folder (flat or nested, searched recursively) or a list.

    GeRSP pre-trains on the 990,848 unlabelled images of Million-AID's test split
    (``data/million_aid/test/P*.jpg``); a folder of your own works just as well::

        remote_sensing=dict(type='gersp_mm.MillionAID', data_root='/my/images')

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

    def __init__(
        self,
        data_root: str,
        ann_file: str = "",
        extensions: Sequence[str] = IMAGE_EXTENSIONS,
        **kwargs: Any,
    ) -> None:
        kwargs["with_label"] = False
        super().__init__(data_root=data_root, ann_file=ann_file, extensions=extensions, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return ``[dict(img_path=...), ...]``."""
        folder = self.img_prefix or self.data_root
        source = self.ann_file or folder
        if not (fileio.exists(source) if self.ann_file else fileio.isdir(source)):
            raise UserError(
                f"{source} is no {'list' if self.ann_file else 'folder'}: set data_root of the "
                "remote-sensing images to a folder of images"
                + (" and ann_file to a list inside it" if self.ann_file else "")
            )
        if self.ann_file:
            lines = map(str.strip, fileio.list_from_file(self.ann_file, encoding="utf-8-sig"))
            data_list = [dict(img_path=osp.join(folder, line)) for line in lines if line]
        else:
            files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
            names = sorted(name for name in files if self.is_valid_file(name))
            data_list = [dict(img_path=osp.join(folder, name)) for name in names]
        if not data_list:
            endings = " ".join(self.extensions) if not self.ann_file else "one path a line"
            raise UserError(f"{source} holds no image (looked for: {endings})")
        return data_list
