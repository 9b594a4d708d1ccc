"""GeRSP pre-training of remote sensing backbones, as an MMEngine plugin.

Importing this package is cheap and works in an incomplete environment: it looks at the versions of
the libraries it stands on and loads none of them. Every registered type is an attribute, which
arrives with its first use, as in ``gersp_mm.GeRSP``; where a library is absent, this says which.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from .ops.install import install as _install_operators
from .utils.multimodal import leave_out_multimodal_models as _leave_out_multimodal_models
from .utils.stray_lines import keep_stray_lines_away as _keep_stray_lines_away
from .version import CORE, DISTRIBUTIONS, SUPPORTED, __version__, version_key

# Public names that are not registered types, with the module of each.
_FUNCTIONS = {
    "ExportedBackbone": "backbones",
    "FeatureExtractor": "evaluation.feature_extractor",
    "export_backbone": "backbones",
    "load_backbone": "backbones",
}


@cache
def _registered() -> dict[str, Any]:
    """Return every type of the registries by its name; this imports their modules."""
    types: dict[str, Any] = {}
    for registry in vars(import_module(".registry", __name__)).values():
        if getattr(registry, "scope", None) == __name__:
            registry.import_from_location()
            types.update(registry.module_dict)
    return types


def _installed_version(module: str) -> str | None:
    for distribution in DISTRIBUTIONS[module]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _check_neighbours() -> None:
    """Warn about versions of our libraries that nobody tested."""
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
    if name in _FUNCTIONS:
        return getattr(import_module(f".{_FUNCTIONS[name]}", __name__), name)
    if name == "__all__":
        return ["__version__", *_FUNCTIONS, *_registered()]
    # `from gersp_mm import resources` asks for a submodule here before it imports that.
    looked_up = not name.startswith("_") and find_spec(f"{__name__}.{name}") is None
    if looked_up and name in _registered():
        return _registered()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS, *_registered()})


_check_neighbours()
_install_operators()
_leave_out_multimodal_models()
_keep_stray_lines_away()
