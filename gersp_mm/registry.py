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

MODEL_WRAPPERS = root.Registry(
    "model wrapper", parent=root.MODEL_WRAPPERS, scope=SCOPE, locations=["gersp_mm.engine.parallel"]
)
MODELS = root.Registry("model", parent=root.MODELS, scope=SCOPE, locations=["gersp_mm.models"])
DATASETS = root.Registry(
    "dataset", parent=root.DATASETS, scope=SCOPE, locations=["gersp_mm.datasets"]
)
DATA_SAMPLERS = root.Registry(
    "data sampler", parent=root.DATA_SAMPLERS, scope=SCOPE, locations=["gersp_mm.datasets"]
)
TRANSFORMS = root.Registry(
    "transform",
    parent=root.TRANSFORMS,
    scope=SCOPE,
    locations=["gersp_mm.augmentation", "gersp_mm.datasets"],
)
FUNCTIONS = root.Registry(
    "function", parent=root.FUNCTIONS, scope=SCOPE, locations=["gersp_mm.datasets"]
)
HOOKS = root.Registry(
    "hook",
    parent=root.HOOKS,
    scope=SCOPE,
    locations=["gersp_mm.engine.hooks", "gersp_mm.visualization.predictions"],
)
LOOPS = root.Registry(
    "loop",
    parent=root.LOOPS,
    scope=SCOPE,
    locations=["gersp_mm.engine.loop", "gersp_mm.evaluation.frozen"],
)
METRICS = root.Registry(
    "metric", parent=root.METRICS, scope=SCOPE, locations=["gersp_mm.evaluation.submission"]
)
OPTIM_WRAPPERS = root.Registry(
    "optimizer wrapper",
    parent=root.OPTIM_WRAPPERS,
    scope=SCOPE,
    locations=["gersp_mm.engine.optim"],
)
OPTIM_WRAPPER_CONSTRUCTORS = root.Registry(
    "optimizer wrapper constructor",
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=["gersp_mm.engine.optim"],
)
VISBACKENDS = root.Registry(
    "vis_backend", parent=root.VISBACKENDS, scope=SCOPE, locations=["gersp_mm.engine.trackers"]
)
