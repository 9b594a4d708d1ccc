"""GeRSP pre-training of remote sensing backbones, as an MMEngine plugin.

Importing this package is cheap and works in an incomplete environment: it looks at the versions of
the libraries it stands on and loads none of them. Every registered type is an attribute, which
arrives with its first use, as in ``gersp_mm.GeRSP``; where a library is absent, this says which.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from .ops.install import install as _install_operators
from .utils.multimodal import leave_out_multimodal_models as _leave_out_multimodal_models
from .utils.stray_lines import keep_stray_lines_away as _keep_stray_lines_away
from .version import CORE, DISTRIBUTIONS, STACKS, __version__, family, judge

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


def _installed() -> dict[str, str]:
    """Return the distributions of our libraries that are installed, with their versions."""
    found = {}
    for distribution in (name for module in CORE for name in DISTRIBUTIONS[module]):
        with suppress(metadata.PackageNotFoundError):
            found[distribution] = metadata.version(distribution)
    return found


def _check_neighbours() -> None:
    """Warn about versions of our libraries that nobody tested."""
    found = _installed()
    table = STACKS[family(found)]
    for row in [judge({"name": module}, table, found) for module in CORE]:
        said = f"{row['name']} {row['version']} is {row['note']} with gersp_mm {__version__}"
        if row["state"] == "wrong":
            said = (
                f"{row['name']} {row['version']} is older than "
                f"{table['packages'][row['name']]['oldest']}, the oldest that gersp_mm "
                f"{__version__} is written for; upgrade with: {sys.executable} -m pip install "
                f'"{row["pin"]}"'
            )
        if row["note"]:
            warnings.warn(said, stacklevel=3)


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
