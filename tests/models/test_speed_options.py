"""Memory format, compilation and activation checkpointing change the speed, not the result."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gersp_mm.utils.errors import UserError
from tests.support.models import TWO_STAGES, batch, tiny_gersp, total


def step(model, **options):
    """Losses and student gradients of one batch in float64."""
    model = model.double()
    losses = model.loss(**batch(dtype=torch.float64, **options))
    total(losses).backward()
    named = model.named_parameters()
    return losses, {name: p.grad for name, p in named if p.grad is not None}


def assert_same_step(one, other):
    for name, loss in one[0].items():
        torch.testing.assert_close(loss, other[0][name], rtol=1e-9, atol=1e-9)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-8, atol=1e-10)


def twin(model, **changes):
    """A model with other options and the same weights and queue."""
    other = tiny_gersp(**changes)
    other.load_state_dict(model.state_dict())
    return other


def test_channels_last_covers_student_and_teacher_and_changes_no_result():
    plain = tiny_gersp()
    fast = twin(plain, channels_last=True)
    for module in (fast.backbone, fast.teacher.backbone):
        weight = module.layer2[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    assert plain.backbone.layer2[0].conv1.weight.is_contiguous()
    seen = []
    fast.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()))
    assert_same_step(step(fast), step(plain))
    assert seen[0][1] == 1  # channels come first in memory order
    fast.init_weights()
    assert not fast.backbone.layer2[0].conv1.weight.is_contiguous()


def test_channels_last_images_meet_a_plain_model():
    plain = tiny_gersp()
    data = batch()
    other = copy.deepcopy(plain)
    seen = []
    other.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    expected = plain.loss(**data)
    for name, images in data["inputs"].items():
        data["inputs"][name] = images.contiguous(memory_format=torch.channels_last)
    found = other.loss(**data)
    assert seen[0].is_contiguous()
    assert torch.equal(found["loss_ct"], expected["loss_ct"])


def test_compiled_backbones_give_the_same_step_under_the_same_names():
    plain = tiny_gersp(**copy.deepcopy(TWO_STAGES))
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    compiled = twin(plain, **copy.deepcopy(TWO_STAGES), compile=dict(backend=backend))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert_same_step(step(compiled), step(plain))
    assert len(calls) >= 2  # student and teacher
    plain.update_teacher()
    compiled.update_teacher()
    for one, other in zip(compiled.teacher.parameters(), plain.teacher.parameters()):
        torch.testing.assert_close(one, other)


def test_compile_needs_a_pytorch_that_can(monkeypatch):
    monkeypatch.delattr(nn.Module, "compile")
    with pytest.raises(UserError, match="torch >= 2.2"):
        tiny_gersp(compile=True)
    tiny_gersp()


def kept_for_backward(model) -> int:
    """Bytes that autograd keeps after the forward pass, parameters left out."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model.loss(**batch(rs=8, natural=8))
    assert total(losses).requires_grad
    return sum(size for size, _ in kept.values())


def test_activation_checkpointing_keeps_less_and_changes_no_gradient():
    backbone = dict(type="ResNet", depth=18, stem_channels=8, base_channels=8, out_indices=(3,))
    plain = tiny_gersp(backbone=dict(backbone))
    small = twin(plain, backbone=dict(backbone, with_cp=True))
    assert kept_for_backward(copy.deepcopy(small)) < 0.6 * kept_for_backward(copy.deepcopy(plain))
    assert_same_step(step(small), step(plain))
