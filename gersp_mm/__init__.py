"""GeRSP pre-training of remote sensing backbones, as an MMEngine plugin.

Importing this package is cheap: it looks whether the libraries it stands on are installed and
loads none of them. The names below arrive with their first use, as in ``gersp_mm.GeRSP``.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from .version import CORE, DISTRIBUTIONS, SUPPORTED, __version__, version_key

# Where each public name is defined; tests/test_public_names.py compares it with the registries.
_LOCATIONS = {
    "augmentation": ["ViewAugmentation"],
    "backbones": ["export_backbone"],
    "datasets": [
        "LabelledImages", "MillionAID", "PairedDataset", "PairedSampler", "collate_pairs",
    ],
    "engine.hooks": [
        "AlphaScheduleHook", "AtomicCheckpointHook", "BadImageHook", "CheckpointCheckHook",
        "ClassCheckHook", "CollapseMonitorHook", "DeferredRuntimeInfoHook", "DeviceImagesHook",
        "ExportBackboneHook", "KNNEvalHook", "PreflightHook", "PretrainedCheckHook", "RNGStateHook",
        "TeacherUpdateHook",
    ],
    "engine.loop": ["ResumableIterTrainLoop", "ResumableTrainLoop"],
    "engine.optim": ["BFloat16OptimWrapper", "TrainableParamsConstructor"],
    "engine.parallel": ["CPUDistributedDataParallel"],
    "evaluation.feature_extractor": ["FeatureExtractor"],
    "evaluation.frozen": ["FrozenFeaturesLoop"],
    "evaluation.submission": ["LoveDASubmission"],
    "models": ["GeRSP", "InfoNCEHead", "PairedDataPreprocessor", "TwoViewDataPreprocessor"],
    "visualization.predictions": ["SegmentationPicturesHook"],
}  # fmt: skip
_LAZY = {name: module for module, names in _LOCATIONS.items() for name in names}

__all__ = ["__version__", *_LAZY]


def _installed_version(module: str) -> str | None:
    for distribution in DISTRIBUTIONS[module]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _check_neighbours() -> None:
    """Raise ImportError if a library we need is absent; warn about versions nobody tested."""
    missing = [module for module in CORE if find_spec(module) is None]
    if missing:
        pins = " ".join(f'"{DISTRIBUTIONS[name][0]}=={SUPPORTED[name][1]}"' for name in missing)
        raise ImportError(
            f"gersp_mm needs {', '.join(missing)}, which this Python does not have. "
            f"Install with: {sys.executable} -m pip install {pins}   "
            "(in a checkout: bash tools/setup_env.sh)"
        )
    for module in CORE:
        found = _installed_version(module)
        oldest, tested = SUPPORTED[module]
        if found is None:
            continue
        if version_key(found) > version_key(tested):
            warnings.warn(
                f"{module} {found} is newer than {tested}, the newest that gersp_mm {__version__} "
                "was tested with",
                stacklevel=3,
            )
        elif version_key(found) < version_key(oldest):
            warnings.warn(
                f"{module} {found} is older than {oldest}, the oldest that gersp_mm {__version__} "
                f"is written for; upgrade with: {sys.executable} -m pip install "
                f'"{DISTRIBUTIONS[module][0]}=={tested}"',
                stacklevel=3,
            )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


_check_neighbours()
