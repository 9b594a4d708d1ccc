"""Resize position embeddings as the hosts' own functions do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import nn

from gersp_mm.utils.errors import UserError, first_line

RESIZED = ("pos_embed", "absolute_pos_embed", "relative_position_bias_table")
RECREATED = ("attn_mask", "relative_coords_table", "relative_position_index")  # buffers

State = Mapping[str, torch.Tensor]


def is_resized(name: str) -> bool:
    """Return whether a tensor has a shape that depends on the size of images or windows."""
    return name.rpartition(".")[2] in RESIZED


def resized_by_host(module: nn.Module, given: State) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors that a host loads into a module from those of a file.

    Position embeddings of another shape than the module's become what the host's own function
    returns on a copy of the file's tensors: mmpretrain's load hooks, or ``init_weights`` of mmdet's
    and mmseg's Swin and of mmseg's ViT. Buffers that the module makes itself, where the file has
    none or a load hook throws the file's away, are the module's. All others stay as they are in the
    file; so do embeddings that no function of the host resizes.

    Args:
        module: A backbone with its ``init_cfg``, or a whole model.
        given: Tensors of the file by the module's names.

    Returns:
        The tensors, and a sentence for each kind of embedding that was resized.

    Raises:
        UserError: The host's function does not work with the libraries that are installed.
    """
    own = module.state_dict()
    buffers = {name for name, _ in module.named_buffers()}
    made_here = {n for n in buffers if n.rpartition(".")[2] in RECREATED and n in own}
    other = [n for n in given if n in own and given[n].shape != own[n].shape]
    if not any(is_resized(name) or name in made_here for name in other):
        return {**{n: own[n] for n in made_here if given}, **given}, []
    hooked = _through_load_hooks(module, given)
    loaded = {n: own[n] if n in buffers and n not in hooked else t for n, t in given.items()}
    loaded = {**{n: own[n] for n in made_here}, **loaded}
    wanted = [name for name in other if is_resized(name)]
    made = {name: hooked[name] for name in wanted if name in hooked}
    if any(made.get(name, given[name]).shape != own[name].shape for name in wanted):
        made = _through_init_weights(module, wanted)
    notes: dict[str, str] = {}
    for name, tensor in made.items():
        if tensor.shape == own[name].shape:
            loaded[name] = tensor
            kind = name.rpartition(".")[2]
            shapes = [tuple(t.shape) for t in (given[name], tensor)]
            notes.setdefault(kind, f"{name} is resized from {shapes[0]} to {shapes[1]} by the host")
    return loaded, list(notes.values())


def _through_load_hooks(module: nn.Module, given: State) -> dict[str, torch.Tensor]:
    """Return a copy of tensors after the hooks that ``load_state_dict`` calls on them."""
    state = dict(given)
    for name, part in module.named_modules():
        for hook in part._load_state_dict_pre_hooks.values():
            try:
                hook(state, f"{name}." if name else "", {}, True, [], [], [])
            except NotImplementedError as error:  # SciPy 1.14 dropped what mmpretrain's tables need
                raise UserError(
                    f"{type(part).__name__} cannot resize its position embeddings here "
                    f"({first_line(error, named=False)}). "
                    "Give it the image and window size of the file's training."
                ) from None
            except (AssertionError, RuntimeError, ValueError):  # Shapes that it cannot resize.
                return dict(given)
    return state


def _through_init_weights(module: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Return the tensors that a backbone's own ``init_weights`` loads into a copy of it."""
    own_function = type(module).init_weights if isinstance(module, BaseModule) else None
    init_cfg: Any = getattr(module, "init_cfg", None)
    pretrained = isinstance(init_cfg, Mapping) and init_cfg.get("type") == "Pretrained"
    if own_function in (None, BaseModule.init_weights) or not pretrained:
        return {}
    clone: Any = copy.deepcopy(module)
    parameters = clone.state_dict()
    for name in names:
        parameters[name].fill_(torch.nan)
    try:
        clone.init_weights()
    except (AssertionError, KeyError, RuntimeError, ValueError):
        return {}
    return {name: parameters[name] for name in names if not parameters[name].isnan().any()}
