"""A step and a prediction of the downstream configs, beside the compiled operators."""

import os
import random
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from gersp_mm.ops.swap import our_operators
from tests.ops.support import beside_compiled
from tests.support.downstream import downstream_configs, downstream_twin

QUICK = (
    "dior/oriented-rcnn_le90_r50_fpn_1x_dior-r.py",  # rotated IoU, NMS and RoIAlign
    "loveda/psanet_r50-d8_80k_loveda.py",  # attention masks
)
DENSE = [name for name in downstream_configs() if name.split("/")[0] not in ("eurosat", "resisc45")]
EVERY = "GERSP_EVERY_CONFIG"  # all of them, in some minutes


def batch(loader: Any, scope: str) -> Any:
    with DefaultScope.overwrite_default_scope(scope):
        return next(iter(Runner.build_dataloader(loader, seed=0)))


def seed() -> None:
    for function in (random.seed, np.random.seed, torch.manual_seed):
        function(0)


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of predictions, with the names of their fields."""
    if hasattr(value, "to_dict") or hasattr(value, "_data_fields"):
        value = {key: item for key, item in value.items() if not key.startswith("gt_")}
    if isinstance(value, dict):
        pairs = [(f"{name}.{key}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(f"{name}.{number}", item) for number, item in enumerate(value)]
    else:
        value = getattr(value, "tensor", value)  # of boxes
        return {name: value.detach().double()} if isinstance(value, torch.Tensor) else {}
    return {key: item for pair in pairs for key, item in tensors(pair[1], pair[0]).items()}


def outcome(cfg: Config) -> dict[str, torch.Tensor]:
    """Return losses and gradients of one step, and the predictions of one test image."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        seed()
        model = MODELS.build(cfg.model)
        model.init_weights()
        for layer in model.modules():  # of the heads; those of the backbone have no bias
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and layer.bias is not None:
                # As they start, all boxes have one score to seven digits, and rounding sorts them.
                torch.nn.init.kaiming_normal_(layer.weight)
                layer.bias.data.clamp_(min=-0.5)  # -4.6 would leave few boxes to compare
        seed()
        model.train()
        data = model.data_preprocessor(batch(cfg.train_dataloader, cfg.default_scope), True)
        loss, logged = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
        loss.backward()
        found = tensors(dict(logged), "loss")
        found |= {f"grad.{n}": p.grad.double() for n, p in model.named_parameters()
                  if p.grad is not None}  # fmt: skip
        model.eval()
        with torch.no_grad():
            predicted = model.test_step(batch(cfg.test_dataloader, cfg.default_scope))
        return found | tensors(predicted, "predicted")


@beside_compiled
@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE if os.environ.get(EVERY) else QUICK)
def test_step_and_prediction_are_as_compiled(name, downstream_data, tmp_path):
    cfg = downstream_twin(name, downstream_data, tmp_path)
    cfg.model.backbone.init_cfg = None
    import_module(f"{cfg.default_scope}.models")
    compiled = outcome(cfg)
    with our_operators():
        ours = outcome(cfg)
    assert compiled.keys() == ours.keys()
    assert any(key.startswith("predicted") and value.numel() for key, value in ours.items())
    for key, value in compiled.items():
        size = value.abs().max() if value.numel() else 0
        message = f"{key}: ".__add__
        torch.testing.assert_close(
            ours[key], value, rtol=1e-4, atol=1e-4 * max(1.0, float(size)), msg=message
        )
