"""The study GeRSP-mini: its lists, its rows, and its driver on a few images."""

import importlib.util
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from PIL import Image
from torch.nn import functional as F

from gersp_mm.backbones.exported import ExportedBackbone
from gersp_mm.benchmark import read_plan
from gersp_mm.datasets.known import EUROSAT
from gersp_mm.registry import HOOKS, MODELS
from gersp_mm.results import Pretraining, append_rows, read_rows
from gersp_mm.utils.errors import UserError
from tests.support.forked import Forked, run

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "benchmarks" / "mini"


def load(name):
    spec = importlib.util.spec_from_file_location(f"mini_{name}", MINI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


prepare, driver, statistics = load("prepare"), load("run"), load("own_statistics")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders as the study wants them: EuroSAT's split and every natural image it names."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    pictures = []
    for number in range(12):  # four for each part, since parts may share none
        path = root / f"{number}.jpg"
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        pictures.append(path)
    splits = root / "eurosat" / "splits" / "eurosat-gersp-1"
    splits.mkdir(parents=True)
    counts = dict(train=1000, val=1, test=10)
    for place, (part, count) in enumerate(counts.items()):
        lines = []
        for label, name in enumerate(EUROSAT.classes):
            folder = root / "eurosat" / "2750" / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                file = folder / f"{name}_{part}{number}.jpg"
                os.link(pictures[4 * place + label % 4], file)
                lines.append(f"2750/{name}/{file.name} {label}")
        (splits / f"{part}.txt").write_text("\n".join(lines) + "\n")
    for line in (MINI / "natural.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, *numbers = line.split()
            folder = root / "tiny-imagenet-200" / "train" / name / "images"
            folder.mkdir(parents=True)
            for number in numbers[:48]:
                os.link(pictures[int(number) % 4], folder / f"{name}_{number}.JPEG")
    prepare.main(prepare.parse_args([str(root)]))
    return root


def lines_of(data, name):
    return (data / "mini_cpu" / f"{name}.txt").read_text().splitlines()


def test_lists_name_images_that_are_there_once(data):
    counts = dict(remote_sensing=9600, natural=9600, natural_paths=9600, both=19200)
    counts.update(eurosat_train=2000, eurosat_finetune=500, eurosat_val=10, eurosat_test=100)
    for name, count in counts.items():
        lines = lines_of(data, name)
        assert len(lines) == len(set(lines)) == count, name
        folder = data / "mini_cpu" if name.startswith("eurosat") else data
        assert all((folder / line.split(" ")[0]).is_file() for line in lines), name
    labels = [int(line.rpartition(" ")[2]) for line in lines_of(data, "natural")]
    assert sorted(set(labels)) == list(range(200)) and labels.count(17) == 48
    assert set(lines_of(data, "eurosat_finetune")) <= set(lines_of(data, "eurosat_train"))
    assert not any("_test" in line or "_val" in line for line in lines_of(data, "both"))


def test_what_is_not_there_is_named(data, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*train\.txt: run python .*eurosat\.py"):
        prepare.main(prepare.parse_args([str(tmp_path)]))
    with pytest.raises(UserError, match=r"of 16200 natural images are not below .*--download"):
        prepare.main(prepare.parse_args([str(data), "--size", "gpu"]))


def all_runs():
    return driver.read_rows(MINI / "rows.yml", Path("w"))


@pytest.mark.parametrize("row", list(dict.fromkeys(run.row for run in all_runs())))
def test_every_row_builds_and_has_the_same_updates(row, data, monkeypatch):
    monkeypatch.setenv("GERSP_DATA", str(data))
    run = next(run for run in all_runs() if run.row == row)
    cfg = Config.fromfile(run.config)
    cfg.merge_from_dict(dict(run.options))
    dataset = cfg.train_dataloader.dataset
    sizes = [
        len((data / source.ann_file).read_text().splitlines())
        for source in (dataset.remote_sensing, dataset.natural)
        if source is not None
    ]
    steps = max(sizes) // (cfg.train_dataloader.batch_size * run.processes)
    updates = 2400 if "2,400 updates" in row else cfg.settings.updates
    decay = cfg.param_scheduler[1]
    assert steps * cfg.train_cfg.max_epochs == updates == decay.end == decay.begin + decay.T_max
    for hook in cfg.default_hooks.values():
        HOOKS.build(dict(hook))
    model = MODELS.build(cfg.model)
    assert model.with_contrastive_branch == (dataset.remote_sensing is not None)
    assert model.with_natural_branch == (dataset.natural is not None)


def test_a_row_of_two_processes_is_started_by_torchrun():
    run = next(run for run in all_runs() if run.row == "GeRSP, key_bn=shuffle")
    start = "python -m torch.distributed.run --standalone --nproc_per_node=2 tools/train.py "
    assert run.words.startswith(start) and " --launcher pytorch " in run.words


def test_seeds_of_the_rows():
    groups = yaml.safe_load((MINI / "rows.yml").read_text())
    assert {name: len(group["seeds"]) for name, group in groups.items()} == dict(
        main=3, parts=2, alpha=2, half=3, remedies=1, repeated=3, queue=3, long=3, key_bn=3
    )
    assert len({run.folder for run in all_runs()}) == len(all_runs()) == 21 * 3 + 8 * 2 + 6
    assert {run.row for run in all_runs() if run.finetune} == set(groups["main"]["rows"])


def test_a_repeat_has_files_of_its_own(tmp_path, monkeypatch):
    facts = dict(row="IMP", seed=0, checkpoint_sha256="new")
    monkeypatch.setattr(driver, "facts_of", lambda run, seconds: facts)
    record = tmp_path / "pretraining.json"
    recorded = [dict(facts, checkpoint_sha256="recorded"), dict(facts, seed=1)]
    record.write_text(json.dumps(recorded))
    run = next(run for run in all_runs() if (run.row, run.seed) == ("IMP", 0))
    run = run._replace(folder=tmp_path / "run")

    class Pool:
        def run(self, waiting, after):
            run.folder.mkdir(exist_ok=True)
            after(run.title, 1.0)

    for _ in range(2):
        driver.pretrain([run], Pool(), record)
        run.finished.unlink()
        assert json.loads(record.read_text()) == [*recorded, facts]
    args = driver.parse_args(["--dry-run"])
    driver.main(args)
    assert args.out == Path("work_dirs/mini/cpu/results.jsonl")
    assert args.recorded == ROOT / "results" / "mini_cpu.jsonl"


TINY = {  # eight updates: two epochs of eight pairs
    "train_dataloader.batch_size": 2,
    "train_dataloader.dataset.remote_sensing.ann_file": "mini_cpu/few.txt",
    "train_dataloader.dataset.natural.ann_file": "mini_cpu/few_labelled.txt",
    "train_cfg.max_epochs": 2,
    "default_hooks.logger.interval": 1,
    "model.queue_len": 16,
}


@pytest.fixture
def few(data, tmp_path, monkeypatch):
    """A study of one row and two seeds on eight images."""
    monkeypatch.setenv("GERSP_DATA", str(data))
    for name, source in (("few", "remote_sensing"), ("few_labelled", "natural")):
        text = "\n".join(lines_of(data, source)[::1200])
        (data / "mini_cpu" / f"{name}.txt").write_text(text + "\n")
    rows = dict(main=dict(seeds=[0, 1], rows={"GeRSP": dict(config="gersp.py", options=TINY)}))
    path = tmp_path / "rows.yml"
    path.write_text(yaml.safe_dump(rows))
    return [
        *(str(MINI / "run.py"), "--rows-file", str(path)),
        *("--work-dir", str(tmp_path / "w"), "--out", str(tmp_path / "rows.jsonl"), "--jobs", "2"),
    ]


@pytest.mark.usefixtures("forked_children")
def test_study_from_images_to_rows_and_again(few, data, tmp_path, capsys):
    (data / "mini_cpu" / "eurosat_train.txt").write_text(
        "\n".join(lines_of(data, "eurosat_train")[::20]) + "\n"
    )
    driver.main(driver.parse_args([*few[1:], "--dry-run"]))
    shown = capsys.readouterr().out
    assert shown.count("to do") == 2 and "--work-dir" in shown
    assert not (tmp_path / "w").exists()

    command = [*few, "--evaluate", "frozen", "--recorded", str(tmp_path / "recorded.jsonl")]
    child = Forked(*command, output=tmp_path / "said")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "w").glob("*/*/*/vis_data/scalars.json")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) == 130

    done = run(*command, output=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RESISC12 is left out" in done.stdout
    facts = json.loads((tmp_path / "rows_pretraining.json").read_text())
    assert sorted(f["seed"] for f in facts) == [0, 1] and {f["updates"] for f in facts} == {8}
    assert facts[0]["checkpoint_sha256"] != facts[1]["checkpoint_sha256"]
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len({row.identity for row in rows}) == len(rows) == 2 * 2 * 3  # start, seed, protocol
    assert {(row.settings.method, row.seed) for row in rows} == {
        (start, seed) for start in ("GeRSP", "random") for seed in (0, 1)
    }
    known = {f["checkpoint_sha256"] for f in facts} | {None}
    assert {row.checkpoint_sha256 for row in rows} == known
    assert {row.settings.updates for row in rows if row.checkpoint_sha256} == {8}

    tables = tmp_path / "w" / "tables" / "table.md"
    assert f"written: {tables}" in done.stdout and "| GeRSP | **" in tables.read_text()

    # what was recorded elsewhere: another file hash, one value that differs
    recorded = [row.model_copy(update=dict(checkpoint_sha256="ab")) for row in rows]
    recorded[0] = recorded[0].model_copy(update=dict(value=rows[0].value + 1))
    append_rows(tmp_path / "recorded.jsonl", recorded)
    before = (tmp_path / "rows.jsonl").read_bytes(), (tmp_path / "recorded.jsonl").read_bytes()
    again = run(*command, output=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "2 of them done" in again.stdout
    assert "12 repeated rows, part of no mean" in again.stdout
    assert "11 with the same value, the largest difference -1.00 (" in again.stdout
    repeated = tables.read_text().split("## Repeated rows")[1]
    assert repeated.count("/rows.jsonl, row ") == 12
    assert before == tuple((tmp_path / f"{n}.jsonl").read_bytes() for n in ("rows", "recorded"))

    check_own_statistics(tmp_path / "w")

    path = tmp_path / "rows.yml"
    path.write_text(path.read_text().replace("queue_len: 16", "queue_len: 32"))
    changed = driver.read_rows(path, tmp_path / "w")
    with pytest.raises(UserError, match=r"holds a run of(.|\n)*take another --work-dir"):
        driver.pretrain(changed, driver.Pool(1), tmp_path / "other.json")


def check_own_statistics(work_dir):
    with pytest.raises(UserError, match=r"frozen.yml has no IMP: run"):
        statistics.main(statistics.parse_args(["--rows", "IMP", "--work-dir", str(work_dir)]))
    statistics.main(
        statistics.parse_args(["--rows", "GeRSP", "--views", "8", "--work-dir", str(work_dir)])
    )
    plan = read_plan(work_dir / "own_statistics.yml")
    assert [checkpoint.name for checkpoint in plan.checkpoints] == ["GeRSP, own statistics"]
    (folder,) = {path.parent for path in work_dir.glob("gersp/seed_1/own_statistics.pth")}
    exported = ExportedBackbone.read(folder / "gersp_backbone.pth")
    before = exported.tensors
    own = ExportedBackbone.read(folder / "own_statistics.pth")
    after = own.tensors
    assert Pretraining.of_origin(own.meta.stored).statistics == "own"
    assert own.meta.stored["iterations"] == exported.meta.stored["iterations"] == 8
    for name, tensor in before.items():
        kind = name.rpartition(".")[2]
        assert torch.equal(tensor, after[name]) == (not kind.startswith(("running", "num"))), name
    scale = exported.meta.normalisation
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (scale.mean, scale.std))
    views = (statistics.read_views(8) - mean) / std
    mapped = F.conv2d(views, before["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(after["bn1.running_mean"], mapped.mean((0, 2, 3)))


STUBBORN = """
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path(sys.argv[1]).write_text(str(time.time()))
    time.sleep(1)
    sys.exit(1)
signal.signal(signal.SIGTERM, leave)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
FAILING = """
import pathlib, sys, time
while not all(pathlib.Path(name).exists() for name in sys.argv[1:]):
    time.sleep(0.1)
sys.exit(3)
"""


def test_a_failure_stops_all_others_at_once(tmp_path):
    marks = [str(tmp_path / name) for name in "ab"]
    waiting = [
        (mark[-1], [sys.executable, "-c", STUBBORN, mark], tmp_path / f"{mark[-1]}.log")
        for mark in marks
    ]
    waiting.append(("c", [sys.executable, "-c", FAILING, *marks], tmp_path / "c.log"))
    with pytest.raises(UserError, match="c failed: exit code 3"):
        driver.Pool(3).run(waiting)
    first, second = (float(Path(mark).read_text()) for mark in marks)
    assert abs(first - second) < 0.5


def test_the_log_of_a_training_is_no_progress_of_an_evaluation():
    training = "11/29 06:20:01 - mmengine - INFO - Epoch(train)  [1][125/150]  lr: 1.0e-02"
    assert driver.EVALUATED.findall(f"{training}\n[3/12] kNN: 71.4 (0.3 s)\n") == ["3/12"]


@pytest.mark.usefixtures("forked_children")
def test_failing_run_is_named_and_unknown_rows_refused(few, tmp_path):
    path = tmp_path / "rows.yml"
    path.write_text(path.read_text().replace("queue_len: 16", "queue_len: 0"))
    failed = run(*few, "--seeds", "1", output=tmp_path)
    assert failed.returncode == 2
    assert re.search("GeRSP, seed 1 failed: .*queue_len cannot be 0", failed.stderr), failed.stderr
    assert not (tmp_path / "rows_pretraining.json").exists()
    with pytest.raises(UserError, match="--rows GRSP: there are GeRSP"):
        driver.main(driver.parse_args([*few[1:], "--rows", "GRSP"]))
