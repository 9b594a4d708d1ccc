"""BatchNorm in groups within one process is that of as many processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gersp_mm.models import key_norm
from gersp_mm.models.batch_norm import Groups, group_batch_norms, set_groups
from gersp_mm.models.key_norm import KEY_NORMS, Place, deal, describe
from tests.support.models import TWO_STAGES, batch, tiny_gersp, total


def grouped(layer: nn.Module, groups: Groups) -> nn.Module:
    """Return a copy of a module that normalises in groups."""
    layer = copy.deepcopy(layer)
    group_batch_norms(layer)
    set_groups(layer, groups)
    return layer


def norm(dims: int, **options) -> nn.Module:
    """Return a BatchNorm of five channels with weights and statistics of its own."""
    layer = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](5, **options).double()
    generator = torch.Generator().manual_seed(1)
    for value in (*layer.parameters(), *layer.buffers()):
        if value.is_floating_point():
            with torch.no_grad():
                value.uniform_(0.5, 1.5, generator=generator)
    return layer


def in_processes(layer: nn.Module, images: torch.Tensor, number: int):
    """Normalise image n in copy n mod G; return results, copies and the images' gradients."""
    images = images.clone().requires_grad_()
    copies = [copy.deepcopy(layer) for _ in range(number)]
    results = torch.empty_like(images)
    for g, each in enumerate(copies):
        results[g::number] = each(images[g::number])
    return results, copies, images


LAYOUTS = {
    "as channels": (torch.contiguous_format, False),
    "contiguous blocks": (torch.contiguous_format, True),
    "channels last": (torch.channels_last, True),
    "channels last, unsorted": (torch.channels_last, False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n", "number"), [(12, 2), (12, 3), (11, 3)])
@pytest.mark.parametrize(
    "options", [{}, dict(momentum=None), dict(affine=False), dict(track_running_stats=False)]
)
def test_a_layer_is_as_many_layers_as_groups(layout, n, number, options):
    memory_format, blocked = LAYOUTS[layout]
    layer = norm(2, **options)
    images = torch.randn(n, 5, 4, 3, dtype=torch.float64).mul(2).add(1)
    weights = torch.randn(n, 5, 4, 3, dtype=torch.float64)
    expected, copies, leaf = in_processes(layer, images, number)
    (expected * weights).sum().backward()

    split = grouped(layer, Groups(number, blocked))
    order = torch.cat([torch.arange(g, n, number) for g in range(number)])
    order = order if blocked else torch.arange(n)
    own = images[order].contiguous(memory_format=memory_format).requires_grad_()
    found = split(own)
    assert found.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, expected[order])
    (found * weights[order]).sum().backward()
    torch.testing.assert_close(own.grad, leaf.grad[order])
    for name, parameter in split.named_parameters():
        of_copies = sum(dict(each.named_parameters())[name].grad for each in copies)
        torch.testing.assert_close(parameter.grad, of_copies)
    for name, buffer in split.named_buffers():
        if "running" in name:
            mean = sum(dict(each.named_buffers())[name] for each in copies) / number
            torch.testing.assert_close(buffer, mean)
            assert not torch.equal(buffer, dict(layer.named_buffers())[name])
        else:
            assert buffer == layer.num_batches_tracked + 1


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("n", [8, 7])
def test_vectors_and_volumes_are_split_too(dims, n):
    layer = norm(dims)
    images = torch.randn(n, 5, *[3] * (dims if dims > 1 else 0), dtype=torch.float64)
    expected, _, _ = in_processes(layer, images, 2)
    torch.testing.assert_close(grouped(layer, Groups(2))(images), expected)


def test_evaluation_and_small_batches_are_ordinary():
    layer = norm(2)
    images = torch.randn(8, 5, 4, 3, dtype=torch.float64)
    split = grouped(layer, Groups(2, True))
    assert torch.equal(split.eval()(images), copy.deepcopy(layer).eval()(images))
    assert torch.equal(split.train()(images[:3]), layer(images[:3]))
    assert torch.equal(split.running_var, layer.running_var)
    assert split.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mixed_precision_keeps_statistics_in_fp32(memory_format):
    layer = norm(2).float()
    images = torch.randn(8, 5, 4, 3).bfloat16()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    with torch.autocast("cpu", torch.bfloat16):
        expected, _, _ = in_processes(layer, images, 2)
        own = images[order].contiguous(memory_format=memory_format).requires_grad_()
        split = grouped(layer, Groups(2, True))
        found = split(own)
    assert found.dtype == torch.bfloat16 and split.running_mean.dtype == torch.float32
    assert torch.equal(found, expected[order])
    found.float().square().sum().backward()
    assert own.grad.dtype == torch.bfloat16 and split.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("n", "groups"), [(16, 2), (64, 2), (24, 3), (17, 2), (11, 3)])
def test_every_group_of_keys_gets_an_equal_share_of_every_group_of_queries(n, groups):
    torch.manual_seed(0)
    order = deal(n, groups)
    assert sorted(order.tolist()) == list(range(n))
    shares = torch.zeros(groups, groups)
    for place, image in enumerate(order.tolist()):
        shares[place % groups, image % groups] += 1
    assert shares.max() - shares.min() <= 1
    assert not torch.equal(order, deal(n, groups))


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(64, 32, 2), (256, 32, 8), (80, 32, 3), (79, 32, 2), (32, 32, 2), (16, 32, 2), (15, 32, 1),
     (8, 4, 2), (7, 4, 1), (4, 2, 2), (64, 16, 4), (2, 32, 1), (1, 2, 1)],
)  # fmt: skip
def test_number_of_groups(images, size, expected):
    assert KEY_NORMS["split"].group_count(images, size) == expected
    assert KEY_NORMS["none"].group_count(images, size) == 1


def one_process(monkeypatch, order, **changes):
    """Return a model that splits, whose keys are dealt in the given order."""
    monkeypatch.setattr(key_norm, "deal", lambda n, groups, device: order)
    return tiny_gersp(key_bn="split", split_size=4, **changes).double()


def bn_neck() -> dict:
    return dict(
        type="NonLinearNeck", in_channels=64, hid_channels=16, out_channels=8, with_avg_pool=True
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", ["joint", "separate", "symmetric", "BatchNorm in the projector"])
def test_a_step_is_that_of_as_many_processes(monkeypatch, layout, kind):
    """Three processes of four images each, written as three models that see no other's images."""
    n, number = 12, 3
    changes = dict(channels_last=layout == "channels_last", joint_forward=kind != "separate")
    changes["symmetric"] = kind == "symmetric"
    if kind.startswith("BatchNorm"):
        changes["neck"] = bn_neck()
    views = 2 * n if kind == "symmetric" else n
    torch.manual_seed(3)
    order = deal(views, number)
    model = one_process(monkeypatch, order, **changes)
    queue = model.queue.clone()
    arguments = batch(rs=n, natural=n, dtype=torch.float64)
    processes = [tiny_gersp(**{**changes, "key_bn": "none"}).double() for _ in range(number)]
    for process in processes:
        process.load_state_dict(model.state_dict())

    losses = model.loss(**arguments)
    total(losses).backward()

    keys = torch.empty(views, 8, dtype=torch.float64)
    key_images = arguments["inputs"]["rs_key"]
    if kind == "symmetric":
        key_images = torch.cat([key_images, arguments["inputs"]["rs_query"]])
    for g, process in enumerate(processes):
        own = order[g::number]
        with torch.no_grad():
            keys[own] = F.normalize(process.teacher(key_images[own])[0], dim=1)
    found = []
    for g, process in enumerate(processes):
        inputs = {name: images[g::number] for name, images in arguments["inputs"].items()}
        own_keys = keys[g::number]
        process._teacher_keys = lambda images, own_keys=own_keys: own_keys
        found.append(process.loss(inputs, arguments["data_samples"][g::number]))
        total(found[-1]).backward()

    close = dict(rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        model.queue[:views] if views < 20 else model.queue,
        (keys if views < 20 else torch.cat([keys[20:], keys[4:20]])),
        **close,
    )
    assert not torch.equal(model.queue, queue)
    for name in ("loss_ct", "loss_ce"):
        torch.testing.assert_close(losses[name], sum(f[name] for f in found) / number, **close)
    named = [dict(process.named_parameters()) for process in processes]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mean = sum(each[name].grad for each in named) / number
            torch.testing.assert_close(parameter.grad, mean, **close)
    buffers = [dict(process.named_buffers()) for process in processes]
    for name, buffer in model.named_buffers():
        if "running" in name:
            mean = sum(each[name] for each in buffers) / number
            torch.testing.assert_close(buffer, mean, **close)
        elif name.endswith("num_batches_tracked"):
            assert buffer == buffers[0][name]


@pytest.mark.parametrize("channels_last", [False, True])
def test_sizes_that_groups_do_not_divide(channels_last):
    model = tiny_gersp(key_bn="split", split_size=4, channels_last=channels_last)
    sizes = []
    model.teacher.backbone.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    for rs, natural, number in ((16, 16, 4), (13, 14, 3), (9, 9, 2), (3, 3, 1), (16, 16, 4)):
        losses = model.loss(**batch(rs=rs, natural=natural))
        total(losses).backward()
        assert model.groups.number == number
        assert all(torch.isfinite(value).all() for value in losses.values())
    assert sizes == [16, 13, 9, 3, 16]


def test_options_that_change_the_speed_change_no_result(monkeypatch):
    """Layout, compilation, activation checkpointing."""
    order = deal(8, 2)
    plain = one_process(monkeypatch, order, **copy.deepcopy(TWO_STAGES))
    state = plain.state_dict()
    arguments = batch(rs=8, natural=8, dtype=torch.float64)
    twins = []
    for with_cp, changes in (
        (False, dict(channels_last=True)),
        (True, {}),
        (True, dict(channels_last=True)),
        (False, dict(compile=dict(backend="eager"))),
        (False, dict(compile=dict(backend="eager"), channels_last=True)),
    ):
        parts = copy.deepcopy(TWO_STAGES)
        parts["backbone"]["with_cp"] = with_cp
        twins.append(one_process(monkeypatch, order, **parts, **changes))
    for model in twins:
        assert model.state_dict().keys() == state.keys()
        model.load_state_dict(state)
    expected = plain.loss(**arguments)
    total(expected).backward()
    for model in twins:
        losses = model.loss(**arguments)
        total(losses).backward()
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-9, atol=1e-10)
        gradients = dict(model.named_parameters())
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(
                    gradients[name].grad, parameter.grad, rtol=1e-8, atol=1e-10
                )


def test_the_layout_is_kept_through_the_network():
    model = tiny_gersp(key_bn="split", split_size=4, channels_last=True)
    seen = []
    for layer in model.backbone.layer2.modules():
        layer.register_forward_hook(lambda m, args, out: seen.append(out.stride()[1]))
    model.loss(**batch(rs=8, natural=8))
    assert model.groups == Groups(2, True) and set(seen) == {1}


def test_auto_is_one_rule(monkeypatch):
    assert key_norm.chosen("auto", 1) == "split"
    assert key_norm.chosen("auto", 2) == "shuffle"
    assert key_norm.chosen("none", 2) == "none"
    assert key_norm.chosen("auto") == "split"
    monkeypatch.setattr(key_norm, "get_world_size", lambda: 2)
    assert key_norm.chosen("auto") == "shuffle"


@pytest.mark.parametrize(
    ("key_bn", "place", "text"),
    [
        ("auto", Place(1, 64, True), "key_bn='split' (chosen by 'auto' for one process): BatchNorm "
         "in 2 groups of 32 images of each kind"),
        ("auto", Place(2, 64, True), "key_bn='shuffle' (chosen by 'auto' for 2 processes)"),
        ("split", Place(8, 33, False), "key_bn='split': BatchNorm in 2 groups of 16 or 17 images "
         "of each kind"),
        ("none", Place(1, 64, True), None),
    ],
)  # fmt: skip
def test_what_is_said_of_the_choice(key_bn, place, text):
    assert describe(key_bn, place) == text


def test_what_cannot_be_split_is_said():
    problems = KEY_NORMS["split"].problems
    assert problems(Place(1, 16, True)) == []
    (few,) = problems(Place(1, 15, True))
    assert few.fix == "" and few.text.startswith(
        "key_bn='split' needs two groups of at least 8 images, but train_dataloader.batch_size=15."
    )
    assert problems(Place(1, 8, True, split_size=4)) == []
    (one,) = problems(Place(1, 1, True))
    assert one.fix == "Use at least 2 images per process."
    (other,) = problems(Place(1, 16, True, other_layers=("BatchNormAct2d",)))
    assert "cannot split BatchNormAct2d" in other.text


class Cheat(nn.Module):
    """A network that looks at a black corner of the images alone.

    After BatchNorm the corner's value is -mean/std of the batch, whatever the image shows. The
    output tells whether two batches have the same statistics: it turns ``speed`` times in the
    circle for one unit of that value.
    """

    def __init__(self, speed: float = 1e4) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.tensor(speed, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        angles = self.norm(images)[:, :, 0, 0] * self.scale
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("n", [16, 64])
def test_batch_statistics_do_not_tell_which_key_belongs_to_a_query(seed, n):
    """Images are noise, and keys are recognised among 400 negatives, or are not."""
    torch.manual_seed(seed)
    accuracy = {}
    for key_bn in ("none", "split"):
        model = tiny_gersp(
            backbone=Cheat(), neck=nn.Identity(), natural_head=None, key_bn=key_bn,
            queue_len=400, split_size=8,
        )  # fmt: skip
        model.double().train()
        found = []
        for step in range(12 + 400 // n):
            images = torch.randn(n, 4, 6, 6, dtype=torch.float64)
            images[:, :, 0, 0] = 0
            losses = model.loss(dict(rs_query=images, rs_key=images.clone()))
            if step >= 400 // n:  # the queue holds keys of earlier batches
                found.append(float(losses["acc_ct"]))
        accuracy[key_bn] = sum(found) / len(found)
    assert accuracy["none"] == 100
    # The negatives are 50 groups of 8 equal keys, so that chance is 2 %.
    assert accuracy["split"] < 10
