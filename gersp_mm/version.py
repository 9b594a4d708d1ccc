"""Version of gersp_mm and the versions of its neighbours it was written for and tested with.

The neighbours come from ``requirements/stacks.json``, the one table of the two OpenMMLab families.
Standard library only: ``setup.py`` and ``tools/check_env.py`` read this file by its path, before
anything is installed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _table() -> dict[str, Any]:
    """Return the table of stacks, of an installed wheel or of a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / ".mim", package.parent):
        path = folder / "requirements" / "stacks.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise FileNotFoundError(
        f"requirements/stacks.json is missing beside {package}: this copy of gersp_mm is incomplete"
    )


_TABLE = _table()

#: The families of OpenMMLab: name -> title, packages, limits; the first is what gets installed.
STACKS: dict[str, dict[str, Any]] = _TABLE["stacks"]

#: What holds whatever the family: rows of ``if``, ``then`` (requirements) and ``why``.
RULES: list[dict[str, str]] = _TABLE["rules"]

#: What gersp_mm cannot do without.
CORE = ("torch", "torchvision", "mmengine", "mmcv", "mmpretrain")


def version_key(version: str) -> tuple[int, ...]:
    """Release numbers of a version, for comparing: ``'2.11.0+cu130'`` -> ``(2, 11, 0)``.

    Suffixes (``rc1``, ``+cpu``, ``.dev0``) are dropped and trailing zeros are padded to three
    places, so that ``'2.1'`` equals ``'2.1.0'``. A string without a leading number gives zeros.
    """
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    return tuple(numbers + [0] * (3 - len(numbers)))


def _supported() -> dict[str, tuple[str, str]]:
    bounds: dict[str, list[str]] = {}
    for stack in STACKS.values():
        for name, row in stack["packages"].items():
            bounds.setdefault(name, []).extend((row["oldest"], row["tested"]))
    return {
        name: (min(found, key=version_key), max(found, key=version_key))
        for name, found in bounds.items()
    }


#: import name -> (oldest version that can work, newest version the tests ran with), of any family.
SUPPORTED = _supported()

#: import name -> distributions that provide it: the maintained fork first (it is what we install),
#: then the original OpenMMLab names.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    name: tuple(
        dict.fromkeys(
            distribution
            for stack in STACKS.values()
            for distribution in stack["packages"].get(name, {}).get("names", ())
        )
    )
    for name in SUPPORTED
}
