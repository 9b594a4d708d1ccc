"""Bad options of tools/train.py: one line with the field and the fix, before the first step."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
from mmengine.runner import EpochBasedTrainLoop, Runner

from gersp_mm.commands import train
from gersp_mm.engine.loop import ResumableTrainLoop
from gersp_mm.utils.errors import UserError
from tests.support.runs import demo_config
from tests.support.smoke import CONFIGS, write_classes

DATASET = "train_dataloader.dataset"
VIEW = f"{DATASET}.rs_pipeline.0"
PRETRAIN = {
    "train_dataloader.batch_size=0": "train_dataloader.batch_size cannot be 0. Set it to a whole",
    "train_dataloader.batch_size=2.5": "train_dataloader.batch_size cannot be 2.5",
    "train_dataloader.batch_size=64": "16 samples do not fill a batch of 64 .* Lower train_data",
    "model.head.init_cfg.std=1": "model.head.init_cfg has no type. Add model.head.init_cfg.type",
    "train_dataloader.num_workers=-1": "num_workers cannot be -1. Set it to a whole number",
    "train_dataloader.num_workers=many": "num_workers cannot be 'many'",
    "train_dataloader.drop_last=yes": "drop_last cannot be 'yes'. Set it to True or False.",
    "train_dataloader.collate_fn.type=gersp_mm.collate_pair": "mean gersp_mm.collate_pairs?",
    "train_dataloader.sampler.type=gersp_mm.PairSampler": "mean gersp_mm.PairedSampler?",
    "train_dataloader.sampler.seed=-4": "train_dataloader.sampler: seed cannot be -4. Set it to",
    f"{DATASET}.type=gersp_mm.PairDataset": "Did you mean gersp_mm.PairedDataset?",
    f"{DATASET}.cache_images=-1": f"{DATASET}: cache_images cannot be -1. Set it to a whole",
    f"{VIEW}.type=gersp_mm.ViewAugment": f"{VIEW}.type=.* Did you mean gersp_mm.ViewAugmentation?",
    f"{VIEW}.size=64px": f"{VIEW}: size cannot be '64px'. Set it to a whole number of at least 1",
    f"{VIEW}.size=0": f"{VIEW}: size cannot be 0",
    f"{VIEW}.grayscale_prob=20": f"{VIEW}: grayscale_prob cannot be 20. Set it to .* 0 to 1",
    f"{VIEW}.scale=(1.0,0.2)": f"{VIEW}: scale=.* Give the smallest share of the image's area",
    f"{VIEW}.scale=(0.2,7)": f"{VIEW}: scale cannot be 7. Set it to a number above 0 and of at m",
    f"{VIEW}.jitter=[0.1,0.1]": f"{VIEW}: jitter cannot be .* Set it to numbers like",
    f"{VIEW}.quarter_turns=90": f"{VIEW}: quarter_turns cannot be 90. Set it to True or False",
    "optim_wrapper.optimizer.lr=nan": "optim_wrapper.optimizer.lr cannot be nan. Set it to a numb",
    "optim_wrapper.optimizer.lr=-1": "optim_wrapper.optimizer.lr cannot be -1",
    "optim_wrapper.optimizer.lr=fast": "optim_wrapper.optimizer.lr cannot be 'fast'",
    "optim_wrapper.optimizer.momentum=inf": "momentum cannot be inf. Set it to .* 0 to 1",
    "optim_wrapper.optimizer.type=SDG": "optim_wrapper.optimizer.type='SDG' .* Did you mean SGD?",
    "optim_wrapper.optimizer.type=Adam": "optimizer .Adam. has no argument momentum. Remove it.",
    "optim_wrapper.type=OptmWrapper": "optim_wrapper.type=.* Did you mean OptimWrapper?",
    "optim_wrapper.accumulative_counts=0": "accumulative_counts cannot be 0. Set it to a whole",
    "optim_wrapper.accumulative_counts=two": "accumulative_counts cannot be 'two'",
    "optim_wrapper.clip_grad.max_norm=-1": "max_norm cannot be -1. Set it to a number above 0",
    "model.alpha=nan": "model: alpha cannot be nan. Set it to a number of at least 0",
    "model.head.temperature=0": "model.head: temperature cannot be 0. Set it to a number above 0",
    "model.queue_len=many": "model: queue_len cannot be 'many'. Set it to a whole number",
    "model.backbone.depth=19": "model.backbone .ResNet. cannot be built .*19.* Correct its values",
    "model.backbone.type=ResNot": "model.backbone.type='ResNot' is not known. Did you mean ResNet?",
    "model.type=gersp_mm.GERSP": "Did you mean gersp_mm.GeRSP?",
    "model.data_preprocessor.std=[0,57,57]": "std cannot be 0. Set it to a number above 0",
    "model.data_preprocessor.mean=[1,2]": "mean=.* have different lengths. Give one number per",
    "model.data_preprocessor.std=[0.2,0.2,0.2]": "values of 0 to 255. Multiply mean and std by 255",
    "train_cfg.max_epochs=two": "train_cfg.max_epochs cannot be 'two'. Set it to a whole number",
    "train_cfg.type=ResumableLoop": "train_cfg.type='ResumableLoop' is not known",
    "param_scheduler.0.type=CosinLR": "param_scheduler.0.type='CosinLR' .* Correct the name.",
    "param_scheduler=[dict(type=MultiStepLR)]": "needs 'milestones'. Set param_scheduler.0.milest",
    "default_hooks.logger.interval=0": "logger.interval cannot be 0. Set it to a whole number",
    "default_hooks.collapse_monitor.min_std=nan": "CollapseMonitorHook: min_std cannot be nan",
    "default_hooks.bad_images.max_share=5": "max_share cannot be 5. Set it to .* 0 to 1",
    "default_hooks.teacher_update.end_momentum=2": "end_momentum cannot be 2. Set it to .* 0 to 1",
    "custom_hooks=[dict(type=EMAHook,hooks=[dict(a=1)])]": "EMAHook cannot start .*'hooks'",
    "custom_hooks=[dict(type=EMAHok)]": "custom_hooks.0.type='EMAHok' .* Did you mean EMAHook?",
    "randomness.seed=-1": "randomness.seed cannot be -1. Set it to a whole number from 0",
    "env_cfg.mp_cfg.mp_start_method=frok": "must be one of 'fork', 'spawn', 'forkserver'",
    "log_level=LOUD": "log_level must be one of 'DEBUG', 'INFO'",
    "default_scope=mmpretrane": "default_scope='mmpretrane' names a library that is not installed",
}
DOWNSTREAM = {
    "model.head.num_classes=2": "num_classes=2, but the training data have 3 classes. Set it to 3",
    "model.head.in_channels=32": "but the backbone gives 64 channels. Set model.head.in_channels",
    "val_evaluator.topk=[1,5]": r"val_evaluator.topk=\(1, 5\) does not work with 3 .* to \(1,\)",
    "val_evaluator.type=Acuracy": "val_evaluator.type='Acuracy' is not known. Did you mean Accurac",
    f"{DATASET}.type=CustmDataset": "Did you mean CustomDataset?",
    f"{DATASET}.pipeline.1.type=RandomResizeCrop": "Did you mean RandomResizedCrop?",
    f"{DATASET}.pipeline.1.scale=big": "pipeline.1 .* cannot be built .* its values: scale='big'",
    "model.data_preprocessor.std=[1,0,1]": "model.data_preprocessor.std cannot be 0",
    "optim_wrapper.optimizer.lr=nan": "optim_wrapper.optimizer.lr cannot be nan",
    "train_dataloader.sampler.shufle=True": "Did you mean train_dataloader.sampler.shuffle?",
}


class Running(Exception):
    """The first epoch begins."""


def run(config: Path, folder: Path, *options: str) -> None:
    """Call tools/train.py up to its first epoch."""
    arguments = [str(config), "--work-dir", str(folder / "work")]
    if options:
        arguments += ["--cfg-options", *options]
    with (
        mock.patch.object(Runner, "_log_env"),
        mock.patch.object(ResumableTrainLoop, "run_epoch", side_effect=Running),
        mock.patch.object(EpochBasedTrainLoop, "run_epoch", side_effect=Running),
    ):
        train.run(train.parse_args(arguments))


@pytest.fixture(scope="module")
def pretrain(pair_data, tmp_path_factory) -> Path:
    """A config file of pre-training."""
    folder = tmp_path_factory.mktemp("pretrain")
    demo_config(pair_data, folder).dump(folder / "small.py")
    return folder / "small.py"


@pytest.fixture(scope="module")
def downstream(tmp_path_factory) -> Path:
    """A config file of fine-tuning on three classes of small images."""
    folder = tmp_path_factory.mktemp("downstream")
    write_classes(folder / "data", 3, 8)
    names = ("class_0", "class_1", "class_2")
    data = dict(data_root=str(folder / "data"), ann_file="", metainfo=dict(classes=names))
    loader = f"dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(**{data}))"
    (folder / "small.py").write_text(
        f"_base_ = {str(CONFIGS / 'downstream/eurosat/finetune_r18_eurosat.py')!r}\n"
        "model = dict(backbone=dict(stem_channels=8, base_channels=8),"
        " head=dict(in_channels=64, num_classes=3))\n"
        f"train_dataloader = {loader}\nval_dataloader = {loader}\ntest_dataloader = {loader}\n"
        "auto_scale_lr = dict(base_batch_size=8)\n"
    )
    return folder / "small.py"


def refusal(config: Path, folder: Path, *options: str) -> str:
    with pytest.raises(UserError) as caught:
        run(config, folder, *options)
    text = str(caught.value)
    assert "\n" not in text, text
    return text


@pytest.mark.parametrize("option", PRETRAIN)
def test_pretraining(pretrain, tmp_path, option):
    text = refusal(pretrain, tmp_path, option)
    assert re.search(PRETRAIN[option], text), text


@pytest.mark.parametrize("option", DOWNSTREAM)
def test_downstream(downstream, tmp_path, option):
    text = refusal(downstream, tmp_path, "pretrained=None", option)
    assert re.search(DOWNSTREAM[option], text), text


def test_good_configs_reach_the_first_epoch_without_a_warning(
    pretrain, downstream, tmp_path, capsys
):
    with pytest.raises(Running):
        run(downstream, tmp_path, "pretrained=None")
    options = ["auto_scale_lr.base_batch_size=4", "model.key_bn=none", "model.queue_len=16"]
    with pytest.raises(Running):
        run(pretrain, tmp_path, *options, "train_dataloader.prefetch_factor=4", "log_level=INFO")
    captured = capsys.readouterr()
    assert "24 natural images with labels 0 to 2, a classifier of 3 classes" in captured.out
    assert "!!!" not in captured.out + captured.err


def test_an_error_of_the_running_loop_keeps_its_traceback(pretrain, tmp_path):
    fault = ZeroDivisionError("a bug")
    with (
        mock.patch.object(Runner, "_log_env"),
        mock.patch.object(ResumableTrainLoop, "run_iter", side_effect=fault),
        pytest.raises(ZeroDivisionError, match="a bug"),
    ):
        train.run(train.parse_args([str(pretrain), "--work-dir", str(tmp_path)]))


def test_many_more_workers_than_cores_are_said_once(pretrain, tmp_path, capsys):
    cores = "gersp_mm.utils.provenance.cores"
    with mock.patch(cores, lambda: 2), pytest.raises(Running):
        run(pretrain, tmp_path, "train_dataloader.num_workers=40", "log_level=INFO")
    out = capsys.readouterr().out
    assert out.count("train_dataloader.num_workers=40 starts 40 worker processes on 2 cores") == 1
    assert "Set it to about 2." in out
