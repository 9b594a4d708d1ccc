"""``--resume`` of tools/train.py: which checkpoint, and whether it is of this run."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from gersp_mm.commands import train as tool
from gersp_mm.utils.errors import UserError
from tests.downstream import downstream_twin
from tests.runs import assert_same_training_state, demo_config, load
from tests.smoke import forget_runs


def run(config, work_dir, *options):
    forget_runs()
    torch.set_num_threads(1)
    tool.run(tool.parse_args([str(config), "--work-dir", str(work_dir), *map(str, options)]))


@pytest.fixture(scope="module")
def three_epochs(pair_data, tmp_path_factory):
    """A config file and the work directory of its finished run, which keeps all checkpoints."""
    folder = tmp_path_factory.mktemp("resume")
    cfg = demo_config(pair_data, folder / "unused", iterations=2, epochs=3)
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.pop("work_dir")
    cfg.dump(folder / "small.py")
    run(folder / "small.py", folder / "work")
    return folder / "small.py", folder / "work"


def copy_without_the_end(work_dir, target):
    shutil.copytree(work_dir, target)
    (target / "epoch_3.pth").unlink()
    return target


def test_a_copy_without_times_goes_on_from_the_furthest(three_epochs, tmp_path):
    """The later epoch has the earlier time, and MMEngine's note names neither."""
    config, work_dir = three_epochs
    copy = copy_without_the_end(work_dir, tmp_path / "copy")
    os.utime(copy / "epoch_1.pth", (1.5e9, 1.5e9))
    os.utime(copy / "epoch_2.pth", (1e9, 1e9))
    (copy / "last_checkpoint").write_text(str(copy / "epoch_1.pth"))
    run(config, copy, "--cfg-options", "resume=True")  # MMEngine's own way to say --resume
    assert_same_training_state(copy / "epoch_3.pth", work_dir / "epoch_3.pth")
    assert load(copy / "epoch_3.pth")["meta"]["iter"] == 6
    assert (copy / "epoch_2.pth").stat().st_mtime == 1e9  # not written again from epoch 1


def test_a_damaged_one_is_named_and_passed_over(three_epochs, tmp_path, capsys):
    config, work_dir = three_epochs
    copy = copy_without_the_end(work_dir, tmp_path / "copy")
    content = (copy / "epoch_2.pth").read_bytes()
    (copy / "epoch_2.pth").write_bytes(content[: len(content) // 2])
    run(config, copy, "--resume")
    assert_same_training_state(copy / "epoch_3.pth", work_dir / "epoch_3.pth")
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: "))
    assert "passed over a damaged checkpoint" in line and str(copy / "epoch_2.pth") in line


def test_checkpoints_in_another_folder_are_found(three_epochs, tmp_path):
    config, work_dir = three_epochs
    elsewhere = ["--cfg-options", f"default_hooks.checkpoint.out_dir={tmp_path / 'out'}"]
    (tmp_path / "out").mkdir()
    copy_without_the_end(work_dir, tmp_path / "out" / "run")
    run(config, tmp_path / "run", "--resume", *elsewhere)
    assert_same_training_state(tmp_path / "out/run/epoch_3.pth", work_dir / "epoch_3.pth")


@pytest.mark.parametrize(
    "name, text",
    [
        ("small_backbone.pth", "is not a checkpoint of a training: it holds no optimizer"),
        ("", "is a folder: name the checkpoint file in it"),
        ("small.py", "this is no PyTorch checkpoint"),
    ],
)
def test_a_file_that_cannot_be_resumed_is_refused_before_the_run(
    three_epochs, tmp_path, name, text
):
    config, work_dir = three_epochs
    with pytest.raises(UserError, match=text):
        run(config, tmp_path, "--resume", work_dir / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("counts", [0, -2, 1.5, "two"])
def test_accumulation_of_another_type_or_sign(three_epochs, tmp_path, counts):
    option = ["--cfg-options", f"optim_wrapper.accumulative_counts={counts}"]
    with pytest.raises(UserError, match="accumulative_counts cannot be .* of at least 1"):
        run(three_epochs[0], tmp_path, *option)


DOWNSTREAM = {
    "by epoch": ("eurosat/finetune_r18_eurosat.py", "epoch_1.pth", "train_cfg.max_epochs=2",
                 "model.head.num_classes=12", r"head.fc.weight is 10x\d+ instead of 12x\d+"),
    "by iteration": ("loveda/deeplabv3plus_r50-d8_80k_loveda.py", "iter_1.pth",
                     "train_cfg.max_iters=2", "model.decode_head.channels=64", "decode_head"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOWNSTREAM)
def test_a_downstream_run_with_the_hooks_of_its_host(downstream_data, tmp_path, case):
    """The config does not name the hook that looks at checkpoints."""
    name, checkpoint, longer, wider, text = DOWNSTREAM[case]
    pytest.importorskip("mmseg")
    cfg = downstream_twin(name, downstream_data, tmp_path, iterations=1)
    by_epoch = case == "by epoch"
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", interval=1, by_epoch=by_epoch)
    cfg.default_hooks.pop("checkpoint_check")
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.pop("work_dir")
    cfg.dump(tmp_path / "downstream.py")
    work_dir = tmp_path / "work"
    start = [tmp_path / "downstream.py", work_dir, "--cfg-options", "pretrained=None"]
    run(*start)
    with pytest.raises(UserError, match=text) as caught:
        run(*start, longer, wider, "--resume")
    assert f"{work_dir / checkpoint} is of another run" in str(caught.value)
    run(*start[:2], "--resume", "--cfg-options", longer)  # without any weights to start from
    assert (work_dir / checkpoint.replace("1", "2")).exists()
