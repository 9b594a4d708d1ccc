from __future__ import annotations

import re
from unittest import mock

import pytest

from gersp_mm.utils.errors import UserError
from tests.runs import build, demo_config


def set_options(**options):
    def change(cfg):
        cfg.merge_from_dict({key.replace("__", "."): value for key, value in options.items()})

    return change


def drop_teacher_hook(cfg):
    cfg.default_hooks.pop("teacher_update")


def colours_for_nobody(cfg):
    cfg.train_dataloader.dataset.rs_pipeline[0].colour = "device"
    cfg.model.data_preprocessor = dict(type="mmpretrain.SelfSupDataPreprocessor")


def default_constructor(cfg):
    cfg.optim_wrapper.pop("constructor")


REFUSALS = {
    "queue below batch": (
        set_options(model__queue_len=3),
        "the queue holds 3 keys, fewer than the 4 of one step (4 a process, 1 processes): raise "
        "model.queue_len or lower train_dataloader.batch_size",
    ),
    "single image and BatchNorm": (
        set_options(train_dataloader__batch_size=1),
        "train_dataloader.batch_size=1 with BatchNorm: the keys would be normalised by "
        "themselves; use at least 2 images a process",
    ),
    "colours for nobody": (
        colours_for_nobody,
        "dataset.rs_pipeline leaves colours and flips to the data preprocessor, which "
        "SelfSupDataPreprocessor does not do: use gersp_mm.PairedDataPreprocessor, or "
        "colour='workers' in ViewAugmentation",
    ),
    "no teacher hook": (
        drop_teacher_hook,
        "no hook moves the teacher: add "
        "default_hooks=dict(teacher_update=dict(type='gersp_mm.TeacherUpdateHook'))",
    ),
    "teacher in optimizer": (
        default_constructor,
        "the optimizer holds the teacher's parameters: set "
        "optim_wrapper.constructor='gersp_mm.TrainableParamsConstructor'",
    ),
}


def refusal_of(cfg) -> str:
    runner = build(cfg)
    with pytest.raises(UserError) as caught:
        runner.train()
    assert runner.iter == 0
    return str(caught.value)


@pytest.mark.parametrize("change, text", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusal_before_the_first_step(pair_data, tmp_path, change, text):
    cfg = demo_config(pair_data, tmp_path)
    change(cfg)
    assert refusal_of(cfg) == text


def test_label_outside_the_classifier_names_the_file(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path)
    cfg.model.natural_head.num_classes = 2
    text = refusal_of(cfg)
    first = pair_data / "natural" / "class_2" / "000.jpg"
    assert text == (
        f"8 of 24 natural images have a label outside 0 to 1, the first being {first} with label "
        "2: set model.natural_head.num_classes to 3 or mend the labels"
    )


def test_empty_remote_sensing_folder_is_named(pair_data, tmp_path):
    (tmp_path / "empty").mkdir()
    cfg = demo_config(pair_data, tmp_path)
    cfg.train_dataloader.dataset.remote_sensing.data_root = str(tmp_path / "empty")
    runner = build(cfg)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / 'empty'))}/? holds no image"):
        runner.train()


def warnings_of(cfg) -> str:
    runner = build(cfg)
    with mock.patch.object(runner.logger, "warning") as warning:
        runner.train()
    return "\n".join(str(call.args[0]) for call in warning.call_args_list)


def test_unfitting_batch_without_lr_scaling_is_loud(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=2)
    cfg.optim_wrapper.accumulative_counts = 2
    text = warnings_of(cfg)
    assert "meant for batches of 32 pairs; this run has 8" in text
    assert "(4 a process x 1 processes x 2 accumulated)" in text
    assert "Add --auto-scale-lr to scale it, or set optim_wrapper.optimizer.lr yourself" in text


@pytest.mark.parametrize(
    "scaling", [dict(base_batch_size=4), dict(base_batch_size=32, enable=True), None]
)
def test_no_loud_line_when_all_is_well(pair_data, tmp_path, scaling):
    cfg = demo_config(pair_data, tmp_path, iterations=1)
    cfg.auto_scale_lr = scaling
    assert "learning rate" not in warnings_of(cfg)


def test_shuffling_on_one_process_is_said_not_to_work(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=1)
    assert "key_bn='shuffle' cannot work with one process" in warnings_of(cfg)
    cfg.model.key_bn = "none"
    assert "key_bn" not in warnings_of(cfg)


def test_a_network_without_batch_norm_may_have_batches_of_one(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=1)
    cfg.model.backbone.norm_cfg = dict(type="GN", num_groups=4)
    cfg.train_dataloader.batch_size = 1
    assert "key_bn" not in warnings_of(cfg)


def test_supervised_baseline_needs_no_teacher(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=1)
    cfg.model.update(neck=None, head=None)
    drop_teacher_hook(cfg)
    runner = build(cfg)
    runner.train()
    assert runner.iter == 1
