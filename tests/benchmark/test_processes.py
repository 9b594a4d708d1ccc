"""tools/benchmarks/run.py as processes: killed ones, two at once, and a training of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from gersp_mm import benchmark
from gersp_mm.results import store
from gersp_mm.utils.files import file_sha256, locked
from tests.support.forked import Forked
from tests.support.smoke import ROOT

TOOL = ROOT / "tools" / "benchmarks" / "run.py"
CONFIG = "configs/downstream/eurosat/finetune_r18_eurosat.py"
PLAN = """
checkpoints: {GeRSP: b.pth, random: null}
arch: {type: ResNet, depth: 18, base_channels: 8, stem_channels: 8}
seeds: [0, 1, 2]
datasets: {mine: {train: train, test: test, size: 32}}
tasks:
  - {protocol: knn, data: mine, k: 5}
  - {protocol: linear, data: mine, sweep: [1e-2, 1]}
  - {protocol: fewshot, data: mine, shots: [1, 2], draws: 2}
"""
JOBS, ROWS = 1 + 3 + 3 + 3 * 3, 1 + 3 + 6 + 3 * 4


def start(out: str) -> Forked:
    Path("plan.yml").write_text(PLAN)
    arguments = ["plan.yml", "--work-dir", f"work_{out}", "--out", out, "--device", "cpu"]
    said = Path(f"{out}.{time.monotonic_ns()}")
    return Forked(TOOL, *arguments, output=said, errors=Path(os.devnull))


def wait_for_rows(child: Forked, out: str, count: int) -> None:
    while not Path(out).is_file() or Path(out).read_bytes().count(b"\n") < count:
        assert child.poll() is None
        time.sleep(0.01)


def jobs_run(child: Forked) -> int:
    """Wait for a process to end well."""
    assert child.wait() == 0
    return int(child.output.read_text().splitlines()[-1].split(" job")[0])


def comparable(out: str) -> list[dict]:
    """Return the rows without what is of their making, in an order of their own."""
    origin = {"commit", "hardware", "versions", "seconds"}
    found = [row.model_dump(exclude=origin) for row in store.read_rows(out)]
    return sorted(found, key=str)


def start_two(out: str) -> list[Forked]:
    """Start two processes that wait for the lock of the rows until both have come so far."""
    with open(out, "ab") as file, locked(file):
        children = [start(out) for _ in range(2)]
        for child in children:
            while os.path.realpath(out) not in opened_by(child):
                assert child.poll() is None
                time.sleep(0.01)
    return children


def opened_by(child: Forked) -> set[str]:
    """Files that a process has open now."""
    found = set()
    for descriptor in Path(f"/proc/{child.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in between
            found.add(os.readlink(descriptor))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells who waits by Linux's /proc")
def test_two_at_once_and_one_of_two_killed(folder):
    alone = start("alone.jsonl")
    assert jobs_run(alone) == JOBS
    expected = comparable("alone.jsonl")
    assert len({row.identity for row in store.read_rows("alone.jsonl")}) == len(expected) == ROWS

    shares = [jobs_run(child) for child in start_two("both.jsonl")]
    assert min(shares) > 0 and sum(shares) == JOBS
    assert comparable("both.jsonl") == expected

    killed, other = start_two("killed.jsonl")
    wait_for_rows(killed, "killed.jsonl", 5)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert len(store.read_rows("killed.jsonl")) < ROWS
    assert 0 < jobs_run(other) <= JOBS  # the other one may have been quicker every time
    assert comparable("killed.jsonl") == expected


def test_a_killed_run_goes_on(folder):
    child = start("r.jsonl")
    try:
        wait_for_rows(child, "r.jsonl", 1)
    finally:
        child.kill()
        child.wait()
    with open("r.jsonl", "ab") as file:
        file.write(b'{"dataset": "mi')  # as if killed while it wrote
    before = Path("r.jsonl").read_text().splitlines()[:-1]
    assert 0 < len(before) < ROWS
    jobs_run(start("r.jsonl"))
    after = Path("r.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len({row.identity for row in store.read_rows("r.jsonl")}) == ROWS


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
def test_fine_tuning_in_earnest(folder, downstream_data, monkeypatch):
    eurosat = Path("data/eurosat")
    eurosat.mkdir(parents=True)
    (eurosat / "2750").symlink_to(downstream_data / "eurosat" / "2750")
    splits = downstream_data / "eurosat" / "splits"
    shutil.copytree(splits / "eurosat-gersp-1-incomplete", eurosat / "splits" / "eurosat-gersp-1")
    monkeypatch.setenv("GERSP_DATA", str(eurosat.parent.resolve()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {"train_cfg.max_epochs": 1}
    for part in ("train", "val", "test"):
        small = dict(batch_size=8, num_workers=0, persistent_workers=False)
        options |= {f"{part}_dataloader.{name}": value for name, value in small.items()}
    Path("plan.yml").write_text(
        "checkpoints: {GeRSP: b.pth}\nseeds: [3]\nwork_dir: work\n"
        f"tasks: [{{protocol: finetune, config: {CONFIG}, cfg_options: {json.dumps(options)}}}]\n"
    )
    plan = benchmark.read_plan("plan.yml")
    (job,) = jobs = benchmark.make_jobs(plan)
    runner = benchmark.Runner(plan, Path("r.jsonl"), "cpu")
    assert (runner.run(jobs), runner.run(jobs)) == (1, 0)

    (row,) = store.read_rows("r.jsonl")
    made = Path("work/finetune", job.id)
    (tested,) = store.read_rows(made / "rows.jsonl")  # what tools/test.py says itself
    for name, value in dict(
        dataset="EuroSAT", model="ResNet-18", metric="top-1", seed=3, pretraining="GeRSP",
        checkpoint_sha256=file_sha256("b.pth"), config=CONFIG,
    ).items():  # fmt: skip
        assert getattr(row, name) == getattr(tested, name) == value
    assert row.value == tested.value and row.value in range(0, 101, 10)  # of ten images
    assert row.column == tested.column and row.overrides == {"train_dataloader.batch_size": 8}
    assert row.measured_by.epochs == 1
    trained = torch.load(made / "epoch_1.pth", weights_only=False)
    assert trained["meta"]["epoch"] == 1 and trained["meta"]["iter"] == 4  # 30 images
    assert trained["meta"]["seed"] == 3
    own = trained["state_dict"]["backbone.conv1.weight"]
    assert 0 < (own - torch.load("b.pth")["state_dict"]["backbone.conv1.weight"]).abs().max() < 0.1
