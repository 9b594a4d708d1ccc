"""Building a network from a config that may come from somebody's file."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from torch import nn

from gersp_mm.backbones.architectures import Architecture, types_in
from gersp_mm.backbones.own import ADVICE, is_own
from gersp_mm.utils.errors import UserError, first_line

# Where classes may come from that a file names: what else is registered may load other files.
NETWORKS = ("mmpretrain.models.backbones.",)
PARTS = (
    *NETWORKS, "torch.nn.", "mmcv.cnn.", "mmcv.ops.", "mmpretrain.models.utils.attention",
    "mmpretrain.models.utils.ema", "mmpretrain.models.utils.norm",
    "mmpretrain.models.utils.res_layer_extra_norm", "mmpretrain.models.utils.sparse_modules",
)  # fmt: skip


def build_network(architecture: Architecture) -> nn.Module:
    """Build a backbone of mmpretrain, or of a module of the user's that was imported.

    Its weights are the initial weights of its class.

    Raises:
        UserError: The architecture has no config, or one that names other weights, is no backbone
            of mmpretrain or does not describe one.
    """
    from mmpretrain.registry import MODELS

    if architecture.config is None:
        where = architecture.where.removesuffix(", which") or architecture.name
        raise UserError(
            f"{where} and holds no config to build it from: only standard ResNets can be built by "
            "name"
        )
    config, where = dict(architecture.config), architecture.where or architecture.name
    init_default_scope("mmpretrain")
    kinds = types_in(config)
    if "Pretrained" in kinds:
        raise UserError(f"{where} names other weights in its init_cfg. Remove that")
    classes = [MODELS.get(kind) if isinstance(kind, str) else kind for kind in kinds]
    if isinstance(classes[0], type) and issubclass(classes[0], BaseModel):
        raise UserError(f"{where} cannot be built: {kinds[0]} is a whole model, no backbone")
    for number, (kind, found) in enumerate(zip(kinds, classes)):
        if found is not None and not _is_allowed(found, PARTS if number else NETWORKS):
            raise UserError(
                f"{where} cannot be built: {kind} is no backbone of mmpretrain. {ADVICE}"
            )
    if ":" in str(config.get("model_name", "")):  # timm takes addresses there
        raise UserError(f"{where} cannot be built: model_name={config['model_name']} is an address")
    MMLogger.get_current_instance().setLevel("WARNING")  # how every tensor was initialised
    try:
        return MODELS.build(copy.deepcopy(config))
    except Exception as error:  # The class may raise any error.
        text = first_line(error, named=False)
        if None in classes and isinstance(error, KeyError):
            unknown = kinds[classes.index(None)]
            text = f"{unknown} is not in the registry of mmpretrain. {ADVICE}"
        raise UserError(f"{where} cannot be built: {text}") from error


def _is_allowed(found: Any, rooms: tuple[str, ...]) -> bool:
    """Return whether a class, and not a function, comes from one of some packages."""
    if not isinstance(found, type):
        return False
    return f"{found.__module__}.".startswith(rooms) or is_own(found.__module__)
