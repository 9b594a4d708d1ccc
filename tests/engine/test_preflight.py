from __future__ import annotations

import re
from unittest import mock

import pytest
import torch

from gersp_mm.engine.preflight import batch, shapes, teacher
from gersp_mm.engine.preflight.findings import Finding, refuse_errors, run_checks
from gersp_mm.utils.errors import UserError
from tests.support.runs import build, demo_config, refusal_of
from tests.support.smoke import write_pair


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
        "model.queue_len=3 keys are fewer than the 4 of one step (4 images per process, 1 "
        "processes). Raise model.queue_len or lower train_dataloader.batch_size.",
    ),
    "single image and BatchNorm": (
        set_options(train_dataloader__batch_size=1),
        "train_dataloader.batch_size=1 does not work with BatchNorm, because each key would be "
        "normalised by its own statistics. Use at least 2 images per process.",
    ),
    "colours for nobody": (
        colours_for_nobody,
        "dataset.rs_pipeline leaves colours and flips to the data preprocessor, which "
        "SelfSupDataPreprocessor does not do. Use gersp_mm.PairedDataPreprocessor, or "
        "colour='workers' in ViewAugmentation.",
    ),
    "no teacher hook": (
        drop_teacher_hook,
        "No hook updates the teacher. Add "
        "default_hooks=dict(teacher_update=dict(type='gersp_mm.TeacherUpdateHook')).",
    ),
    "teacher in optimizer": (
        default_constructor,
        "The optimizer holds the teacher's parameters. Set "
        "optim_wrapper.constructor='gersp_mm.TrainableParamsConstructor'.",
    ),
    "projector of another network": (
        set_options(model__neck__in_channels=32),
        "model.backbone (ResNet) gives 2×64×1×1, which model.neck (MoCoV2Neck) does not take: mat1 "
        "and mat2 shapes cannot be multiplied (2x64 and 32x64). Set model.neck.in_channels=64.",
    ),
    "classifier of another network": (
        set_options(model__natural_head__in_channels=32),
        "model.natural_head.in_channels=32, but the backbone gives 64 channels. Set "
        "model.natural_head.in_channels to 64.",
    ),
    "views of two sizes": (
        set_options(train_dataloader__dataset__natural_pipeline__0__size=40),
        "Remote-sensing views of 32 px and natural views of 40 px cannot go through the network "
        "together. Give both the same size, or set model.joint_forward=False.",
    ),
    "accumulation beyond the run": (
        set_options(optim_wrapper__accumulative_counts=5),
        "optim_wrapper.accumulative_counts=5 is more than the 4 iterations of the run. Lower "
        "accumulative_counts, or train for longer.",
    ),
}


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
        "2. Set model.natural_head.num_classes to 3, or correct the labels."
    )


def test_all_errors_are_told_together_in_one_message(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path)
    drop_teacher_hook(cfg)
    cfg.model.update(queue_len=3)
    cfg.auto_scale_lr.base_batch_size = 0
    lines = refusal_of(cfg).splitlines()
    assert lines[0] == "3 errors in the config:"
    assert [line[:5] for line in lines[1:]] == ["  1. ", "  2. ", "  3. "]
    assert "auto_scale_lr.base_batch_size cannot be 0" in lines[1]
    assert "model.queue_len=3" in lines[2] and "No hook updates" in lines[3]


def test_more_than_ten_errors_are_counted():
    findings = [Finding("a", f"problem {n}.", "Fix it.") for n in range(12)]
    with pytest.raises(UserError) as caught:
        refuse_errors(findings)
    text = str(caught.value)
    assert text.startswith("12 errors in the config:") and "10. problem 9. Fix it." in text
    assert text.endswith("and 2 more") and "problem 10" not in text


def test_the_same_finding_of_two_checks_counts_once():
    finding = Finding("a", "a=1 is wrong.", "Set it to 2.")

    def refusing(subject):
        raise UserError("b is wrong")

    found = run_checks([lambda _: [finding], lambda _: [finding], refusing], None)
    assert [one.text for one in found] == ["a=1 is wrong. Set it to 2.", "b is wrong"]


def test_trying_shapes_leaves_the_model_and_the_random_state_alone(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path)
    runner = build(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.model.backbone.train()
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    state = torch.get_rng_state()
    assert list(shapes.check_shapes(runner)) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in runner.model.backbone.modules())
    for name, tensor in runner.model.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name]), name


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
    assert "meant for batches of 32; this run has 8" in text
    assert "(4 per process x 1 processes x 2 accumulated)" in text
    assert text.count("meant for batches") == 1
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
    cfg.model.key_bn = "shuffle"
    assert "key_bn='shuffle' has no effect with one process" in warnings_of(cfg)
    cfg.model.key_bn = "none"
    assert "key_bn" not in warnings_of(cfg)


def test_what_splits_a_batch_is_said(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=1)  # of 4 images
    assert cfg.model.key_bn == "auto"  # is the default
    assert "key_bn='split' needs two groups of at least 8 images" in warnings_of(cfg)
    cfg.model.split_size = 2
    runner = build(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    with mock.patch.object(runner.logger, "info") as info:
        assert list(teacher.check_batch_norm(runner)) == []
    info.assert_called_once_with(
        "key_bn='split' (chosen by 'auto' for one process): BatchNorm in 2 groups of 2 images of "
        "each kind"
    )
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


def test_a_queue_that_is_never_full_is_said(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=4)  # of 4 images
    for length, said in ((16, 0), (17, 1)):
        cfg.model.queue_len = length
        runner = build(cfg)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        found = list(batch.check_queue(runner))
        assert len(found) == said
    assert found[0].severity == "warning"
    assert found[0].text == (
        "model.queue_len=17: the queue is never full, because all 4 iterations give 16 keys; the "
        "others stay random vectors. Lower model.queue_len, or train for longer."
    )


@pytest.mark.parametrize(("symmetric", "keys"), [(False, 24), (True, 48)])
def test_a_queue_of_more_than_one_pass_is_said(pair_data, tmp_path, symmetric, keys):
    found = {}
    for length, epochs in ((keys, 2), (keys + 1, 1), (keys + 1, 2)):
        cfg = demo_config(pair_data, tmp_path, iterations=6, epochs=epochs)  # of 4 images, of 24
        cfg.model.update(symmetric=symmetric, queue_len=length)
        runner = build(cfg)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        findings = batch.check_queue(runner)
        found[length, epochs] = [one for one in findings if "one pass" in one.text]
    assert not found[keys, 2] and not found[keys + 1, 1]
    (finding,) = found[keys + 1, 2]
    assert finding.severity == "warning"
    assert finding.text == (
        f"model.queue_len={keys + 1} is more than the {keys} keys of one pass over the 24 "
        "remote-sensing images: older keys of an image are among its own negatives. "
        f"Lower model.queue_len to at most {keys}, or add images."
    )


def test_natural_images_of_one_class_are_said(tmp_path):
    data = write_pair(tmp_path / "data", classes=1)
    assert "all natural images are of one class" in warnings_of(
        demo_config(data, tmp_path, iterations=1)
    )
    data = write_pair(tmp_path / "two", classes=2)
    assert "one class" not in warnings_of(demo_config(data, tmp_path / "b", iterations=1))
