"""A checkpoint is resumed into the run that it is of, or not at all."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper, OptimWrapperDict
from torch import nn

from gersp_mm.checkpoints.resume import require_same_run, require_training_state
from gersp_mm.utils.errors import UserError
from tests.support.runs import build, demo_config, load, resumed, train


@pytest.fixture(scope="module")
def first_run(pair_data, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("first")
    train(demo_config(pair_data, work_dir, iterations=2, epochs=1))
    return work_dir / "epoch_1.pth"


def refusal(cfg, *hooks):
    """What a run says that must stop before anything is loaded into its model or optimizer."""
    runner = build(cfg, *hooks)
    before = {}
    init_weights = runner._init_model_weights

    def noted_init_weights():
        init_weights()
        before.update({k: v.clone() for k, v in runner.model.state_dict().items()})

    runner._init_model_weights = noted_init_weights
    with pytest.raises(UserError) as caught:
        runner.train()
    assert runner.iter == 0 and not runner.optim_wrapper.optimizer.state and before
    assert all(torch.equal(before[k], v) for k, v in runner.model.state_dict().items())
    return str(caught.value)


SHAPES = {
    "queue": (dict(queue_len=64), "model: 1 of another shape: queue is 32x128 instead of 64x128"),
    "classes": (
        dict(natural_head=dict(num_classes=5)),
        "natural_head.fc.weight.momentum_buffer is 3x64 instead of 5x64",
    ),
    "wider": (
        dict(neck=dict(hid_channels=1024)),
        "neck.mlp.0.weight.momentum_buffer is 64x64 instead of 1024x64",
    ),
    "narrower": (dict(neck=dict(hid_channels=16)), "neck.mlp.0.weight is 64x64 instead of 16x64"),
    "deeper": (dict(backbone=dict(depth=34)), "missing: backbone.layer1.2.conv1.weight"),
    "no natural branch": (dict(natural_head=None), "2 unexpected: natural_head.fc.weight"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_another_model_is_one_error_that_lists_the_difference(first_run, pair_data, tmp_path, case):
    changes, text = SHAPES[case]
    cfg = resumed(demo_config(pair_data, tmp_path, iterations=2, epochs=2), first_run)
    for name, change in changes.items():
        if isinstance(change, dict):
            cfg.model[name].update(change)
        else:
            cfg.model[name] = change
    message = refusal(cfg)
    assert text in message
    assert f"{first_run} is of another run" in message
    advice = "new work directory from the backbone alone, with --cfg-options "
    assert f"{advice}pretrained={first_run}" in message


def test_other_groups_of_parameters(first_run, pair_data, tmp_path):
    cfg = resumed(demo_config(pair_data, tmp_path, iterations=2, epochs=2), first_run)
    cfg.optim_wrapper.paramwise_cfg = dict(bias_decay_mult=0.0)
    assert "parameters in 2 groups" in refusal(cfg)


def test_another_schedule(first_run, pair_data, tmp_path):
    cfg = resumed(demo_config(pair_data, tmp_path, iterations=2, epochs=2), first_run)
    warm_up = dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=2)
    cfg.param_scheduler = [warm_up, *cfg.param_scheduler]
    assert "param_scheduler: 1 scheduler instead of 2" in refusal(cfg)
    cfg.param_scheduler = [dict(type="PolyLR", power=0.9, end=2)]
    assert "param_scheduler.0 is a CosineAnnealingLR of lr instead of a PolyLR of lr" in refusal(
        cfg
    )


def test_an_averaged_model_that_the_file_does_not_have(first_run, pair_data, tmp_path):
    cfg = resumed(demo_config(pair_data, tmp_path, iterations=2, epochs=2), first_run)
    cfg.custom_hooks = [dict(type="EMAHook")]
    assert "averaged model: none instead of the one of EMAHook" in refusal(cfg)


def test_an_averaged_model_is_resumed(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=2, epochs=1)
    cfg.custom_hooks = [dict(type="EMAHook")]
    train(cfg)
    cfg.train_cfg.max_epochs = 2
    runner = train(resumed(cfg, tmp_path / "epoch_1.pth"))
    assert runner.iter == 4
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 3
    message = refusal(resumed(cfg, tmp_path / "epoch_2.pth"))
    assert "averaged model: one instead of none" in message


def test_weights_that_are_not_finite_are_not_resumed(first_run, pair_data, tmp_path):
    content = load(first_run)
    content["state_dict"]["backbone.layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    cfg = resumed(demo_config(pair_data, tmp_path, 2, 2), tmp_path / "nan.pth")
    assert "holds NaN or infinity in backbone.layer2.0.conv1.weight, so" in refusal(cfg)


@pytest.mark.parametrize(
    "without, text",
    [
        ("optimizer", "it holds no optimizer. "),
        ("message_hub", "it holds no message_hub. "),
        ("meta", "it holds no meta with epoch and iter. "),
    ],
)
def test_a_file_of_weights_alone_is_not_resumed(first_run, without, text):
    content = load(first_run)
    require_training_state(content, "a.pth")
    del content[without]
    with pytest.raises(UserError) as caught:
        require_training_state(content, "a.pth")
    assert text in str(caught.value) and "pretrained=a.pth" in str(caught.value)


def small_run(optimizer=torch.optim.SGD, model=None, **options):
    """A model after one step, its optimizer wrapper and schedulers, and its checkpoint."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) if model is None else model
    wrapper = OptimWrapper(optimizer(model.parameters(), lr=0.1, **options))
    schedulers = [LinearLR(wrapper, end=3), CosineAnnealingLR(wrapper, T_max=5)]
    model(torch.randn(5, 3)).sum().backward()
    wrapper.step()
    checkpoint = dict(
        state_dict=model.state_dict(),
        optimizer=wrapper.state_dict(),
        param_schedulers=[scheduler.state_dict() for scheduler in schedulers],
        message_hub={},
        meta=dict(epoch=1, iter=1),
    )
    run = dict(model=model, optim_wrapper=wrapper, schedulers=schedulers)
    return run, copy.deepcopy(checkpoint)


OPTIMIZERS = {
    "momentum": (torch.optim.SGD, dict(momentum=0.9)),
    "plain": (torch.optim.SGD, {}),
    "Adam": (torch.optim.Adam, dict(amsgrad=True)),
    "AdamW": (torch.optim.AdamW, {}),
    "RMSprop": (torch.optim.RMSprop, dict(centered=True)),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "ASGD": (torch.optim.ASGD, {}),
    "Rprop": (torch.optim.Rprop, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_resumed_into_itself_and_not_into_other_shapes(name):
    optimizer, options = OPTIMIZERS[name]
    run, checkpoint = small_run(optimizer, **options)
    require_same_run(checkpoint, "a.pth", **run)
    other, _ = small_run(optimizer, nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), **options)
    with pytest.raises(UserError, match="0.weight is 4x3 instead of 6x3"):
        require_same_run(checkpoint, "a.pth", **other)
    checkpoint["state_dict"] = other["model"].state_dict()
    if name != "plain":  # which keeps nothing
        with pytest.raises(UserError, match=r"optimizer: .*0\.weight\.\w+ is 4x3 instead of 6x3"):
            require_same_run(checkpoint, "a.pth", **other)


def test_another_optimizer():
    _, checkpoint = small_run(torch.optim.SGD, momentum=0.9)
    run, _ = small_run(torch.optim.AdamW)
    with pytest.raises(UserError, match="with the options momentum instead of AdamW with betas"):
        require_same_run(checkpoint, "a.pth", **run)


def test_parameters_in_another_order():
    """Names and shapes of the weights agree; the momentum of one is given to another."""
    run, checkpoint = small_run(torch.optim.SGD, momentum=0.9)
    parameters = [*run["model"].parameters()]
    run["optim_wrapper"].optimizer.param_groups[0]["params"] = parameters[::-1]
    with pytest.raises(UserError, match="0.weight.momentum_buffer is 4 instead of 4x3"):
        require_same_run(checkpoint, "a.pth", **run)


def test_another_type_of_weights():
    run, checkpoint = small_run()
    checkpoint["state_dict"]["0.weight"] = checkpoint["state_dict"]["0.weight"].half()
    with pytest.raises(UserError, match="0.weight is torch.float16 instead of torch.float32"):
        require_same_run(checkpoint, "a.pth", **run)


def test_several_optimizers():
    run, checkpoint = small_run(torch.optim.SGD, momentum=0.9)
    run["optim_wrapper"] = OptimWrapperDict(one=run["optim_wrapper"])
    run["schedulers"] = dict(one=run["schedulers"])
    with pytest.raises(UserError, match="optimizers .*param_groups.* instead of one"):
        require_same_run(checkpoint, "a.pth", **run)
    for part in ("optimizer", "param_schedulers"):
        checkpoint[part] = dict(one=checkpoint[part])
    require_same_run(checkpoint, "a.pth", **run)
    checkpoint["optimizer"]["one"]["state"][0]["momentum_buffer"] = torch.zeros(2)
    with pytest.raises(UserError, match="0.weight.momentum_buffer is 2 instead of 4x3"):
        require_same_run(checkpoint, "a.pth", **run)


def test_a_buffer_that_is_infinite_by_design_is_resumed():
    run, checkpoint = small_run()
    run["model"].register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    checkpoint["state_dict"] = copy.deepcopy(run["model"].state_dict())
    require_same_run(checkpoint, "a.pth", **run)
    checkpoint["state_dict"]["1.running_var"][0] = float("inf")
    with pytest.raises(UserError, match="NaN or infinity in 1.running_var, so"):
        require_same_run(checkpoint, "a.pth", **run)
