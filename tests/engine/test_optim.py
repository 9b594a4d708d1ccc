from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import nn

from gersp_mm.engine.optim import BFloat16OptimWrapper, has_fused_form
from gersp_mm.utils.errors import UserError
from gersp_mm.version import version_key
from tests.support.runs import demo_config


@pytest.fixture
def model(pair_data, tmp_path):
    return MODELS.build(demo_config(pair_data, tmp_path).model)


def build(model, **options):
    cfg = dict(
        type="OptimWrapper",
        constructor="gersp_mm.TrainableParamsConstructor",
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
    )
    return build_optim_wrapper(model, {**cfg, **options})


def ids(parameters):
    return sorted(id(parameter) for parameter in parameters)


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_one_group_of_every_trainable_parameter_and_none_of_the_teacher(model):
    (group,) = build(model).optimizer.param_groups
    assert ids(group["params"]) == ids(trainable(model))
    assert not set(ids(group["params"])) & set(ids(model.teacher.parameters()))
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)


def test_paramwise_options_are_kept_in_as_few_groups_as_they_need(model):
    paramwise = dict(norm_decay_mult=0.0, custom_keys={"natural_head": dict(lr_mult=10.0)})
    groups = build(model, paramwise_cfg=paramwise).optimizer.param_groups
    assert ids(p for group in groups for p in group["params"]) == ids(trainable(model))
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for p in module.parameters()
    }
    head = {id(p) for p in model.natural_head.parameters()}
    for parameter in trainable(model):
        key = id(parameter)
        expected = (1.0, 1e-4) if key in head else (0.1, 0.0 if key in norms else 1e-4)
        assert of[key] == pytest.approx(expected)
    options = [(group["lr"], group["weight_decay"]) for group in groups]
    assert len(options) == len(set(options)) == 3


def test_paramwise_options_that_change_nothing_leave_one_group(model):
    assert len(build(model, paramwise_cfg=dict(bias_decay_mult=1.0)).optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "key, text",
    [
        ("backbne", "'backbne' matches no parameter of the model. .* such as 'backbone'"),
        ("natural_head.fcc", "such as 'natural_head.fc'"),
        ("teacher", "'teacher' matches only frozen parameters"),
    ],
)
def test_custom_keys_that_match_nothing_are_refused(model, key, text):
    with pytest.raises(UserError, match=text):
        build(model, paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1), key: {}}))


def test_frozen_parameters_are_not_logged_one_by_one(model, monkeypatch):
    lines = []
    module = "mmengine.optim.optimizer.default_constructor.print_log"
    monkeypatch.setattr(module, lambda text, *args, **kwargs: lines.append(text))
    build(model, paramwise_cfg=dict(norm_decay_mult=0.0))
    assert any("backbone" in line for line in lines)
    assert not [line for line in lines if "teacher" in line or "is skipped" in line]


def test_groups_step_and_reload(model):
    paramwise = dict(norm_decay_mult=0.0)
    wrapper = build(model, paramwise_cfg=paramwise)
    before = [p.clone() for p in model.teacher.parameters()]
    wrapper.update_params(sum(p.square().sum() for p in trainable(model)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters()))
    again = build(model, paramwise_cfg=paramwise)
    again.load_state_dict(wrapper.state_dict())
    for parameter in trainable(model):
        own, loaded = (w.optimizer.state[parameter]["momentum_buffer"] for w in (wrapper, again))
        assert torch.equal(own, loaded)


def test_bfloat16_wrapper_computes_in_bfloat16_and_steps_in_fp32():
    layer = nn.Linear(4, 2)
    wrapper = BFloat16OptimWrapper(optimizer=torch.optim.SGD(layer.parameters(), lr=0.1))
    with wrapper.optim_context(layer):
        output = layer(torch.ones(3, 4))
    assert output.dtype == torch.bfloat16
    before = layer.bias.detach().clone()
    wrapper.update_params(output.float().sum())
    torch.testing.assert_close(layer.bias.detach(), before - 0.1 * 3)
    assert layer.weight.dtype == torch.float32


def step_with(model, gradients, **optimizer):
    model = copy.deepcopy(model)
    options = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-2)
    wrapper = build(model, optimizer={**options, **optimizer})
    for _ in range(3):
        for parameter, gradient in zip(trainable(model), gradients):
            parameter.grad = gradient.clone()
        wrapper.optimizer.step()
    return wrapper, [p.detach().clone() for p in trainable(model)]


@pytest.mark.skipif(version_key(torch.__version__) < (2, 4), reason="fused on CPUs from torch 2.4")
def test_optimizer_is_fused_unless_told_otherwise_and_steps_alike(model):
    model = model.to(memory_format=torch.channels_last)
    gradients = [torch.randn_like(p) for p in trainable(model)]
    fused, after_fused = step_with(model, gradients)
    plain, after_plain = step_with(model, gradients, fused=False, foreach=False)
    assert fused.optimizer.param_groups[0]["fused"] is True
    assert plain.optimizer.param_groups[0]["fused"] is False
    for one, other in zip(after_fused, after_plain):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(version_key(torch.__version__) < (2, 4), reason="fused on CPUs from torch 2.4")
def test_optimizers_without_a_fused_form_are_left_alone(model):
    assert "fused" not in build(model, optimizer=dict(type="RMSprop", lr=0.1)).optimizer.defaults
    assert has_fused_form("AdamW", model) and not has_fused_form("LBFGS", model)
