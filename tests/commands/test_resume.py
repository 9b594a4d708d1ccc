"""``--resume`` of tools/train.py: which checkpoint, and whether it is of this run."""

from __future__ import annotations

import math
import os
import shutil

import pytest
import torch

from gersp_mm.checkpoints.read import config_values
from gersp_mm.commands import train as tool
from gersp_mm.utils.errors import UserError
from tests.support.downstream import downstream_twin
from tests.support.runs import assert_same_training_state, demo_config, load
from tests.support.smoke import forget_runs


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


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.pth")}


def run_id(path):
    return load(path)["meta"].get("run_id")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_second_start_is_refused_and_a_resumed_run_keeps_its_id(
    three_epochs, tmp_path, elsewhere
):
    config, work_dir = three_epochs
    folder = tmp_path / "out" / "run" if elsewhere else tmp_path / "run"
    option = [f"default_hooks.checkpoint.out_dir={tmp_path / 'out'}"] if elsewhere else []
    folder.parent.mkdir(exist_ok=True)
    copy_without_the_end(work_dir, folder)
    before = contents(folder)
    (first,) = {run_id(path) for path in work_dir.glob("*.pth")}  # the export's too
    start = ["--cfg-options", "train_dataloader.num_workers=0", *option]
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run", *start)
    text = str(caught.value)
    assert f"run {first} (epoch_1.pth to epoch_2.pth, epoch 2, iteration 4)" in text
    assert str(folder) in text and "--resume" in text and "--overwrite" in text
    assert contents(folder) == before
    run(config, tmp_path / "run", "--resume", *start)
    assert run_id(folder / "epoch_3.pth") == first


def test_overwrite_removes_the_old_run_and_nothing_else(three_epochs, tmp_path, capsys):
    config, work_dir = three_epochs
    folder = shutil.copytree(work_dir, tmp_path / "run")
    load_and_change(folder / "epoch_3.pth", folder / "best_knn_epoch_3.pth", optimizer=None)
    load_and_change(folder / "epoch_3.pth", folder / "published.pth", optimizer=None, run_id=None)
    (folder / "small_backbone.pth").rename(folder / "another_name.pth")
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(UserError, match="an epoch has no iteration"):
        run(config, folder, "--overwrite", "--cfg-options", "train_dataloader.batch_size=10000")
    assert contents(folder) == before  # refused before the first step: nothing is lost
    run(config, folder, "--overwrite", "--cfg-options", "train_cfg.max_epochs=1")
    assert set(contents(folder)) == {"epoch_1.pth", "published.pth", "small_backbone.pth"}
    assert (folder / "published.pth").read_bytes() == before["published.pth"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert run_id(folder / "epoch_1.pth") not in (None, run_id(work_dir / "epoch_1.pth"))
    (log,) = (p for p in folder.glob("*/*.log") if "--overwrite: removed" in p.read_text())
    assert "another_name.pth" in log.read_text()


def test_an_export_whose_checkpoints_are_elsewhere_is_not_replaced(three_epochs, tmp_path):
    config, work_dir = three_epochs
    shutil.copy(work_dir / "small_backbone.pth", tmp_path)
    with pytest.raises(UserError, match="small_backbone.pth is the backbone of another run"):
        run(config, tmp_path)
    before = run_id(tmp_path / "small_backbone.pth")
    run(config, tmp_path, "--overwrite", "--cfg-options", "train_cfg.max_epochs=1")
    assert run_id(tmp_path / "small_backbone.pth") not in (None, before)


@pytest.mark.parametrize("start", ["load_from={}/epoch_3.pth", "pretrained={}/small_backbone.pth"])
def test_overwrite_keeps_what_the_run_starts_from(three_epochs, tmp_path, start):
    config, work_dir = three_epochs
    folder = shutil.copytree(work_dir, tmp_path / "run")
    before = contents(folder)
    with pytest.raises(UserError, match="--overwrite would remove .* Copy it to another folder"):
        run(config, folder, "--overwrite", "--cfg-options", start.format(folder))
    assert contents(folder) == before


def load_and_change(path, target, optimizer, run_id=...):
    content = load(path)
    content["optimizer"] = optimizer
    content["meta"]["run_id"] = content["meta"]["run_id"] if run_id is ... else run_id
    torch.save({k: v for k, v in content.items() if v is not None}, target)


def test_checkpoints_of_two_runs_are_listed_and_one_is_chosen_by_its_path(three_epochs, tmp_path):
    """One of them was written before runs had ids."""
    config, work_dir = three_epochs
    folder = copy_without_the_end(work_dir, tmp_path / "run")
    second = load(folder / "epoch_1.pth")
    old = second["meta"].pop("run_id")
    torch.save(second, folder / "epoch_1.pth")
    for given in ([], ["auto"]):
        with pytest.raises(UserError) as caught:
            run(config, folder, "--resume", *given)
        text = str(caught.value)
        assert "checkpoints of 2 runs: a run without an id (epoch_1.pth, epoch 1, it" in text
        assert f"run {old} (epoch_2.pth, epoch 2" in text and "--resume PATH" in text
    run(config, folder, "--resume", folder / "epoch_1.pth")
    assert run_id(folder / "epoch_2.pth") is run_id(folder / "epoch_3.pth") is None
    assert_same_training_state(folder / "epoch_3.pth", work_dir / "epoch_3.pth")


def test_a_checkpoint_of_elsewhere_does_not_go_on_among_those_of_another_run(
    three_epochs, tmp_path
):
    config, work_dir = three_epochs
    other = tmp_path / "other"
    other.mkdir()
    load_and_change(work_dir / "epoch_1.pth", other / "epoch_1.pth", {}, "0123")
    before = contents(other)
    with pytest.raises(UserError, match=r"of another run than .*epoch_2.pth in .*run 0123 \("):
        run(config, other, "--resume", work_dir / "epoch_2.pth")
    assert contents(other) == before


def test_weights_of_another_run_are_not_passed_over_when_resuming(three_epochs, tmp_path):
    config, work_dir = three_epochs
    option = f"load_from={work_dir / 'epoch_1.pth'}"
    with pytest.raises(UserError, match="load_from=.*epoch_1.pth starts a new one.*one of the two"):
        run(config, work_dir, "--resume", "--cfg-options", option)


def test_a_new_run_beside_checkpoints_that_cannot_be_read_is_refused(three_epochs, tmp_path):
    config, _ = three_epochs
    (tmp_path / "epoch_1.pth").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read: .*epoch_1.pth .*with --overwrite"):
        run(config, tmp_path)
    assert (tmp_path / "epoch_1.pth").read_bytes() == b"cut off"


def test_a_finished_run_says_that_nothing_is_left(three_epochs, tmp_path, capsys):
    config, work_dir = three_epochs
    copy = shutil.copytree(work_dir, tmp_path / "copy")
    run(config, copy, "--resume", "--cfg-options", "log_level=INFO")
    assert "nothing is left to train: 3 of 3 epochs" in log_of(copy, "nothing is left")


def test_nothing_to_resume(three_epochs, tmp_path, capsys):
    """Logs, pictures, exports and published weights are no run."""
    config, work_dir = three_epochs
    folder = tmp_path / "run"
    shutil.copytree(work_dir, folder)
    load_and_change(folder / "epoch_3.pth", folder / "published.pth", optimizer=None, run_id=None)
    for path in folder.glob("epoch_*"):
        path.unlink()
    out_dir = f"default_hooks.checkpoint.out_dir={tmp_path / 'out'}"
    options = ["--cfg-options", "train_cfg.max_epochs=1"]
    (folder / "published.pth").unlink()
    with pytest.raises(UserError) as caught:
        run(config, folder, "--resume", *options, out_dir)
    for place in (tmp_path / "out" / "run", folder):
        assert str(place) in str(caught.value)
    assert "--resume auto" in str(caught.value)
    with pytest.raises(UserError, match="Give one of the two"):
        run(config, folder, "--resume", "--overwrite")
    run(config, folder, "--resume", "auto", *options)
    assert f"no checkpoint in {folder} yet, starting a new run" in capsys.readouterr().out
    assert run_id(folder / "epoch_1.pth") != run_id(work_dir / "epoch_1.pth")


@pytest.mark.parametrize(
    "name, text",
    [
        ("small_backbone.pth", "is not a checkpoint of a training: it holds no optimizer"),
        ("", "is a folder: name the checkpoint file in it"),
        ("small.py", "this is not a PyTorch checkpoint"),
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


def log_of(folder, text):
    (log,) = (p.read_text() for p in folder.glob("*/*.log") if text in p.read_text())
    return log


def cosine(base, step, whole, eta_min=0.001):
    return eta_min + (base - eta_min) * (1 + math.cos(math.pi * step / whole)) / 2


def test_options_of_optimizer_and_schedule_are_applied_to_a_resumed_run(three_epochs, tmp_path):
    """As if the run had begun with them: MMEngine would load the old ones over them."""
    config, work_dir = three_epochs
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(work_dir / "epoch_1.pth", folder)
    changed = ["optim_wrapper.optimizer.lr=0.1", "optim_wrapper.optimizer.weight_decay=0.3",
               "optim_wrapper.optimizer.momentum=0.5", "param_scheduler.0.T_max=4",
               "train_cfg.max_epochs=4", "log_level=INFO"]  # fmt: skip
    run(config, folder, "--resume", "--cfg-options", *changed)
    for epoch in (2, 3, 4):
        checkpoint = load(folder / f"epoch_{epoch}.pth")
        (group,) = checkpoint["optimizer"]["param_groups"]
        step = min(2 * epoch, 7)  # MMEngine's schedulers make no step at their end
        assert group["lr"] == pytest.approx(cosine(0.1, step, 8)), epoch
        assert (group["initial_lr"], group["weight_decay"], group["momentum"]) == (0.1, 0.3, 0.5)
        values = config_values(checkpoint["meta"]["cfg"])["optim_wrapper"]["optimizer"]
        assert (values["lr"], values["weight_decay"], values["momentum"]) == (0.1, 0.3, 0.5)
    log = log_of(folder, "changed since the checkpoint")
    (applied,) = (x for x in log.splitlines() if "applied to its optimizer and schedule: " in x)
    (effect,) = (x for x in log.splitlines() if "in effect from now on: " in x)
    assert "optim_wrapper.optimizer.lr=0.1 (was 0.01)" in applied
    assert "param_scheduler.0.T_max=4 (was 3)" in applied and "max_epochs" not in applied
    assert "train_cfg.max_epochs=4 (was 3)" in effect and "optim_wrapper" not in effect


@pytest.mark.parametrize(
    "option, text",
    [
        ("randomness.seed=7", r"cannot change randomness.seed=7 \(was \d+\)"),
        ("optim_wrapper.optimizer.type=RMSprop", r"optimizer.type=RMSprop \(was SGD\)"),
    ],
)
def test_options_that_a_resumed_run_cannot_change_are_refused(three_epochs, tmp_path, option, text):
    config, work_dir = three_epochs
    path = tmp_path / "epoch_1.pth"
    shutil.copy(work_dir / "epoch_1.pth", path)
    with pytest.raises(UserError, match=text) as caught:
        run(config, tmp_path, "--resume", "--cfg-options", option)
    assert f"--cfg-options load_from={path}" in str(caught.value)
    assert list(tmp_path.glob("*.pth")) == [path]
