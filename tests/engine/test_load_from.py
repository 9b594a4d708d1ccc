"""A model starts from the whole file that load_from names, but for its heads, in every host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.engine.hooks import PretrainedCheckHook
from gersp_mm.utils.errors import UserError
from tests.engine.test_pretrained_check import HOSTS, file, start
from tests.support.runs import build, demo_config, load, train

__all__ = ["file"]  # a fixture


class Log(list):
    """Keeps what is logged."""

    def info(self, text: str) -> None:
        self.append(text)

    warning = info


def load_from(model: Any, content: Any, between: Any = lambda model: None) -> Log:
    """Do what Runner.train does with ``load_from``: hooks, initialisation, loading, hooks."""
    runner = SimpleNamespace(
        model=model, logger=Log(), _resume=False, _load_from="whole.pth", cfg=Config()
    )
    hook = PretrainedCheckHook()
    hook.before_run(runner)
    model.init_weights()
    hook.after_load_checkpoint(runner, content)
    own = model.state_dict()
    fitting = {n: t for n, t in content["state_dict"].items() if own[n].shape == t.shape}
    model.load_state_dict(fitting, strict=False)
    between(model)
    hook.before_train(runner)
    return runner.logger


def whole_model(host: str, file: Path) -> dict[str, Any]:
    """A checkpoint of a training of this host's model."""
    torch.manual_seed(5)
    model = start(host, file)
    model.backbone.init_cfg = None
    model.init_weights()
    scale = dict(mean=list(RGB_MEAN), std=list(RGB_STD), channel_order="RGB")
    return dict(state_dict=model.state_dict(), meta=dict(epoch=3, normalisation=scale))


@pytest.mark.parametrize("host", HOSTS)
def test_all_of_a_file_that_fits_is_there(host, file):
    content = whole_model(host, file)
    model = start(host, "not-given")  # whose own file is not wanted any more
    assert load_from(model, content) == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][name]), name


HEADS = {
    "mmpretrain": ("head.fc.weight", "head__num_classes"),
    "mmdet": ("bbox_head.retina_cls.weight", "bbox_head__num_classes"),
    "mmrotate": ("bbox_head.retina_cls.weight", "bbox_head__num_classes"),
    "mmseg": ("decode_head.conv_seg.weight", "decode_head__num_classes"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_head_of_other_classes_starts_anew_and_is_named(host, file):
    content = whole_model(host, file)
    name, option = HEADS[host]
    options = {option: 7}
    if host == "mmseg":
        options["decode_head__out_channels"] = 7
    model = start(host, file, **options)
    (line,) = load_from(model, content)
    assert "load_from=whole.pth does not hold all of this model's heads" in line
    assert f"{name} is " in line and "of another shape" in line and "backbone" not in line
    expected = content["state_dict"]
    for key, tensor in model.state_dict().items():
        if tensor.shape == expected[key].shape:
            assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("host", HOSTS)
def test_a_backbone_alone(host, file):
    """Enough for a classifier; a detector or segmenter would have a random neck."""
    content = torch.load(file, weights_only=True)
    model = start(host, "not-given")
    if host in ("mmdet", "mmrotate"):
        with pytest.raises(UserError, match=r"missing: neck\..*use pretrained=whole.pth without"):
            load_from(model, content)
        return
    (line,) = load_from(model, content)
    assert "missing: " in line and "head." in line
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][f"backbone.{key}"]), key


def renamed(old: str, new: str) -> Any:
    return lambda state: {new + n.removeprefix(old): t for n, t in state.items()}


def nan(state: dict) -> dict:
    state["backbone.layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    return state


def deeper(state: dict) -> dict:
    return {**state, "backbone.layer3.2.conv1.weight": torch.zeros(32, 32, 3, 3)}


BROKEN: dict[str, tuple[Any, dict, str]] = {
    "no name fits": (
        renamed("", "model."), {},
        r"load_from=whole.pth does not fit the model: 100 missing: backbone.conv1.weight, .* Its "
        r"names start with 'model\.', which load_from does not remove",
    ),
    "without prefix": (
        renamed("backbone.", ""), {}, "use pretrained=whole.pth instead of load_from, with model",
    ),
    "part of a backbone": (
        lambda state: {n: t for n, t in state.items() if "layer4" not in n}, {},
        "25 missing: backbone.layer4.0.conv1.weight.*The blocks differ",
    ),
    "a deeper network": (deeper, {}, "1 unexpected: backbone.layer3.2.conv1.weight. The blocks"),
    "a wider network": (
        None, dict(backbone__base_channels=16),
        "95 of another shape: backbone.layer1.0.conv1.weight is 8x8x3x3 instead of 16x8x3x3",
    ),
    "NaN": (nan, {}, r"whole.pth: 1 tensor holds NaN or infinity \(backbone.layer2.0.conv1.wei"),
    "other mean": (
        None, dict(data_preprocessor__mean=[127.5] * 3), r"was trained with mean=\[123.*127.5",
    ),
    "other order": (None, dict(data_preprocessor__to_rgb=False), "trained on RGB .* gives BGR"),
    "nothing": (lambda state: {}, {}, "whole.pth holds no tensors; it has nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused(case, file):
    change, options, reason = BROKEN[case]
    content = whole_model("mmpretrain", file)
    if change:
        content["state_dict"] = change(content["state_dict"])
    with pytest.raises(UserError, match=reason):
        load_from(start("mmpretrain", file, **options), content)


def test_weights_below_another_key_are_found(file):
    content = whole_model("mmpretrain", file)
    with pytest.raises(UserError, match="whole.pth holds its weights below 'model'"):
        load_from(start("mmpretrain", file), dict(model=content["state_dict"]))


def test_weights_changed_after_loading_are_noticed(file):
    def change(model):
        with torch.no_grad():
            model.backbone.conv1.weight[0, 0, 0, 0] += 1e-3

    with pytest.raises(UserError, match="was not loaded .*1 of other values: backbone.conv1.weigh"):
        load_from(start("mmpretrain", file), whole_model("mmpretrain", file), change)


# ------------------------------------------------------------------------------- runs of our own


class AtStart(Hook):
    """Keeps the state before the first iteration."""

    priority = "LOWEST"
    state: dict[str, torch.Tensor] = {}

    def before_train(self, runner):
        self.state = {k: v.clone() for k, v in runner.model.state_dict().items()}


@pytest.fixture(scope="module")
def finished(pair_data, tmp_path_factory) -> Path:
    """The checkpoint of a pre-training."""
    folder = tmp_path_factory.mktemp("finished")
    train(demo_config(pair_data, folder, iterations=2))
    return folder / "epoch_1.pth"


def test_checkpoints_say_how_their_images_are_normalised(finished):
    scale = load(finished)["meta"]["normalisation"]
    expected = torch.tensor([RGB_MEAN, RGB_STD]).tolist()  # as float32 has them
    assert scale == dict(mean=expected[0], std=expected[1], channel_order="RGB")


def test_pre_training_goes_on_from_a_whole_model(finished, pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path / "run", iterations=2)
    cfg.load_from = str(finished)
    hook = AtStart()
    build(cfg, hook).train()
    for name, tensor in load(finished)["state_dict"].items():
        assert torch.equal(hook.state[name], tensor), name


def test_pre_training_with_another_classifier(finished, pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path / "run", iterations=2)
    cfg.load_from = str(finished)
    cfg.model.natural_head.num_classes = 4
    hook = AtStart()
    build(cfg, hook).train()
    for name, tensor in load(finished)["state_dict"].items():
        if not name.startswith("natural_head."):
            assert torch.equal(hook.state[name], tensor), name
    assert hook.state["natural_head.fc.weight"].shape[0] == 4


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("queue_len", 64, "1 of another shape: queue is .*use pretrained=.* without load_from"),
        ("neck.hid_channels", 32, "of another shape: neck.mlp.0.weight is .*use pretrained="),
    ],
)
def test_pre_training_of_another_shape_is_refused(
    finished, pair_data, tmp_path, option, value, reason
):
    cfg = demo_config(pair_data, tmp_path / "run", iterations=2)
    cfg.merge_from_dict({"load_from": str(finished), f"model.{option}": value})
    with pytest.raises(UserError, match=reason):
        build(cfg).train()
    assert not list(tmp_path.glob("run/*.pth"))
