"""kNN accuracy during pre-training, and through tools/test.py."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from gersp_mm.commands import test as tool
from gersp_mm.engine.hooks.knn_eval import KNNEvalHook
from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy
from gersp_mm.images import duplicates
from gersp_mm.utils.errors import UserError
from tests.support.runs import assert_same_training_state, build, demo_config, load, train
from tests.support.smoke import CONFIGS, SIZE, narrow, smoke_twin, write_classes


def narrow_twin(pair_data, work_dir):
    cfg = smoke_twin("gersp_r18_demo.py", pair_data, work_dir)
    narrow(cfg.model)
    return cfg


def twin_with_knn(pair_data, work_dir, **changes):
    cfg = narrow_twin(pair_data, work_dir)
    folder = str(pair_data / "natural")
    hook = dict(type="gersp_mm.KNNEvalHook", train=folder, test=folder, size=SIZE, k=3)
    cfg.default_hooks.knn_eval = {**hook, **changes}
    return cfg


def scalars(work_dir):
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    return path.read_text()


def test_logs_the_accuracy_of_the_student_and_leaves_training_as_it_was(pair_data, tmp_path):
    runner = Runner.from_cfg(twin_with_knn(pair_data, tmp_path / "with"))
    runner.train()
    model = runner.model
    images = EvalImages(pair_data / "natural", size=SIZE)
    features = extract_features(model, images, progress=None)
    expected = knn_accuracy(*features, *features, k=3)
    assert f'"knn_top1": {expected}' in scalars(tmp_path / "with")
    assert model.training

    plain = Runner.from_cfg(narrow_twin(pair_data, tmp_path / "without"))
    plain.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_evaluates_every_interval_and_after_the_last_epoch(pair_data, tmp_path):
    cfg = twin_with_knn(pair_data, tmp_path, interval=2)
    cfg.train_cfg.max_epochs = 5
    Runner.from_cfg(cfg).train()
    lines = [json.loads(line) for line in scalars(tmp_path).splitlines()]
    ends = {line["epoch"]: line["step"] for line in lines if "epoch" in line}
    evaluated = [line["step"] for line in lines if "knn_top1" in line]
    assert evaluated == [ends[2], ends[4], ends[5]]  # the iterations that the weights had seen


def test_missing_images_are_named_before_the_first_step(pair_data, tmp_path):
    runner = Runner.from_cfg(twin_with_knn(pair_data, tmp_path, test="nowhere/test"))
    with pytest.raises(UserError, match="nowhere/test does not exist"):
        runner.train()
    assert runner.iter == 0


def test_both_parts_have_one_class_list_and_shared_pictures_are_said(pair_data, tmp_path):
    part = tmp_path / "test"
    shutil.copytree(pair_data / "natural/class_1", part / "class_1")
    runner = SimpleNamespace(rank=0, logger=logging.getLogger("gersp_test"))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "print_log", lambda text, **_: said.append(text))
        hook = KNNEvalHook(str(pair_data / "natural"), str(part), size=SIZE)
        hook.before_train(runner)
    assert set(hook.images["test"].labels.tolist()) == {1}
    count = len(hook.images["test"])
    assert f"{count} of {count} test images are also in train" in said[0]
    shutil.copytree(pair_data / "natural/class_1", part / "airport")
    with pytest.raises(UserError, match="classes that the train images lack: airport"):
        KNNEvalHook(str(pair_data / "natural"), str(part)).before_train(runner)


def test_tools_test_reports_what_training_reported(pair_data, tmp_path, capfd):
    cfg = twin_with_knn(pair_data, tmp_path / "train")
    Runner.from_cfg(cfg).train()
    reported = lines_about_knn(capfd)
    cfg.dump(tmp_path / "gersp_r18_demo.py")
    checkpoint = str(tmp_path / "train/epoch_1.pth")
    work_dir = ["--work-dir", str(tmp_path / "test")]
    tool.run(tool.parse_args([str(tmp_path / "gersp_r18_demo.py"), checkpoint, *work_dir]))
    tested = lines_about_knn(capfd)
    assert len(tested) == 1 and tested == reported


def lines_about_knn(capfd):
    captured = capfd.readouterr()
    lines = (captured.out + captured.err).splitlines()
    return [line[line.index("kNN top-1") :] for line in lines if "kNN top-1" in line]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["gersp_r50.py", "nothing.pth"], "there is no checkpoint nothing.pth"),
        (["gersp_r50.py", __file__], "neither a test_dataloader nor a KNNEvalHook"),
    ],
)
def test_tools_test_says_what_is_missing(arguments, text, tmp_path, pair_data):
    config = str(CONFIGS / "pretrain" / arguments[0])
    if arguments[1] == __file__:
        twin = smoke_twin("gersp_r18_demo.py", pair_data, tmp_path)
        twin.dump(config := str(tmp_path / "twin.py"))
    with pytest.raises(UserError, match=text):
        tool.run(tool.parse_args([config, arguments[1], "--work-dir", str(tmp_path / "w")]))


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(k=0), "k cannot be 0. Set it to a whole number of at least 1, such as 20."),
        (dict(k=2.5), "k cannot be 2.5. Set it to a whole number of at least 1"),
        (dict(size="32"), "size cannot be '32'. Set it to a whole number of at least 1"),
        (dict(interval=0), "interval cannot be 0. Set it to a whole number of at least 1"),
        (dict(batch_size=-4), "batch_size cannot be -4. Set it to a whole number of at least 1"),
        (dict(limit=0), "limit cannot be 0. Set it to a whole number of at least 1"),
        (dict(num_workers=-1), "num_workers cannot be -1. Set it to a whole number of at least 0"),
        (dict(temperature=0), "temperature cannot be 0. Set it to a number above 0"),
        (dict(temperature=float("nan")), "temperature cannot be nan. Set it to a number above 0"),
    ],
)
def test_a_number_outside_its_range_is_refused_when_the_hook_is_made(options, text):
    with pytest.raises(UserError, match=f"^KNNEvalHook: {text}"):
        KNNEvalHook("train", "test", **options)


def test_a_part_that_is_not_there_is_named_with_its_hook():
    with pytest.raises(UserError, match="^KNNEvalHook: train: /nowhere does not exist"):
        KNNEvalHook("/nowhere", "/nowhere").before_train(None)


def narrow_with_knn(pair_data, work_dir, epochs=1, **changes):
    cfg = demo_config(pair_data, work_dir, iterations=1, epochs=epochs)
    wide = twin_with_knn(pair_data, work_dir, **changes)
    cfg.default_hooks.knn_eval = wide.default_hooks.knn_eval
    return cfg


def test_the_last_epoch_alone(pair_data, tmp_path):
    train(narrow_with_knn(pair_data, tmp_path, epochs=2, interval=-1))
    assert scalars(tmp_path).count("knn_top1") == 1


class Order(Hook):
    """Notes which checkpoints are there whenever the kNN evaluation looks at an image."""

    def before_train(self, runner):
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, KNNEvalHook))
        evaluate, self.seen = hook.evaluate, []

        def noted(runner):
            self.seen.append(sorted(p.name for p in Path(runner.work_dir).glob("epoch_*.pth")))
            return self.instead(runner) if self.instead else evaluate(runner)

        hook.evaluate = noted

    instead = None


def test_a_checkpoint_is_saved_before_its_evaluation(pair_data, tmp_path):
    order = Order()
    train(narrow_with_knn(pair_data, tmp_path, epochs=2, interval=1), order)
    assert order.seen == [["epoch_1.pth"], ["epoch_1.pth", "epoch_2.pth"]]


def test_an_evaluation_that_fails_costs_that_evaluation_alone(pair_data, tmp_path):
    """The run goes on and ends with the weights that it has without any evaluation."""
    failures = iter([UserError("x.jpg cannot be read"), RuntimeError("out of memory")])

    def fail(runner):
        raise next(failures)

    order = Order()
    order.instead = fail
    runner = build(narrow_with_knn(pair_data, tmp_path / "with", epochs=2, interval=1), order)
    with mock.patch.object(runner.logger, "warning") as warning:
        runner.train()
    texts = [c.args[0] for c in warning.call_args_list if "kNN evaluation after" in c.args[0]]
    assert "epoch 1 failed and has no result; training continues" in texts[0]
    assert "UserError: x.jpg cannot be read" in texts[0]
    assert "epoch 2" in texts[1] and "RuntimeError: out of memory" in texts[1]
    train(demo_config(pair_data, tmp_path / "without", iterations=1, epochs=2))
    assert_same_training_state(tmp_path / "with/epoch_2.pth", tmp_path / "without/epoch_2.pth")


def test_images_that_cannot_be_decoded_are_named_before_the_first_step(pair_data, tmp_path):
    folder = write_classes(tmp_path / "test")
    bad = sorted(folder.rglob("*.jpg"))[5]
    bad.write_bytes(bad.read_bytes()[:600])
    runner = build(narrow_with_knn(pair_data, tmp_path / "one", test=str(folder)))
    with mock.patch.object(runner.logger, "log") as log:
        runner.train()
    texts = [call.args[1] for call in log.call_args_list]
    text = f"1 of 24 images cannot be read and are left out of the evaluation: {bad}"
    assert sum(t.startswith(text) for t in texts) == 1  # and not again by the evaluation
    assert (tmp_path / "one/epoch_1.pth").exists()

    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"\xff\xd8\xff nothing")
    runner = build(narrow_with_knn(pair_data, tmp_path / "all", test=str(folder)))
    with pytest.raises(UserError, match="24 of 24 images cannot be read, among them all of a cl"):
        runner.train()
    assert runner.iter == 0


class Given(Hook):
    """Gives the hooks below it accuracies of its own."""

    priority = "VERY_HIGH"

    def __init__(self, *values):
        self.values = iter(values)

    def before_train(self, runner):
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, KNNEvalHook))
        hook.evaluate = lambda runner: next(self.values)


def steered(pair_data, work_dir, epochs, **checkpoint):
    cfg = twin_with_knn(pair_data, work_dir, interval=1)
    cfg.train_cfg.max_epochs = epochs
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=-1, **checkpoint)
    return cfg


def test_the_best_checkpoint_is_chosen_by_knn_and_the_others_stay_what_they_are(
    pair_data, tmp_path
):
    def run(name, **checkpoint):
        cfg = steered(pair_data, tmp_path / name, 3, **checkpoint)
        train(cfg, Given(20.0, 60.0, 40.0))

    run("best", save_best="knn_top1")
    run("plain")
    best = tmp_path / "best" / "best_knn_top1_epoch_2.pth"
    assert list((tmp_path / "best").glob("best_*")) == [best]
    weights, second = load(best), load(tmp_path / "plain" / "epoch_2.pth")
    assert (weights["meta"]["epoch"], weights["meta"]["iter"]) == (2, second["meta"]["iter"])
    for name, value in second["state_dict"].items():
        assert torch.equal(weights["state_dict"][name], value), name
    for epoch in (1, 2, 3):  # one that is written again for its note of the best stays the same
        assert_same_training_state(
            tmp_path / "best" / f"epoch_{epoch}.pth", tmp_path / "plain" / f"epoch_{epoch}.pth"
        )


def test_a_run_is_ended_early_by_knn(pair_data, tmp_path):
    cfg = steered(pair_data, tmp_path, 5)
    stop = dict(type="EarlyStoppingHook", monitor="knn_top1", patience=1, min_delta=1)
    cfg.custom_hooks = [*cfg.get("custom_hooks", []), stop]
    runner = train(cfg, Given(20.0, 60.0, 40.0))
    assert runner.epoch == 3
    assert not (tmp_path / "epoch_4.pth").exists()


@pytest.mark.parametrize(
    "changes, text",
    [
        (dict(save_best="knn_top5"), "save_best='knn_top5' is computed by no evaluation.*knn_top1"),
        (dict(save_best="auto", knn=False), "save_best='auto' monitors a metric, but the run eval"),
    ],
)
def test_a_metric_that_nothing_gives_is_refused(pair_data, tmp_path, changes, text):
    has_knn = changes.pop("knn", True)
    cfg = steered(pair_data, tmp_path, 2, **changes)
    if not has_knn:
        cfg.default_hooks.pop("knn_eval")
    with pytest.raises(UserError, match=text):
        train(cfg)
    assert not list(tmp_path.glob("*.pth"))
