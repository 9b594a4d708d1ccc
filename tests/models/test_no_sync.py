"""The training step never waits for the device.

There need not be a GPU for this: PyTorch's fake tensors carry the device ``cuda`` and no values, so
that whatever reads a value on the host, or mixes devices, raises. The backward pass and the fused
optimizer are PyTorch's own and need a driver; they are left out.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeCopyMode,
    FakeTensorMode,
)

from gersp_mm.augmentation.device import KeptImages
from gersp_mm.augmentation.draw import draw_view, pack
from gersp_mm.augmentation.view import PRESETS
from gersp_mm.engine.hooks import (
    BadImageHook,
    CollapseMonitorHook,
    DeferredRuntimeInfoHook,
    PreflightHook,
    RNGStateHook,
    TeacherUpdateHook,
)
from tests.support.runs import demo_config

N = 6
CUDA = torch.device("cuda")


@pytest.fixture
def on_fake_gpu(monkeypatch):
    """A mode in which ``cuda`` exists, without values."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def fake(model: Any, mode: FakeTensorMode) -> Any:
    """A copy of the model on the fake GPU."""
    with FakeCopyMode(mode):
        model = copy.deepcopy(model)
    with mode:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    on_gpu = torch.nn.Parameter(p.detach().to(CUDA), p.requires_grad)
                    module._parameters[name] = on_gpu
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer.to(CUDA)
    model.data_preprocessor._device = CUDA
    return model


def batch() -> dict[str, Any]:
    """What the workers hand over with the colour work left to the device."""
    names = ("rs_query", "rs_key", "natural")
    parts = {**PRESETS["mocov2"], "quarter_turns": True}
    draws = [np.stack([pack(draw_view(20, 20, parts)) for _ in range(N)]) for _ in names]
    images = torch.zeros(N, 16, 16, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    return dict(
        inputs={name: images for name in names},
        draw=dict(zip(names, draws)),
        gt_label=torch.zeros(N, dtype=torch.long),
        data_samples=[DataSample(metainfo=dict(bad_images=[])) for _ in range(N)],
    )


@pytest.mark.parametrize(
    ("precision", "kept", "key_bn"),
    [("fp32", False, "shuffle"), ("bf16", False, "split"), ("fp32", True, "split")],
)
def test_nothing_in_a_step_reads_a_value(
    pair_data, tmp_path, monkeypatch, precision, kept, key_bn, request
):
    cfg = demo_config(pair_data, tmp_path)
    cfg.model.update(key_bn=key_bn, split_size=2)
    real = MODELS.build(cfg.model)
    batches = [batch() for _ in range(3)]
    mode = request.getfixturevalue("on_fake_gpu")
    model = fake(real, mode)
    if kept:  # the device has the images, the workers send where to cut
        images = torch.zeros(5, 3, 20, 20, dtype=torch.uint8, device=CUDA)
        for data in batches:
            empty = torch.empty(N, 3, 0, 0, dtype=torch.uint8)
            data["inputs"] = dict.fromkeys(data["inputs"], empty)
            model.data_preprocessor.kept = dict.fromkeys(data["inputs"], KeptImages(images, 16))
    wrapper_cfg = dict(cfg.optim_wrapper)
    if precision == "bf16":
        wrapper_cfg["type"] = "gersp_mm.BFloat16OptimWrapper"
        # autocast for a device that is not there
        monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    wrapper = build_optim_wrapper(model, wrapper_cfg)
    assert wrapper.optimizer.param_groups[0]["fused"]

    monkeypatch.setattr(wrapper, "backward", lambda loss: None)
    monkeypatch.setattr(wrapper.optimizer, "step", lambda: None)
    loader = SimpleNamespace(batch_size=N, dataset=None, __len__=lambda: 100)
    runner = SimpleNamespace(
        model=model,
        hooks=[LoggerHook(interval=50)],
        iter=3,
        rank=0,
        max_iters=100,
        seed=0,
        optim_wrapper=wrapper,
        message_hub=MessageHub.get_instance(f"no_sync_{precision}"),
        train_dataloader=loader,
    )
    deferred = DeferredRuntimeInfoHook()
    deferred._interval = 50
    deferred._told = True  # a slow first iteration is read once, to be told at once
    monkeypatch.setattr(deferred, "end_of_epoch", lambda *_: False)
    hooks = [
        deferred, TeacherUpdateHook(), BadImageHook(), CollapseMonitorHook(), RNGStateHook(),
        PreflightHook(),
    ]  # fmt: skip
    model.train()
    computed_in = []
    model.backbone.register_forward_hook(lambda *args: computed_in.append(args[2][0].dtype))
    for step, data in enumerate(batches):
        runner.iter = step
        for hook in hooks:
            hook.before_train_iter(runner, step, data)
        outputs = model.train_step(data, wrapper)
        assert outputs["loss"].device.type == "cuda"
        for hook in hooks:
            hook.after_train_iter(runner, step, data, outputs)
    assert set(computed_in) == {dict(fp32=torch.float32, bf16=torch.bfloat16)[precision]}
    assert len(deferred._waiting) == 3
    assert model.teacher.backbone.conv1.weight.device.type == "cuda"


def test_the_method_of_this_test_notices(pair_data, tmp_path, on_fake_gpu):
    loss = torch.zeros((), device=CUDA)
    with pytest.raises(DataDependentOutputException):
        loss.item()
    with pytest.raises(DataDependentOutputException):
        float(loss)
    with pytest.raises(Exception, match="[Dd]evice"):
        loss.view(1) + torch.zeros(1)
