"""kNN accuracy during pre-training, and through tools/test.py."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner

from gersp_mm.commands import test as tool
from gersp_mm.engine.hooks.knn_eval import KNNEvalHook
from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy
from gersp_mm.images import duplicates
from gersp_mm.utils.errors import UserError
from tests.smoke import CONFIGS, SIZE, smoke_twin


def twin_with_knn(pair_data, work_dir, **changes):
    cfg = smoke_twin("gersp_r18_demo.py", pair_data, work_dir)
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

    plain = Runner.from_cfg(smoke_twin("gersp_r18_demo.py", pair_data, tmp_path / "without"))
    plain.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_evaluates_every_interval_and_after_the_last_epoch(pair_data, tmp_path):
    cfg = twin_with_knn(pair_data, tmp_path, interval=2)
    cfg.train_cfg.max_epochs = 5
    Runner.from_cfg(cfg).train()
    assert scalars(tmp_path).count("knn_top1") == 3  # after epochs 2, 4 and 5


def test_missing_images_are_named_before_the_first_step(pair_data, tmp_path):
    runner = Runner.from_cfg(twin_with_knn(pair_data, tmp_path, test="nowhere/test"))
    with pytest.raises(UserError, match="nowhere/test does not exist"):
        runner.train()
    assert runner.iter == 0


def test_both_parts_have_one_class_list_and_shared_pictures_are_said(pair_data, tmp_path):
    part = tmp_path / "test"
    shutil.copytree(pair_data / "natural/class_1", part / "class_1")
    runner = SimpleNamespace(logger=logging.getLogger("gersp_test"))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "print_log", lambda text, **_: said.append(text))
        hook = KNNEvalHook(str(pair_data / "natural"), str(part), size=SIZE)
        hook.before_train(runner)
    assert set(hook.images["test"].labels.tolist()) == {1}
    count = len(hook.images["test"])
    assert f"{count} of {count} test images are also in train" in said[0]
    shutil.copytree(pair_data / "natural/class_1", part / "airport")
    with pytest.raises(UserError, match="classes that the train images have not: airport"):
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
        (["gersp_r50.py", __file__], "neither test_dataloader nor a KNNEvalHook"),
    ],
)
def test_tools_test_says_what_is_missing(arguments, text, tmp_path, pair_data):
    config = str(CONFIGS / "pretrain" / arguments[0])
    if arguments[1] == __file__:
        twin = smoke_twin("gersp_r18_demo.py", pair_data, tmp_path)
        twin.dump(config := str(tmp_path / "twin.py"))
    with pytest.raises(UserError, match=text):
        tool.run(tool.parse_args([config, arguments[1], "--work-dir", str(tmp_path / "w")]))
