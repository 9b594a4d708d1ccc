"""Every pre-training config: resolves, runs as its smoke twin, exports what loads completely."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import get_installed_path
from mmpretrain.registry import MODELS as HOST_MODELS

from tests.support.smoke import CONFIGS, narrow, smoke_twin

FULL_WIDTH = ("gersp_r50.py", "gersp_r18_demo.py")  # the others of these networks are narrowed
PRETRAIN = sorted(p.name for p in (CONFIGS / "pretrain").glob("*.py"))
BASELINES = sorted(f"baselines/{p.name}" for p in (CONFIGS / "pretrain/baselines").glob("*.py"))


# What the exported file of a baseline says it is; that of all others is GeRSP.
METHODS = {
    "imp_r50": "IMP",
    "moco_r50_in": "MoCo-IN",
    "moco_r50_maid": "MoCo-MAID",
    "moco_r50_in-maid": "MoCo-IN-MAID",
    "mocov2_r50_maid": "MoCov2",
    "byol_r50_maid": "BYOL",
    "simsiam_r50_maid": "SimSiam",
    "mocov3_r50_maid": "MoCoV3",
    "imp_r18_demo": "IMP",
    "moco-in_r18_demo": "MoCo-IN",
    "moco-maid_r18_demo": "MoCo-MAID",
    "moco-in-maid_r18_demo": "MoCo-IN-MAID",
    "mocov2_r18_demo": "MoCov2",
    "byol_r18_demo": "BYOL",
    "simsiam_r18_demo": "SimSiam",
    "mocov3_r18_demo": "MoCoV3",
}


def test_there_are_the_promised_configs():
    assert {Path(name).stem for name in BASELINES} == set(METHODS)
    promised = {"gersp_r50", "gersp_r50_200e", "gersp_r50_plus", "gersp_r50_official"}
    promised.add("gersp_r18_demo")
    assert promised <= {name.removesuffix(".py") for name in PRETRAIN}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda p: p.name)
def test_is_plain_text_without_traps(path):
    text = path.read_text()
    assert not re.search(r"^\s*(import|from)\s", text, re.M), "an import makes a config lazy"
    assert "::" not in text, "bases of other packages do not resolve on every install"
    assert "custom_imports" not in text
    assert not re.search(r"[\"']/(?!\.)", text), "absolute path"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAIN + BASELINES)
def test_smoke_twin_trains_exports_and_loads_completely(name, pair_data, tmp_path):
    cfg = smoke_twin(name, pair_data, tmp_path)
    if cfg.model.backbone.type == "ResNet" and name not in FULL_WIDTH:
        parts = filter(None, map(cfg.model.get, ("neck", "natural_head")))
        width = 512 if cfg.model.backbone.depth < 50 else 2048
        assert {part.in_channels for part in parts} == {width}
        narrow(cfg.model)
    runner = Runner.from_cfg(cfg)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    assert runner.iter == 2
    history = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(history) == 2 and all(torch.isfinite(torch.tensor(history)))

    state = runner.model.state_dict()
    enqueued = 16 if cfg.model.get("symmetric") else 8
    assert "queue_ptr" not in state or int(state["queue_ptr"]) == enqueued
    changed = [k for k in state if "conv" in k or "weight" in k]
    assert any(not torch.equal(before[k], state[k]) for k in changed)

    exported = tmp_path / f"{Path(name).stem}_backbone.pth"
    content = torch.load(exported, weights_only=True)
    assert content["meta"]["epoch"] == 1
    assert content["meta"]["method"] == METHODS.get(Path(name).stem, "GeRSP")
    assert content["meta"]["normalisation"]["channel_order"] == "RGB"
    backbone = HOST_MODELS.build(cfg.model.backbone)
    weights = {k.removeprefix("backbone."): v for k, v in content["state_dict"].items()}
    backbone.load_state_dict(weights, strict=True)
    for key, value in runner.model.backbone.state_dict().items():
        assert torch.equal(weights[key], value), key


def test_official_config_differs_from_the_recommended_one_in_the_listed_points_alone():
    ours = Config.fromfile(CONFIGS / "pretrain/gersp_r50.py").to_dict()
    official = Config.fromfile(CONFIGS / "pretrain/gersp_r50_official.py").to_dict()
    assert flat(official).items() - flat(ours).items() == {
        ("model.teacher_momentum", "0.999"),
        ("model.key_bn", "'shuffle'"),
        ("model.teacher_init", "'separate'"),
        ("model.teacher_projector", "'frozen'"),
        ("model.natural_head.init_cfg", "None"),
        ("train_dataloader.sampler.pairing", "'locked'"),
        ("default_hooks.teacher_update.timing", "'before_forward'"),
    }


def test_plus_differs_in_the_symmetric_loss_alone():
    ours = Config.fromfile(CONFIGS / "pretrain/gersp_r50.py").to_dict()
    plus = Config.fromfile(CONFIGS / "pretrain/gersp_r50_plus.py").to_dict()
    assert flat(plus).items() ^ flat(ours).items() == {("model.symmetric", "True")}


def test_200_epochs_differ_in_the_schedule_alone():
    ours = Config.fromfile(CONFIGS / "pretrain/gersp_r50.py").to_dict()
    longer = Config.fromfile(CONFIGS / "pretrain/gersp_r50_200e.py").to_dict()
    changed = {key for key, _ in flat(longer).items() ^ flat(ours).items()}
    assert changed == {"param_scheduler", "train_cfg.max_epochs"}
    assert sum(longer["param_scheduler"][0]["periods"]) == longer["train_cfg"]["max_epochs"] == 200


def test_backbone_and_projector_are_those_of_the_host_librarys_moco_v2():
    host = get_installed_path("mmpretrain") + "/.mim/configs/mocov2"
    theirs = Config.fromfile(f"{host}/mocov2_resnet50_8xb32-coslr-200e_in1k.py").model
    ours = Config.fromfile(CONFIGS / "pretrain/gersp_r50.py").model
    differences = {"num_stages"}  # ours is written out
    for part in ("backbone", "neck"):
        built = HOST_MODELS.build(ours[part]).state_dict()
        reference = HOST_MODELS.build(theirs[part]).state_dict()
        assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in reference.items()}
        for key in set(ours[part]) & set(theirs[part]) - differences:
            mine, other = ours[part][key], theirs[part][key]
            same_layers = {mine, other} == {(3,), (4,)} if key == "out_indices" else mine == other
            assert same_layers or mine == other, f"{part}.{key}: {mine} here, {other} there"


def flat(cfg: dict, prefix: str = "") -> dict[str, str]:
    """Return every leaf of a config by its dotted name; lists and strings are leaves."""
    out: dict[str, str] = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = repr(value)
    return out
