"""Registries of gersp_mm: children of MMEngine's root registries with the scope ``gersp_mm``.

A type written as ``gersp_mm.Name`` is found from the config of any OpenMMLab library without
``custom_imports``: MMEngine imports this module by its name, and a registry imports its
``locations`` at the first look-up. Keep this module free of heavy imports, because an
``ImportError`` raised in it would be swallowed by that look-up.
"""

from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODEL_WRAPPERS as ROOT_MODEL_WRAPPERS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

SCOPE = "gersp_mm"

MODEL_WRAPPERS = Registry(
    "model wrapper", parent=ROOT_MODEL_WRAPPERS, scope=SCOPE, locations=["gersp_mm.engine.parallel"]
)
MODELS = Registry("model", parent=ROOT_MODELS, scope=SCOPE, locations=["gersp_mm.models"])
DATASETS = Registry("dataset", parent=ROOT_DATASETS, scope=SCOPE, locations=["gersp_mm.datasets"])
DATA_SAMPLERS = Registry(
    "data sampler", parent=ROOT_DATA_SAMPLERS, scope=SCOPE, locations=["gersp_mm.datasets"]
)
TRANSFORMS = Registry(
    "transform",
    parent=ROOT_TRANSFORMS,
    scope=SCOPE,
    locations=["gersp_mm.augmentation", "gersp_mm.datasets"],
)
FUNCTIONS = Registry(
    "function", parent=ROOT_FUNCTIONS, scope=SCOPE, locations=["gersp_mm.datasets"]
)
HOOKS = Registry(
    "hook",
    parent=ROOT_HOOKS,
    scope=SCOPE,
    locations=["gersp_mm.engine.hooks", "gersp_mm.visualization.predictions"],
)
LOOPS = Registry(
    "loop",
    parent=ROOT_LOOPS,
    scope=SCOPE,
    locations=["gersp_mm.engine.loop", "gersp_mm.evaluation.frozen"],
)
METRICS = Registry(
    "metric", parent=ROOT_METRICS, scope=SCOPE, locations=["gersp_mm.evaluation.submission"]
)
OPTIM_WRAPPERS = Registry(
    "optimizer wrapper",
    parent=ROOT_OPTIM_WRAPPERS,
    scope=SCOPE,
    locations=["gersp_mm.engine.optim"],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=["gersp_mm.engine.optim"],
)
