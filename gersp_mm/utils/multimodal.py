"""Import mmpretrain next to transformers 5."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from gersp_mm.version import version_key

MODELS = "mmpretrain.models"


class _Finder(MetaPathFinder):
    """Switches mmpretrain's multimodal models off when its models are about to be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == MODELS:
            vars(import_module("mmpretrain.utils.dependency"))["WITH_MULTIMODAL"] = False
        return None


def leave_out_multimodal_models() -> None:
    """Keep mmpretrain importable where transformers is version 5 or newer.

    Where transformers and pycocotools are installed, mmpretrain imports its language models, which
    use functions that transformers 5 removed, and all of ``mmpretrain.models`` fails. Without them
    mmpretrain registers placeholders, which raise an error as soon as one of these models is built.
    """
    try:
        installed = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return
    if version_key(installed) >= version_key("5") and MODELS not in sys.modules:
        sys.meta_path.insert(0, _Finder())
