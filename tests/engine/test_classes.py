"""Classifiers have as many classes as the data, unless a number is given."""

from __future__ import annotations

import pytest
import torch

from gersp_mm.datasets.sources import LabelledImages
from gersp_mm.engine.preflight.classes import count_classes, fill_class_count
from gersp_mm.utils.errors import UserError
from tests.support.models import tiny_gersp
from tests.support.runs import build, demo_config, load, train
from tests.support.smoke import write_classes

HEAD = dict(type="LinearClsHead", in_channels=64, topk=(1, 5), cal_acc=True)


def config(data, work_dir, num_classes="auto", **source):
    cfg = demo_config(data, work_dir)
    cfg.model.natural_head = dict(HEAD, num_classes=num_classes)
    natural = dict(type="gersp_mm.LabelledImages", data_root=str(data / "natural"), **source)
    cfg.train_dataloader.dataset.natural = natural
    return cfg


def test_the_number_is_that_of_the_folders_and_goes_into_the_checkpoint(pair_data, tmp_path):
    cfg = config(pair_data, tmp_path)
    fill_class_count(cfg)
    assert cfg.model.natural_head.num_classes == 3
    runner = train(cfg)
    assert runner.model.natural_head.fc.weight.shape == (3, 64)
    assert "num_classes=3" in load(tmp_path / "epoch_1.pth")["meta"]["cfg"]
    names = runner.message_hub.log_scalars
    assert "train/acc_ce_top1" in names and "train/acc_ce_top5" not in names


def test_a_given_number_stays(pair_data, tmp_path):
    cfg = config(pair_data, tmp_path, num_classes=7)
    fill_class_count(cfg)
    assert cfg.model.natural_head.num_classes == 7


def test_a_resumed_run_and_a_test_keep_the_number_of_their_checkpoint(pair_data, tmp_path):
    path = str(tmp_path / "epoch_1.pth")
    torch.save(dict(state_dict={"natural_head.fc.weight": torch.zeros(1000, 64)}), path)
    cfg = config(pair_data, tmp_path)
    cfg.update(resume=True, load_from=path)
    fill_class_count(cfg)
    assert cfg.model.natural_head.num_classes == 1000
    cfg = config(pair_data, tmp_path)
    fill_class_count(cfg, path)
    assert cfg.model.natural_head.num_classes == 1000
    cfg = config(pair_data, tmp_path)
    cfg.load_from = path  # a new run that starts from it
    fill_class_count(cfg)
    assert cfg.model.natural_head.num_classes == 3


def test_counting_does_not_list_the_images_of_a_folder(tmp_path, monkeypatch):
    write_classes(tmp_path, 12, 1)
    monkeypatch.setattr(LabelledImages, "_found", lambda self: pytest.fail("listed"))
    assert count_classes(dict(type="gersp_mm.LabelledImages", data_root=str(tmp_path))) == 12


def test_counting_by_a_list_by_names_and_by_another_kind_of_data_set(tmp_path):
    write_classes(tmp_path, 4, 2)
    (tmp_path / "some.txt").write_text("class_0/000.jpg 0\nclass_2/000.jpg 2\n")
    source = dict(type="gersp_mm.LabelledImages", data_root=str(tmp_path))
    assert count_classes(dict(source, ann_file="some.txt")) == 3
    assert count_classes(dict(source, metainfo=dict(classes=list("abcde")))) == 5
    assert count_classes(dict(type="CustomDataset", data_root=str(tmp_path))) == 4
    with pytest.raises(UserError, match="no_such.*Set train_dataloader.dataset.natural.data_root"):
        count_classes(dict(source, data_root=str(tmp_path / "no_such")))


def test_without_the_tools_auto_means_imagenet_and_old_configs_stay_as_they_are():
    model = tiny_gersp(natural_head=dict(HEAD, num_classes="auto"))
    assert model.natural_head.num_classes == 1000
    assert model.natural_head.topk == (1, 5)
    model = tiny_gersp(natural_head=dict(HEAD, num_classes=1000))
    assert model.natural_head.fc.out_features == 1000


@pytest.mark.parametrize("classes, topk", [(2, (1,)), (4, (1,)), (5, (1, 5))])
def test_topk_fits_the_classes(classes, topk):
    assert tiny_gersp(natural_head=dict(HEAD, num_classes=classes)).natural_head.topk == topk


def test_too_many_classes_are_said(pair_data, tmp_path, capsys):
    cfg = config(pair_data, tmp_path, num_classes=50)
    cfg.log_level = "INFO"
    build(cfg).train()
    out = capsys.readouterr().out
    assert out.count("num_classes=50, but the natural images have 3 classes, so 47 outputs") == 1
    assert "Set model.natural_head.num_classes to 3, or leave it to 'auto'." in out
