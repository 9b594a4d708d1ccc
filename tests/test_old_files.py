"""Files that release 0.1.0 wrote still load: a checkpoint, an exported backbone.

The fixtures come from six steps per epoch of ``small_config`` on the images of ``write_pair``: the
checkpoint after epoch 1 and the backbone exported after epoch 2, each as release 0.1.0 wrote it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gersp_mm.commands import benchmark, train
from tests.support.runs import load
from tests.support.smoke import ROOT, write_classes, write_images, write_pair

SHA256 = "6f924369f764cf1f79d646d8a51d84cda69d72ef40a885970980ecf6fe87cfbc"
FILES = ROOT / "tests" / "fixtures" / "release_0.1.0"
PLAN = """
checkpoints: {old: backbone.pth}
datasets: {mine: {train: train, test: test, size: 32}}
tasks: [{protocol: knn, data: mine, k: 5}]
work_dir: work
"""


def small_config() -> str:
    """The config of the old run: ``gersp_r18_demo.py`` with 2 to 16 channels."""
    view = 'type="gersp_mm.ViewAugmentation", size=32, engine="pil"'
    return f"""
_base_ = ["{ROOT}/configs/pretrain/gersp_r18_demo.py"]
model = dict(
    queue_len=64,
    backbone=dict(depth=18, stem_channels=2, base_channels=2),
    neck=dict(in_channels=16, hid_channels=16),
    natural_head=dict(in_channels=16, num_classes=3, topk=(1,)),
)
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(
        cache_images=0,
        remote_sensing=dict(data_root="rs", ann_file=""),
        natural=dict(data_root="natural", ann_file=""),
        rs_pipeline=[dict({view}, preset="mocov2")],
        natural_pipeline=[dict({view}, preset="released")],
    ),
)
param_scheduler = [dict(type="ConstantLR", factor=1.0, by_epoch=True)]
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1), knn_eval=None)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that holds a copy of the old files."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_old_checkpoint_is_resumed_and_ends_as_it_did_then(folder: Path) -> None:
    write_pair(folder)
    (folder / "small.py").write_text(small_config())
    train.main(["small.py", "--work-dir", "run", "--resume", "epoch_1.pth"])
    old = load(folder / "backbone.pth")["state_dict"]
    new = load(folder / "run" / "small_backbone.pth")["state_dict"]
    assert old.keys() == new.keys() and len(old) == 120
    for name, tensor in old.items():  # another processor rounds differently
        torch.testing.assert_close(new[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_an_old_exported_backbone_is_evaluated_as_it_was_then(folder: Path) -> None:
    write_classes(folder / "train", 3, 6)
    for label in range(3):
        write_images(folder / "test" / f"class_{label}", 3, seed=200 + label)
    (folder / "plan.yml").write_text(PLAN)
    benchmark.main(["plan.yml", "--out", "rows.jsonl", "--device", "cpu"])
    (row,) = map(json.loads, Path("rows.jsonl").read_text().splitlines())
    assert row["value"] == pytest.approx(100 * 4 / 9, abs=1e-3)
    assert (row["model"], row["metric"], row["dataset"]) == ("ResNet-18", "top-1", "mine")
    assert row["checkpoint_sha256"] == SHA256
