"""``~`` in paths."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from mmengine.config import Config

from gersp_mm.benchmark.spec import read_plan
from gersp_mm.commands.options import run_tool
from gersp_mm.engine.config import read_config
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.paths import expand_home
from tests.support.smoke import CONFIGS


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_paths_alone_are_expanded(home):
    value = dict(a="~/x", b=[Path("~/y"), ("~", 1)], c="~~", d="a/~/b", e="~5 %", f="~nobody9/x")
    expanded = dict(value, a=f"{home}/x", b=[Path(home, "y"), (home, 1)])
    same = value["b"]
    assert expand_home(value) == expanded
    assert value["b"] is same  # lists and dicts are changed in place


def test_options_and_values_of_a_config(home, tmp_path):
    text = (
        "rs = '~/scenes'\n"
        "train_dataloader = dict(dataset=dict(remote_sensing=dict(data_root=rs)))\n"
        "custom_hooks = [dict(type='KNNEvalHook', train='~/knn', test='/t')]\n"
        "work_dir = '~/w'\npretrained = None\n"
    )
    (tmp_path / "a.py").write_text(text)
    options = ["pretrained=~/b.pth", "custom_hooks.0.test=~/test"]
    (tmp_path / "b.py").write_text("_base_ = './a.py'\nmodel = dict(backbone=dict(type='A'))\n")
    cfg, _ = read_config(tmp_path / "b.py", options)
    assert cfg.train_dataloader.dataset.remote_sensing.data_root == f"{home}/scenes"
    assert cfg.custom_hooks[0].train == f"{home}/knn" and cfg.custom_hooks[0].test == f"{home}/test"
    assert cfg.work_dir == f"{home}/w" and cfg.pretrained == f"{home}/b.pth"
    assert cfg.model.backbone.init_cfg.checkpoint == f"{home}/b.pth"


def test_data_by_the_environment(home, monkeypatch):
    monkeypatch.setenv("GERSP_DATA", "~/data")
    cfg, _ = read_config(CONFIGS / "downstream/eurosat/finetune_r18_eurosat.py", None)
    assert str(cfg.train_dataloader.dataset.data_root).startswith(f"{home}/data")
    assert "~" not in Config(cfg._cfg_dict).pretty_text


def test_arguments_of_every_command(home):
    seen = []
    given = argparse.Namespace(config=Path("~/c.py"), work_dir="~/w", files=["~/a", "b"], n=3)
    run_tool(lambda args: seen.append(vars(args)), given)
    assert seen == [
        dict(config=Path(home, "c.py"), work_dir=f"{home}/w", files=[f"{home}/a", "b"], n=3)
    ]


def test_paths_of_a_benchmark(home, tmp_path, monkeypatch):
    """The checkpoint is found, and the data are expected in the right place."""
    monkeypatch.setenv("GERSP_DATA", "~/data")
    (tmp_path / "a.pth").touch()
    text = "checkpoints: {a: ~/a.pth}\ntasks: [{protocol: knn, data: eurosat}]\nwork_dir: ~/w\n"
    (tmp_path / "plan.yml").write_text(text)
    with pytest.raises(UserError, match=f"eurosat is expected in {home}/data/eurosat"):
        read_plan(tmp_path / "plan.yml", None)
