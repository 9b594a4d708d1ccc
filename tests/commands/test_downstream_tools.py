"""Downstream runs as a user starts them: our tools, several processes, mim with a host's own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import mmcv
import mmdet
import pytest
import torch

from tests.commands.test_train import TRAIN, assert_one_error_line, call, environment
from tests.support.downstream import downstream_twin, write_backbone
from tests.support.forked import run_ranks
from tests.support.smoke import CONFIGS, ROOT

TEST = str(ROOT / "tools" / "test.py")
FINETUNE = "eurosat/finetune_r50_eurosat.py"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("weights") / "r50.pth")


def dumped(name: str, data: Path, folder: Path) -> Path:
    cfg = downstream_twin(name, data, folder / "unused")
    cfg.pop("work_dir")
    cfg.log_level = "INFO"
    cfg.dump(folder / Path(name).name)
    return folder / Path(name).name


def test_without_weights_or_data_nothing_starts(downstream_data, tmp_path):
    config = dumped("dior/retinanet_r50_fpn_24e_dior.py", downstream_data, tmp_path)
    assert_one_error_line(call(config, cwd=tmp_path), "pretrained=PATH or GERSP_CHECKPOINT=PATH")
    shipped = CONFIGS / "downstream" / "dior/retinanet_r50_fpn_24e_dior.py"
    done = call(shipped, "--cfg-options", "pretrained=None", cwd=tmp_path)
    assert_one_error_line(done, r"coco/trainval\.json does not exist.*dataset_converters/dior\.py")
    assert not list(tmp_path.glob("work_dirs"))


@pytest.mark.slow
def test_knn_by_train_and_by_test_give_the_same(downstream_data, backbone, tmp_path):
    config = dumped("eurosat/knn_r50_eurosat.py", downstream_data, tmp_path)
    trained = call(config, "--cfg-options", f"pretrained={backbone}", cwd=tmp_path)
    tested = call(config, backbone, "--results", "rows.jsonl", cwd=tmp_path, tool=TEST)
    assert trained.returncode == tested.returncode == 0, trained.stderr[-2000:] + tested.stderr
    value = trained.stdout.split("knn/accuracy/top1: ")[1].split()[0]
    assert f"knn/accuracy/top1: {value}" in tested.stdout
    assert '"checkpoint_sha256": "' in (tmp_path / "rows.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_train_one_model(downstream_data, backbone, tmp_path):
    config = dumped(FINETUNE, downstream_data, tmp_path)
    command = (TRAIN, config, "--work-dir", tmp_path / "run", "--launcher", "pytorch")
    options = ("--cfg-options", f"pretrained={backbone}")
    ranks = run_ranks(*command, *options, output=tmp_path, env=environment())
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stdout[-3000:]
    text = f"318/318 tensors of model.backbone are those of {backbone}"
    assert text in "".join(rank.stdout for rank in ranks)
    (checkpoint,) = tmp_path.rglob("epoch_1.pth")
    assert torch.load(checkpoint, weights_only=False)["meta"]["pretrained"]["arch"] == "ResNet-50"


@pytest.mark.slow
def test_mim_train_mmdet_from_elsewhere(downstream_data, backbone, tmp_path):
    """With the metadata of the original release, whose name mim has built in."""
    site = tmp_path / "site"
    info = site / f"mmdet-{mmdet.__version__}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: mmdet\nVersion: {mmdet.__version__}\n"
    )
    (info / "top_level.txt").write_text("mmdet\n")
    (site / "mmdet").symlink_to(Path(mmdet.__file__).parent)
    options = [
        "model.backbone.base_channels=8", "model.backbone.stem_channels=8",
        "model.neck.in_channels=[32,64,128,256]", "model.test_cfg.score_thr=0.0",
        "model.test_cfg.max_per_img=20", "train_cfg.max_epochs=1", "train_dataloader.batch_size=1",
        "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
        "val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False",
        "train_dataloader.dataset.pipeline.2.scale=(128,128)",
        "val_dataloader.dataset.pipeline.1.scale=(128,128)",
    ]  # fmt: skip
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([str(site), env["PYTHONPATH"]])
    env.update(GERSP_CHECKPOINT=str(backbone), GERSP_DATA=str(downstream_data))
    config = CONFIGS / "downstream" / "dior/retinanet_r50_fpn_24e_dior.py"
    if PathFinder.find_spec("mmcv._ext", mmcv.__path__) is None:  # docs/guide/operators.md
        own = tmp_path / "own.py"
        own.write_text(f'_base_ = "{config}"\ncustom_imports = dict(imports=["gersp_mm"])\n')
        config = own

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mim", "train", "mmdet", str(config),
         "--launcher", "none", "--work-dir", str(tmp_path / "run"), "--cfg-options", *options],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "Training finished successfully" in done.stdout, (
        done.stdout[-2000:] + done.stderr[-2000:]
    )
    assert "318/318 tensors of model.backbone are those of" in done.stdout + done.stderr
    assert "coco/bbox_mAP_50" in done.stdout + done.stderr
