"""Version of gersp_mm and the versions of its neighbours it was written for and tested with.

Standard library only: ``setup.py`` and ``tools/check_env.py`` read this file by its path, before
anything is installed.
"""

from __future__ import annotations

import re

__version__ = "0.1.0"

#: import name -> (oldest version that can work, newest version the tests ran with).
#: ``requirements/*.txt`` repeat these numbers with the reason for each; a test compares them.
SUPPORTED: dict[str, tuple[str, str]] = {
    "torch": ("2.1", "2.11.0"),
    "torchvision": ("0.16", "0.26.0"),
    "mmengine": ("0.10.0", "0.10.12"),
    "mmcv": ("2.0.0", "2.3.6"),
    "mmpretrain": ("1.2.0", "1.3.6"),
    "mmdet": ("3.0.0", "3.5.1"),
    "mmrotate": ("1.0.0rc1", "1.2.1"),
    "mmseg": ("1.0.0", "1.4.2"),
}

#: What ``import gersp_mm`` cannot do without.
CORE = ("torch", "torchvision", "mmengine", "mmcv", "mmpretrain")

#: import name -> distributions that provide it: the maintained fork first (it is what we install),
#: then the original OpenMMLab names.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "mmengine": ("onedl-mmengine", "mmengine", "mmengine-lite"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmpretrain": ("onedl-mmpretrain", "mmpretrain"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
    "mmrotate": ("onedl-mmrotate", "mmrotate"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
}


def version_key(version: str) -> tuple[int, ...]:
    """Release numbers of a version, for comparing: ``'2.11.0+cu130'`` -> ``(2, 11, 0)``.

    Suffixes (``rc1``, ``+cpu``, ``.dev0``) are dropped and trailing zeros are padded to three
    places, so that ``'2.1'`` equals ``'2.1.0'``. A string without a leading number gives zeros.
    """
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    return tuple(numbers + [0] * (3 - len(numbers)))
