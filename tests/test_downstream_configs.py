"""Every downstream config: builds, trains two iterations from a backbone file, and is tested."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing.dummy
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from gersp_mm.datasets.known import DIOR, DOTA, EUROSAT, LOVEDA, RESISC45
from gersp_mm.engine.config import FROZEN_STAGES, apply_switches, require_weights
from gersp_mm.utils.called import SCRIPTS
from gersp_mm.utils.errors import UserError
from tests.support.downstream import (
    downstream_configs,
    downstream_twin,
    shrink_model,
    write_backbone,
)
from tests.support.smoke import CONFIGS, ROOT, forget_runs

NAMES = downstream_configs()
TASKS = ("eurosat", "resisc45", "dior", "dota", "loveda")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    return {depth: write_backbone(folder / f"r{depth}.pth", depth) for depth in (18, 50)}


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / "downstream" / name)


def test_every_promised_task_and_model_is_there():
    stems = {Path(name).stem for name in NAMES}
    promised = {
        f"{protocol}_r50_{task}"
        for protocol in ("finetune", "linear", "knn", "fewshot")
        for task in ("eurosat", "resisc45")
    }
    for detector in ("faster-rcnn", "retinanet", "dyhead"):
        promised |= {f"{detector}_r50_fpn_24e_{data}" for data in ("dior", "dota-released")}
    for detector in ("rotated-faster-rcnn", "oriented-rcnn", "rotated-retinanet"):
        promised |= {f"{detector}_le90_r50_fpn_1x_{data}" for data in ("dior-r", "dota-field")}
    promised |= {f"{model}_r50-d8_80k_loveda" for model in ("psanet", "deeplabv3plus")}
    assert promised <= stems


@pytest.mark.parametrize("name", NAMES)
def test_conventions(name):
    cfg = load(name)
    assert cfg.pretrained == "not-given"
    assert cfg.model.backbone.init_cfg == dict(
        type="Pretrained", checkpoint="not-given", prefix="backbone."
    )
    assert cfg.model.backbone.frozen_stages == FROZEN_STAGES[cfg.frozen]
    assert cfg.default_hooks.pretrained_check.type == "gersp_mm.PretrainedCheckHook"
    assert cfg.default_hooks.class_check.type == "gersp_mm.ClassCheckHook"
    assert {"dataset", "measured_by", "split", "metrics"} <= set(cfg.evaluation)
    assert cfg.evaluation.metrics or cfg.submission  # something can be measured
    first, *words = cfg.data_preparation.split()
    script = SCRIPTS[" ".join(words[:2])] if first == "gersp" else words[0].partition("/")[2]
    assert (ROOT / ("tools" if first == "gersp" else "demo") / script).is_file(), script
    if cfg.get("train_cfg"):
        assert cfg.auto_scale_lr.base_batch_size


def test_facts_of_data_sets_are_the_packages_own():
    bases = dict(dior=DIOR, dior_r=DIOR, dota_released=DOTA, dota_field=DOTA, eurosat=EUROSAT,
                 resisc45=RESISC45, loveda=LOVEDA)  # fmt: skip
    for base, known in bases.items():
        cfg = load(f"_base_/datasets/{base}.py")
        assert cfg.get("classes", known.classes) == known.classes, base
        assert cfg.data_root.split("/")[1] == known.folder, base
    for base, known in dict(eurosat=EUROSAT, resisc45=RESISC45).items():
        cfg = load(f"_base_/datasets/{base}.py")
        for part in known.shares:
            lists = cfg[f"{part}_dataloader"].dataset.ann_file
            assert lists == f"splits/{known.split.name}/{part}.txt"
        crops = [step.crop_size for step in cfg.test_pipeline if step.type == "CenterCrop"]
        assert (crops or [known.side]) == [known.crop] and known.resize == known.side
    assert load("_base_/datasets/dior.py").test_pipeline[1].scale == (DIOR.side, DIOR.side)
    assert load("_base_/datasets/loveda.py").test_pipeline[1].scale == (LOVEDA.side, LOVEDA.side)
    for name in NAMES:
        cfg = load(name)
        heads = [cfg.model.get(k) for k in ("head", "bbox_head", "roi_head")]
        counts = [(h.get("bbox_head") or h).num_classes for h in heads if h]
        assert all(count == len(cfg.classes) for count in counts), name


# ------------------------------------------------------------------------------------- two switches


def test_weights_have_to_be_named_or_refused():
    cfg = load("dior/faster-rcnn_r50_fpn_24e_dior.py")
    apply_switches(cfg)
    with pytest.raises(UserError, match="pretrained=PATH or GERSP_CHECKPOINT=PATH"):
        require_weights(cfg)
    cfg.pretrained = "some.pth"
    with pytest.raises(UserError, match="some.pth is not in model.backbone.init_cfg"):
        require_weights(cfg)  # as in another library's tool
    apply_switches(cfg)
    require_weights(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == "some.pth"
    cfg.pretrained = None
    apply_switches(cfg)
    require_weights(cfg)
    assert "init_cfg" not in cfg.model.backbone


def test_weights_from_the_environment(monkeypatch):
    monkeypatch.setenv("GERSP_CHECKPOINT", "from/environment.pth")
    monkeypatch.setenv("GERSP_DATA", "elsewhere")
    cfg = load("loveda/psanet_r50-d8_80k_loveda.py")
    assert cfg.model.backbone.init_cfg.checkpoint == cfg.pretrained == "from/environment.pth"
    assert cfg.train_dataloader.dataset.data_root == "elsewhere/loveda"
    require_weights(cfg)


def test_freezing_is_carried_into_the_model(monkeypatch):
    monkeypatch.setenv("GERSP_CHECKPOINT", "some.pth")
    cfg = load("dota/retinanet_r50_fpn_24e_dota-released.py")
    cfg.frozen = "stem_and_stage1"
    with pytest.raises(UserError, match="stem_and_stage1 is not in"):
        require_weights(cfg)
    apply_switches(cfg)
    apply_switches(cfg)
    assert cfg.model.backbone.frozen_stages == 1
    cfg.frozen = "half"
    with pytest.raises(UserError, match="frozen must be one of 'none', 'stem_and_stage1', 'all'"):
        apply_switches(cfg)


# ---------------------------------------------------------------------------------- building, runs


@functools.cache
def loaded(name: str) -> Config:
    cfg = load(name)
    shrink_model(cfg.model)
    return cfg


def build(name: str, part: str = "backbone") -> torch.nn.Module:
    cfg = loaded(name)
    scope = cfg.default_scope
    import_module(scope if scope == "mmpretrain" else f"{scope}.models")
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg.model[part] if part else cfg.model)


ONE_OF_EACH = (
    "eurosat/finetune_r18_eurosat.py",
    "dior/retinanet_r50_fpn_24e_dior.py",
    "dior/rotated-retinanet_le90_r50_fpn_1x_dior-r.py",
    "loveda/psanet_r50-d8_80k_loveda.py",
)


def test_hosts_build_one_after_any_other():
    pretraining = Config.fromfile(CONFIGS / "pretrain/gersp_r18_demo.py").model
    pretraining.backbone.base_channels = pretraining.backbone.stem_channels = 8
    pretraining.update(neck=None, head=None)
    hosts = dict(zip(ONE_OF_EACH, ("mmpretrain", "mmdet", "mmdet", "mmseg")))
    for pair in itertools.permutations([*ONE_OF_EACH, None], 2):
        for name in pair:
            if name is None:
                with DefaultScope.overwrite_default_scope("mmpretrain"):
                    model: Any = MODELS.build(pretraining)
                assert type(model.backbone).__module__.startswith("mmpretrain.")
            else:
                module = type(build(name)).__module__
                assert module.startswith(f"{hosts[name]}."), (pair, name)


@pytest.mark.slow
def test_hosts_import_in_the_opposite_order():
    """Each finds our types from its scope, before its own models are imported."""
    code = (
        "from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope\n"
        "from tests.test_downstream_configs import ONE_OF_EACH, build, load\n"
        "for name in reversed(ONE_OF_EACH):\n"
        "    with DefaultScope.overwrite_default_scope(load(name).default_scope):\n"
        "        ours = [MODELS.get('gersp_mm.GeRSP'), HOOKS.get('gersp_mm.TeacherUpdateHook'),\n"
        "                DATASETS.get('gersp_mm.PairedDataset')]\n"
        "    model = build(name, '')\n"
        "    print('built', type(model.backbone).__name__, *(one.__name__ for one in ours))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    built = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("built")]
    assert len(built) == 4
    for backbone, *ours in built:
        assert "ResNet" in backbone
        assert ours == ["GeRSP", "TeacherUpdateHook", "PairedDataset"]


@pytest.fixture
def quick_rotated_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmrotate starts four processes for each evaluation, which takes longer than all the rest."""
    if find_spec("mmrotate"):
        mean_ap = import_module("mmrotate.evaluation.functional.mean_ap")
        monkeypatch.setattr(mean_ap, "get_context", lambda kind: multiprocessing.dummy)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_smoke_twin_trains_and_is_tested(
    name, downstream_data, backbones, tmp_path, quick_rotated_evaluation
):
    cfg = downstream_twin(name, downstream_data, tmp_path)
    cfg.pretrained = str(backbones[cfg.model.backbone.depth])
    apply_switches(cfg)
    if not cfg.get("train_cfg"):
        metrics = Runner.from_cfg(cfg).test()
    else:
        runner = Runner.from_cfg(cfg)
        before = torch.load(cfg.pretrained, weights_only=True)["state_dict"]
        runner.train()
        assert runner.iter == 2
        losses = runner.message_hub.get_scalar("train/loss").data[0]
        assert len(losses) == 2 and all(map(math.isfinite, losses))
        after = runner.model.backbone.state_dict()
        names = [n for n in after if n.endswith("conv1.weight")]
        moved = {n for n in names if not torch.equal(after[n], before[f"backbone.{n}"])}
        assert (not moved) if cfg.frozen == "all" else (len(moved) == len(names))
        (checkpoint,) = (*tmp_path.glob("epoch_*.pth"), *tmp_path.glob("iter_2.pth"))[-1:]
        meta = torch.load(checkpoint, weights_only=False)["meta"]
        assert meta["pretrained"]["method"] == "GeRSP"
        assert len(meta["pretrained"]["sha256"]) == 64
        forget_runs()
        cfg.load_from = str(checkpoint)
        if "outfile_prefix" in cfg.test_evaluator:
            cfg.test_evaluator.outfile_prefix = str(tmp_path / "Task1")
        metrics = Runner.from_cfg(cfg).test()
    if not cfg.evaluation.metrics:
        assert (tmp_path / "Task1" / "Task1.zip").is_file()
    for key in cfg.evaluation.metrics:
        if not key.startswith("fewshot"):
            assert math.isfinite(metrics[key]), metrics
