"""Registries of gersp_mm: children of MMEngine's root registries with the scope ``gersp_mm``.

A type written as ``gersp_mm.Name`` is found from the config of any OpenMMLab library without
``custom_imports``: MMEngine imports this module by its name, and a registry imports its
``locations`` at the first look-up. Keep this module free of heavy imports, because an
``ImportError`` raised in it would be swallowed by that look-up.
"""

import sys
from importlib.util import find_spec

from .version import CORE, STACKS, family, installed, judge


class MissingLibraryError(RuntimeError):
    """A library is absent; no ``ImportError``, which MMEngine's look-up would swallow."""


def require_libraries() -> None:
    """Raise a :class:`MissingLibraryError` with the remedy where a library we need is absent."""
    missing = [module for module in CORE if find_spec(module) is None]
    if missing:
        found = installed(sys.path)
        table = STACKS[family(found)]
        pins = " ".join(f'"{judge({"name": name}, table, found)["pin"]}"' for name in missing)
        raise MissingLibraryError(
            f"gersp_mm needs {', '.join(missing)}, which this Python does not have. "
            f"Install with: {sys.executable} -m pip install {pins}   "
            "(in a checkout: bash tools/setup_env.sh, then source .venv/bin/activate)"
        )


require_libraries()

from mmengine import registry as root  # noqa: E402

SCOPE = "gersp_mm"


def _child(name: str, *locations: str) -> root.Registry:
    """Return the child of a root registry, whose types are in these modules."""
    parent = getattr(root, name)
    places = [f"{SCOPE}.{location}" for location in locations]
    return root.Registry(parent.name, parent=parent, scope=SCOPE, locations=places)


MODEL_WRAPPERS = _child("MODEL_WRAPPERS", "engine.parallel")
MODELS = _child("MODELS", "models")
DATASETS = _child("DATASETS", "datasets")
DATA_SAMPLERS = _child("DATA_SAMPLERS", "datasets")
TRANSFORMS = _child("TRANSFORMS", "augmentation", "datasets")
FUNCTIONS = _child("FUNCTIONS", "datasets")
HOOKS = _child("HOOKS", "engine.hooks", "visualization.predictions")
LOOPS = _child("LOOPS", "engine.loop", "evaluation.frozen")
METRICS = _child("METRICS", "evaluation.submission")
OPTIM_WRAPPERS = _child("OPTIM_WRAPPERS", "engine.optim")
OPTIM_WRAPPER_CONSTRUCTORS = _child("OPTIM_WRAPPER_CONSTRUCTORS", "engine.optim")
VISBACKENDS = _child("VISBACKENDS", "engine.trackers")
