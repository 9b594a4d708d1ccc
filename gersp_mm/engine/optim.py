"""An optimizer that updates trainable parameters in few fused calls, and bfloat16 precision."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from gersp_mm.engine.full_precision import Part, full_precision, parts_in_full_precision
from gersp_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from gersp_mm.utils.errors import UserError
from gersp_mm.version import version_key


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableParamsConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, limited to trainable parameters and with few groups.

    MMEngine's constructor puts frozen parameters (the teacher's) into the optimizer. With a
    ``paramwise_cfg``, it also makes a group of every parameter, and fused optimizers need a call
    per group. This constructor merges groups with equal options. Optimizers with a fused form use
    it, unless their config has ``fused=False``.

    Raises:
        UserError: A key of ``paramwise_cfg.custom_keys`` matches no trained parameter.
    """

    optimizer_cfg: dict
    paramwise_cfg: dict | None

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add the groups of a module, without a line in the log for each frozen parameter."""
        if any(parameter.requires_grad for parameter in module.parameters()):
            super().add_params(params, module, prefix, is_dcn_module)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer wrapper for ``model``."""
        check_custom_keys(model, (self.paramwise_cfg or {}).get("custom_keys") or {})
        chosen = {"fused", "foreach"} & self.optimizer_cfg.keys()
        if not chosen and has_fused_form(self.optimizer_cfg.get("type"), model):
            self.optimizer_cfg = {**self.optimizer_cfg, "fused": True}
        wrapper = super().__call__(model)
        merged: dict[tuple, dict] = {}
        for group in wrapper.optimizer.param_groups:
            options = tuple(sorted((k, repr(v)) for k, v in group.items() if k != "params"))
            target = merged.setdefault(options, {**group, "params": []})
            target["params"] += [p for p in group["params"] if p.requires_grad]
        wrapper.optimizer.param_groups[:] = [g for g in merged.values() if g["params"]]
        return wrapper


def check_custom_keys(model: nn.Module, custom_keys: Iterable[str]) -> None:
    """Refuse a key of ``paramwise_cfg.custom_keys`` that no trained parameter's name contains.

    MMEngine's constructors accept such a key without using its options.

    Args:
        model: The model whose parameters are trained.
        custom_keys: Parts of parameter names.

    Raises:
        UserError: A key matches no name, or only frozen parameters. The message offers the nearest
            part of a name.
    """
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    for key in custom_keys:
        if any(key in name for name in trained):
            continue
        field = f"optim_wrapper.paramwise_cfg.custom_keys: {key!r}"
        if any(key in name for name in frozen):
            raise UserError(
                f"{field} matches only frozen parameters, which are never trained. Remove the key "
                "or unfreeze these parameters."
            )
        parts = {".".join(name.split(".")[: key.count(".") + 1]) for name in trained}
        parts |= {part for name in trained for part in name.split(".")}
        near = get_close_matches(key, sorted(parts), n=1, cutoff=0)
        raise UserError(
            f"{field} matches no parameter of the model. Use a part of a parameter's name"
            + (f", such as {near[0]!r}." if near else ".")
        )


def has_fused_form(optimizer: Any, model: nn.Module) -> bool:
    """Return whether this device can update all parameters of an optimizer in one call."""
    optimizer = getattr(torch.optim, optimizer, None) if isinstance(optimizer, str) else optimizer
    if optimizer not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return False
    device = next(model.parameters()).device.type
    known = device == "cuda" or (device == "cpu" and version_key(torch.__version__) >= (2, 4, 0))
    return known and "fused" in inspect.signature(optimizer).parameters


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on any device; MMEngine's wrapper needs a GPU.

    bfloat16 has the range of fp32, so the loss is not scaled. Boxes and mmcv's operators stay in
    fp32, see :mod:`gersp_mm.engine.full_precision`.
    """

    _looked_at: tuple[nn.Module, list[Part]] | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast."""
        device = next(model.parameters()).device.type
        if self._looked_at is None or self._looked_at[0] is not model:
            self._looked_at = model, parts_in_full_precision(model)
        with (
            super().optim_context(model),
            torch.autocast(device, torch.bfloat16),
            full_precision(self._looked_at[1]),
        ):
            yield
