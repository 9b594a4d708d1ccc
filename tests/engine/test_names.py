"""Options that change nothing are refused with the nearest name; all real ones pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import get_installed_path, is_installed

from gersp_mm.engine.config import read_config
from gersp_mm.engine.preflight import names
from gersp_mm.engine.preflight.checks import CONFIG_CHECKS
from gersp_mm.engine.preflight.findings import run_checks
from gersp_mm.utils.errors import UserError
from tests.support.smoke import CONFIGS, ROOT

DEMO = "pretrain/gersp_r18_demo.py"
DIOR = "downstream/dior/faster-rcnn_r50_fpn_24e_dior.py"
EUROSAT = "downstream/eurosat/finetune_r50_eurosat.py"
SHIPPED = sorted(
    path
    for folder in (CONFIGS, ROOT / "benchmarks/mini/configs")
    for path in folder.rglob("*.py")
    if "_base_" not in path.parts
)
REFUSED = {
    (DEMO, "train_dataloder.batch_size=4"): "Did you mean train_dataloader.batch_size?",
    (DEMO, "resum=True"): "Did you mean resume?",
    (DEMO, "max_epochs=1"): "Write it as train_cfg.max_epochs.",
    (DEMO, "frozen=all"): "no frozen is read at the top level",
    (DEMO, "nonsense=1"): "Remove it, or write the whole key.",
    (DEMO, "train_dataloader.num_worker=2"): "Did you mean train_dataloader.num_workers?",
    (DEMO, "train_dataloader.dataset.natural.indces=8"): "Did you mean .*natural.indices",
    (DEMO, "train_dataloader.dataset.rs_pipeline.0.grayscal_prob=0"): "0.grayscale_prob?",
    (DEMO, "train_dataloader.dataset.rs_pipeline.1.size=8"): "Write .*rs_pipeline.0.",
    (DEMO, "model.backbone.deph=50"): "ResNet has no deph. Did you mean model.backbone.depth?",
    (DEMO, "model.backbone.depth.x=1"): "because model.backbone.depth is 18, not a dict.",
    (DEMO, "model.head.temprature=1"): "Did you mean model.head.temperature?",
    (DEMO, "default_hooks.knn_evl.k=3"): "Did you mean default_hooks.knn_eval?",
    (DEMO, "default_hooks.knn_evl=None"): "Did you mean default_hooks.knn_eval?",
    (DEMO, "optim_wrapper.clip_grad.max_nrm=3"): "Did you mean optim_wrapper.clip_grad.max_norm?",
    (DEMO, "optim_wrapper.acumulative_counts=3"): "optim_wrapper.accumulative_counts?",
    (DEMO, "param_scheduler.T_max=3"): "Write param_scheduler.0, param_scheduler.1.",
    (DEMO, "param_scheduler.0.T_max=3"): "LinearLR has no T_max",
    (DEMO, "train_cfg.val_intervl=2"): "Did you mean train_cfg.val_interval?",
    (DEMO, "randomness.sed=3"): "Did you mean randomness.seed?",
    (DEMO, "env_cfg.cudnn_bench=True"): "Did you mean env_cfg.cudnn_benchmark?",
    (DEMO, "model=GeRSP"): "would replace a whole section. Set a key of it",
    (DIOR, "data_root=/x"): "Set the keys that hold its value: train_dataloader.dataset.data_root,",
    (DIOR, "train_pipeline.2.scale=4"): "Set .* value: train_dataloader.dataset.pipeline.2.scale.",
    (DIOR, "classes=[a]"): "train_dataloader.dataset.metainfo.classes",
    (DIOR, "model.test_cfg.rcnn.max_per_im=5"): "Did you mean model.test_cfg.rcnn.max_per_img?",
    (DIOR, "train_dataloader.dataset.pipeline.2.scale.0=4"): "is a tuple. Replace it whole",
    (EUROSAT, "evaluation.datset=x"): "Did you mean evaluation.dataset?",
}


@pytest.mark.parametrize("config, option", REFUSED, ids=lambda text: text.replace("/", "-"))
def test_an_option_that_changes_nothing_is_refused(config, option):
    _, findings = read_config(CONFIGS / config, [option])
    assert [finding.severity for finding in findings] == ["error"]
    assert findings[0].field == option.partition("=")[0]
    assert re.search(REFUSED[config, option], findings[0].text), findings[0].text


ACCEPTED = [
    (DEMO, "resume=True"),
    (DEMO, "pretrained=/x.pth"),
    (DEMO, "load_from=/x.pth"),
    (DEMO, "randomness.deterministic=True"),
    (DEMO, "optim_wrapper.accumulative_counts=2"),
    (DEMO, "optim_wrapper.clip_grad.max_norm=3"),
    (DEMO, "optim_wrapper.optimizer.nesterov=True"),
    (DEMO, "optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.1"),
    (DEMO, "model.backbone.frozen_stages=1"),
    (DEMO, "model.backbone.norm_cfg.requires_grad=False"),
    (DEMO, "model.symmetric=True"),
    (DEMO, "train_dataloader.prefetch_factor=4"),
    (DEMO, "train_dataloader.dataset.natural.indices=8"),
    (DEMO, "train_dataloader.dataset.natural_pipeline.0.blur_prob=0.5"),
    (DEMO, "train_cfg.val_interval=2"),
    (DEMO, "default_hooks.checkpoint.save_last=False"),
    (DEMO, "default_hooks.timer=None"),
    (DEMO, "param_scheduler.1.convert_to_iter_based=False"),
    (DIOR, "model.rpn_head.anchor_generator.octave_base_scale=4"),
    (DIOR, "train_dataloader.sampler.round_up=False"),
    (DIOR, "train_dataloader.dataset.test_mode=True"),
    (DIOR, "val_evaluator.classwise=True"),
    (EUROSAT, "frozen=all"),
    (EUROSAT, "evaluation.model=mine"),
    (EUROSAT, "model.head.cal_acc=True"),
]


@pytest.mark.parametrize("config, option", ACCEPTED, ids=lambda text: text.replace("/", "-"))
def test_a_parameter_that_the_config_does_not_mention_passes(config, option):
    if config == DIOR and not is_installed("mmdet"):
        pytest.skip("needs mmdet")
    _, findings = read_config(CONFIGS / config, [option])
    assert findings == []


def test_a_changed_type_brings_its_own_parameters():
    options = ["optim_wrapper.optimizer.type=AdamW", "optim_wrapper.optimizer.betas=[0.9,0.99]"]
    assert read_config(CONFIGS / DEMO, options)[1] == []
    options[1] = "optim_wrapper.optimizer.beta=[0.9,0.99]"
    _, findings = read_config(CONFIGS / DEMO, options)
    assert "AdamW has no beta. Did you mean optim_wrapper.optimizer.betas?" in findings[0].text


def test_behind_opaque_keywords_an_option_is_accepted_with_a_warning():
    options = ["default_hooks.ema.type=EMAHook", "default_hooks.ema.momentum=0.1"]
    cfg, findings = read_config(CONFIGS / DEMO, options)
    assert [finding.severity for finding in findings] == ["warning"]
    assert "it is not known whether EMAHook reads momentum" in findings[0].text
    assert cfg.default_hooks.ema == dict(type="EMAHook", momentum=0.1)


def test_misspelled_names_of_a_config_file_are_refused(tmp_path):
    config = tmp_path / "own.py"
    config.write_text(
        f"_base_ = {str(CONFIGS / DEMO)!r}\n"
        "optim_wraper = dict(accumulative_counts=2)\n"
        "env_cfg = dict(cudnn_benchmrk=True)\n"
        "train_pipeline = []\nmy_size = 48\nlr = 0.1\n"
        "resumed_from = None\n"
    )
    cfg, _ = read_config(config)
    texts = [finding.text for finding in names.check_config_names(cfg)]
    assert texts == [
        "the config's optim_wraper changes nothing. Rename it to optim_wrapper.",
        "env_cfg.cudnn_benchmrk changes nothing. Rename it to cudnn_benchmark.",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_config_gives_an_alarm(path):
    assert run_checks(CONFIG_CHECKS, Config.fromfile(path)) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_name_of_a_shipped_config_would_pass_as_an_option(path):
    cfg = Config.fromfile(path)
    if not is_installed(cfg.default_scope):
        pytest.skip(f"needs {cfg.default_scope}")
    assert refused_names(cfg) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["frozen_stages=9"], "frozen_stages=9 and frozen=none contradict"),
        (["frozen_stages=4"], "frozen_stages=4 and frozen=none contradict"),
        (["init_cfg.checkpoint=b.pth"], "checkpoint=b.pth and pretrained=a.pth contradict"),
        (["init_cfg=None"], "init_cfg.checkpoint=None and pretrained=a.pth contradict"),
    ],
)
def test_an_option_that_a_switch_would_replace_is_refused(options, text):
    with pytest.raises(UserError, match=text):
        read_config(
            CONFIGS / EUROSAT, ["pretrained=a.pth", *(f"model.backbone.{o}" for o in options)]
        )


def test_an_option_that_says_what_its_switch_says_is_taken():
    given = ["frozen=all", "model.backbone.frozen_stages=4"]
    given += ["pretrained=a.pth", "model.backbone.init_cfg.checkpoint=a.pth"]
    cfg, findings = read_config(CONFIGS / EUROSAT, given)
    assert findings == []
    assert cfg.model.backbone.frozen_stages == 4
    assert cfg.model.backbone.init_cfg.checkpoint == "a.pth"


def refused_names(cfg: Config) -> list[str]:
    """Look at every name of a config as if its section did not have it yet."""
    known = names.top_level_names()
    refused = []
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine"):
        for key, _ in names._flat(cfg):
            section, _, name = key.rpartition(".")
            held = names.value_at(cfg, section)
            if section.partition(".")[0] not in known or not hasattr(held, "get"):
                continue
            finding = names._check_name(key, section, name, {}, held)
            if finding is not None and finding.severity == "error":
                refused.append(finding.text)
    return refused


@pytest.mark.parametrize("host", ["mmpretrain", "mmdet", "mmseg", "mmrotate"])
def test_no_config_of_a_host_gives_an_alarm(host):
    if not is_installed(host):
        pytest.skip(f"needs {host}")
    folder = Path(get_installed_path(host)) / ".mim" / "configs"
    paths = sorted(p for p in folder.rglob("*.py") if "_base_" not in p.parts)
    for path in paths[:: max(1, len(paths) // 20)]:
        try:
            cfg = Config.fromfile(path)
        except (ImportError, FileNotFoundError, KeyError):  # of another library
            continue
        found = run_checks(CONFIG_CHECKS, cfg)
        # True of mmrotate's DOTA, whose val is trainval.
        assert [one for one in found if "evaluates on the images of" not in one.text] == [], path
