"""Two gloo processes on CPUs, started once for most tests of this file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gersp_mm.checkpoints import latest_checkpoint
from tests.support import dist_worker, scenes_worker
from tests.support.dist_worker import (
    BASELINES,
    GLOBAL_BATCH,
    ITERATIONS,
    paired_config,
    run,
    without_batch_norm,
)
from tests.support.forked import run_ranks
from tests.support.models import batch, tiny_gersp, total
from tests.support.rasters import surface, write
from tests.support.runs import assert_same, assert_same_training_state, demo_config, load
from tests.support.smoke import ROOT

pytestmark = pytest.mark.dist


def environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, paths)))


@pytest.fixture(scope="module")
def ranks(pair_data, tmp_path_factory):
    """What rank 0 and rank 1 ended with."""
    out = tmp_path_factory.mktemp("dist")
    for done in run_ranks(dist_worker.__file__, pair_data, out, output=out, env=environment()):
        assert done.returncode == 0, done.stdout[-3000:]
    loaded = [load(out / f"rank{rank}.pt") for rank in (0, 1)]
    shutil.rmtree(out)
    return loaded


BOTH = ["whole_method", "no_batch_norm", "contrastive_only", "other_seed_a_rank"]


@pytest.mark.parametrize("case", BOTH)
def test_queue_teacher_and_student_are_the_same_on_both_ranks(ranks, case):
    first, second = (rank[case] for rank in ranks)
    assert first["parameters"].keys() == second["parameters"].keys()
    for name, tensor in first["parameters"].items():
        assert torch.equal(tensor, second["parameters"][name]), name
    assert torch.equal(first["queue"], second["queue"])
    assert torch.equal(first["queue_ptr"], second["queue_ptr"])
    assert first["queue_ptr"].item() == ITERATIONS * GLOBAL_BATCH % 12
    teacher = {n for n in first["parameters"] if n.startswith("teacher.")}
    student = first["parameters"]
    assert any(not torch.equal(student[n], student[n[len("teacher.") :]]) for n in teacher)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_train_on_two_ranks(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert len(first["losses"]) == 2 and not first["without_gradient"]
    for parameter, tensor in first["parameters"].items():
        assert torch.equal(tensor, second["parameters"][parameter]), parameter
    assert first["losses"] != second["losses"]  # the ranks see images of their own


def test_ranks_see_different_images(ranks):
    first, second = (rank["whole_method"]["losses"] for rank in ranks)
    assert all(a["loss"] != b["loss"] for a, b in zip(first, second))


def test_two_ranks_without_batch_norm_equal_one_with_the_whole_batch(ranks, pair_data, tmp_path):
    """Rank r holds pairs r, r+2, ...: rank 0's keys come first in each block of the queue."""
    together = run(without_batch_norm(paired_config(pair_data, tmp_path, 1)))
    apart = [rank["no_batch_norm"] for rank in ranks]
    for step, loss in enumerate(together["losses"]):
        for name in ("loss", "loss_ct", "loss_ce"):
            mean = sum(rank["losses"][step][name] for rank in apart) / 2
            assert mean == pytest.approx(loss[name], rel=1e-6)
    for name, tensor in together["parameters"].items():
        torch.testing.assert_close(apart[0]["parameters"][name], tensor, rtol=1e-6, atol=1e-6)
    blocks = together["queue"].view(-1, GLOBAL_BATCH // 2, 2, 128)
    by_rank = blocks.transpose(1, 2).reshape(-1, 128)
    torch.testing.assert_close(apart[0]["queue"], by_rank, rtol=1e-6, atol=1e-6)
    assert torch.equal(apart[0]["queue_ptr"], together["queue_ptr"])


def test_shuffling_mixes_the_images_of_the_ranks(ranks):
    own = [set(rank["shuffle"]["numbers"].tolist()) for rank in ranks]
    seen = [set(rank["shuffle"]["seen"][0].tolist()) for rank in ranks]
    assert seen[0] | seen[1] == own[0] | own[1]
    for mine, met in zip(own, seen):
        assert len(met) == 8
        assert met - mine
    unshuffled = [set(rank["shuffle"]["seen"][1].tolist()) for rank in ranks]
    assert unshuffled == own


@pytest.mark.parametrize("n", [1, 5, 8])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exchanged_images_come_from_both_ranks_and_keys_return_in_order(ranks, n, precision):
    both = [rank["exchange"][n, precision] for rank in ranks]
    everything = torch.cat([rank["numbers"] for rank in both])
    assert sorted(torch.cat([rank["received"] for rank in both]).tolist()) == everything.tolist()
    for number, rank in enumerate(both):
        own = sum(value // 100 == number for value in rank["received"].tolist())
        assert own == n - n // 2
        assert torch.equal(rank["returned"], 2 * rank["numbers"])
        assert torch.equal(rank["gathered"], 2 * everything)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        assert rank["dtypes"] == (dtype, dtype)


def test_shuffled_keys_go_back_to_their_images(ranks):
    for rank in ranks:
        keys = rank["shuffle"]["keys"]
        torch.testing.assert_close(keys["shuffle"], keys["none"], rtol=1e-5, atol=1e-6)
        assert len(torch.unique(keys["none"], dim=0)) == 8


def test_shuffling_changes_the_statistics_that_normalise_a_key(ranks):
    for rank in ranks:
        keys = rank["shuffle"]["keys"]
        change = keys["shuffle_batch_statistics"] - keys["none_batch_statistics"]
        assert change.abs().max() > 1e-3


def test_two_groups_in_one_process_are_two_processes(ranks):
    """Keys, losses, gradients and running statistics, in float64."""
    torch.manual_seed(0)
    model = tiny_gersp(key_bn="split", split_size=8).double()
    arguments = batch(rs=16, natural=16, dtype=torch.float64)
    torch.manual_seed(1)  # the order of the keys
    losses = model.loss(**arguments)
    total(losses).backward()
    assert model.groups.number == 2
    groups = [rank["one group"] for rank in ranks]
    close = dict(rtol=1e-9, atol=1e-10)
    for name, loss in losses.items():
        if "loss" in name:
            mean = sum(group["losses"][name] for group in groups) / 2
            torch.testing.assert_close(loss, mean, **close)
            assert groups[0]["losses"][name] != groups[1]["losses"][name]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mean = sum(group["gradients"][name] for group in groups) / 2
            torch.testing.assert_close(parameter.grad, mean, **close)
    for name, buffer in model.named_buffers():
        if "running" in name:
            mean = sum(group["buffers"][name] for group in groups) / 2
            torch.testing.assert_close(buffer, mean, **close)
    queue = groups[0]["buffers"]["queue"][:16]  # by rank, ours by image
    torch.testing.assert_close(
        model.queue[:16].view(8, 2, -1).transpose(0, 1), queue.view(2, 8, -1)
    )


def test_every_rank_can_split_its_batch(ranks):
    first, second = (rank["split"] for rank in ranks)
    for name, tensor in first["parameters"].items():
        assert torch.equal(tensor, second["parameters"][name]), name
    assert torch.equal(first["queue"], second["queue"])
    assert first["losses"] != second["losses"] and first["without_gradient"] == set()


def test_an_evaluation_that_fails_on_one_rank_is_given_up_by_both(ranks):
    told = [rank["failing evaluation"] for rank in ranks]
    assert told == ["RuntimeError: rank 1 failed: ValueError: no such stage",
                    "ValueError: no such stage"]  # fmt: skip


@pytest.mark.parametrize("case", ["whole_method", "contrastive_only", "natural_only"])
def test_no_parameter_stays_unused(ranks, case):
    """DDP without find_unused_parameters would have failed in the second step as well."""
    for rank in ranks:
        assert len(rank[case]["losses"]) == ITERATIONS
        assert rank[case]["without_gradient"] == set()
    names = ranks[0][case]["parameters"]
    assert any(n.startswith("natural_head.") for n in names) == (case != "contrastive_only")
    assert any(n.startswith("neck.") for n in names) == (case != "natural_only")


def test_gradients_that_still_accumulate_are_averaged_for_the_checkpoint(ranks):
    first, second = (rank["accumulating"]["gradients"] for rank in ranks)
    assert first.keys() == second.keys()
    assert any(gradient.abs().sum() > 0 for gradient in first.values())
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-6, atol=1e-8)


def launch(config, work_dir, *arguments):
    command = ["bash", "tools/dist_train.sh", str(config), "2", "--work-dir", str(work_dir)]
    return subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=dict(environment(), PYTHON=sys.executable),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("counts, checkpoint", [(2, "iter_10.pth"), (3, "iter_6.pth")])
def test_killed_between_two_steps_and_resumed_the_run_ends_the_same(ranks, counts, checkpoint):
    """Saves every 5 iterations wait for the step; no gradients of rank 0 stand for both."""
    first = ranks[0]["killed", counts]
    assert first["resumed_from"] == checkpoint
    assert_same(first["killed"], first["whole"])


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def whole_run(request, pair_data, tmp_path_factory):
    """Runs on scenes with so many ranks, and what one without workers and interruption leaves."""
    pytest.importorskip("rasterio")
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(2):
        values = (surface(4, number, (300, 260)) * 3000 + 1).astype(np.uint16)
        values[:, :, : 90 * number] = 0
        write(folder / f"{number}.tif", values, nodata=0, tiled=True, blockxsize=64, blockysize=64)

    def run(work_dir, workers, end):
        arguments = pair_data, folder, work_dir, workers, end
        (output := work_dir.with_suffix(f".{end}")).mkdir()
        done = run_ranks(scenes_worker.__file__, *arguments, output=output, env=environment(),
                         count=request.param)  # fmt: skip
        return [one.returncode for one in done], "".join(one.stdout for one in done)[-3000:]

    codes, text = run(folder.with_name(f"{folder.name}-whole"), 0, "whole")
    assert codes == [0] * request.param, text
    return run, folder.with_name(f"{folder.name}-whole") / scenes_worker.LAST


@pytest.mark.parametrize("workers", [0, 3])
def test_a_run_on_scenes_ends_the_same_after_kill_9_with_any_workers(whole_run, workers, tmp_path):
    run, straight = whole_run
    codes, text = run(tmp_path / "run", workers, "kill")
    # A rank whose peer dies first ends by the error of its connection.
    assert -signal.SIGKILL in codes and 0 not in codes, text
    assert not (tmp_path / "run" / scenes_worker.LAST).exists()
    codes, text = run(tmp_path / "run", workers, "resume")
    assert set(codes) == {0}, text
    assert_same_training_state(straight, tmp_path / "run" / scenes_worker.LAST)


@pytest.mark.slow
def test_dist_train_stops_at_a_signal_and_goes_on(pair_data, tmp_path):
    """The launcher passes the signal on, rank 0 saves, and --resume finishes the run."""
    cfg = demo_config(pair_data, tmp_path / "unused", iterations=4, epochs=400)
    cfg.train_dataloader.num_workers = 1
    cfg.default_hooks.checkpoint.interval = 1000
    cfg.log_level = "INFO"
    cfg.pop("work_dir")
    config, work_dir = tmp_path / "small.py", tmp_path / "work"
    cfg.dump(config)
    log = []
    with launch(config, work_dir) as process:
        for line in process.stdout:
            log.append(line)
            if "Epoch(train)" in line and "[3][" in line:
                process.send_signal(signal.SIGUSR1)
                break
        log += process.communicate(timeout=120)[0].splitlines(keepends=True)
    text = "".join(log)
    assert process.returncode != 0
    newest = latest_checkpoint(work_dir)
    assert newest is not None and os.path.basename(newest).startswith("iter_"), text
    stopped = load(newest)["meta"]
    assert 0 < stopped["iter"] < 800

    epochs = stopped["epoch"] + 1
    start = time.time()
    with launch(
        config,
        work_dir,
        "--resume",
        "--cfg-options",
        f"train_cfg.max_epochs={epochs}",
        f"param_scheduler.0.T_max={epochs}",
    ) as process:
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert newest in text
    assert load(work_dir / f"epoch_{epochs}.pth")["meta"]["iter"] == 2 * epochs
    assert (work_dir / "small_backbone.pth").stat().st_mtime >= start
