"""benchmarks/speed: the peers compute what they should, scripts run."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from PIL import Image

from gersp_mm import GeRSP
from tests.support.smoke import ROOT, forget_runs

FOLDER = ROOT / "benchmarks" / "speed"
CLASSES, DIM, QUEUE, PAIRS, STEPS = 7, 8, 24, 4, 3


@pytest.fixture(autouse=True)
def folder_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> Any:
    return importlib.import_module(name)


# -------------------------------------------------------------------------------------------- peers
def official_config() -> Config:
    """``gersp_r50_official.py`` with a ResNet-50 of 4 to 64 channels."""
    cfg = Config.fromfile(ROOT / "configs/pretrain/gersp_r50_official.py")
    cfg.model.update(queue_len=QUEUE, feat_dim=DIM)
    cfg.model.backbone.update(stem_channels=4, base_channels=2)
    cfg.model.neck.update(in_channels=64, hid_channels=16, out_channels=DIM)
    cfg.model.natural_head.update(in_channels=64, num_classes=CLASSES)
    return cfg


def images(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shape = (PAIRS, 3, 40, 40)
    batch: dict[str, Any] = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name in ("rs_query", "rs_key", "natural")
    }
    batch["label"] = torch.randint(CLASSES, (PAIRS,), generator=generator)
    batch["data_samples"] = [DataSample().set_gt_label(label[None]) for label in batch["label"]]
    return batch


def initialised(model: torch.nn.Module) -> Any:
    """Random weights; the teacher's differ from the student's."""
    model.init_weights()
    for module in model.modules():  # block-closing BatchNorms start at zero and hide the blocks
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.double().train()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_released_step_is_that_of_the_official_config():
    peers, step = load("peers"), load("step")
    cfg = official_config()
    ours = step.Ours(cfg)
    model: GeRSP = initialised(ours.model)
    assert not torch.equal(model.backbone.conv1.weight, model.teacher.backbone.conv1.weight)
    released = peers.ReleasedStep(cfg.model.to_dict(), cfg.optim_wrapper.optimizer.to_dict())
    released.to(torch.float64).load(model)

    for number in range(STEPS):
        batch = images(number)
        logged = released.step(batch)
        model.update_teacher()  # `before_forward`, as the official config has its hook
        inputs = {name: batch[name] for name in ("rs_query", "rs_key", "natural")}
        losses = model(inputs, batch["data_samples"], mode="loss")
        ours.optim_wrapper.update_params(model.parse_losses(losses)[0])

        for name, value in dict(
            loss=losses["loss_ct"],
            sup_loss=losses["loss_ce"],
        ).items():
            assert logged[name] == pytest.approx(float(value.detach()), rel=1e-9), name
        pairs = [
            (model.backbone, released.encoder_q),
            (model.neck.mlp, released.proj_q),
            (model.natural_head.fc, released.pred_q),
            (model.teacher.backbone, released.encoder_k),
            (model.teacher.neck.mlp, released.proj_k),
        ]
        for part, peer in pairs:
            theirs = peer.state_dict()
            assert part.state_dict().keys() == theirs.keys()
            for name, tensor in part.state_dict().items():
                close(tensor, theirs[name])
        close(model.queue, released.queue.t())
        assert int(model.queue_ptr) == int(released.queue_ptr) == (number + 1) * PAIRS % QUEUE


def test_released_accuracies_are_in_per_cent():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])
    accuracies = load("peers")._accuracies(scores, torch.tensor([0, 4, 0]))
    assert float(accuracies[1]) == pytest.approx(100 / 3)
    assert float(accuracies[5]) == pytest.approx(200 / 3)


def test_released_loss_and_queue_are_mmpretrains():
    peers = load("peers")
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    query, key = (unit(torch.randn(3, DIM, dtype=torch.float64), dim=1) for _ in range(2))
    queue = unit(torch.randn(DIM, QUEUE, dtype=torch.float64), dim=0)
    head = peers.MODELS.build(
        dict(type="ContrastiveHead", loss=dict(type="CrossEntropyLoss"), temperature=0.2)
    )
    theirs = head.loss((query * key).sum(1, keepdim=True), query @ queue)
    close(peers.released_info_nce(query, key, queue, 0.2), theirs)
    pointer = torch.tensor([QUEUE - 3])
    peers.released_enqueue(queue, pointer, key)
    close(queue[:, -3:], key.t())
    assert int(pointer) == 0
    with pytest.raises(ValueError, match="whole batches"):
        peers.released_enqueue(queue, pointer, torch.zeros(5, DIM))


def test_mmpretrain_step_trains_student_and_teacher():
    peers = load("peers")
    cfg = official_config()
    taken = peers.mmpretrain_step(cfg.model.to_dict(), cfg.optim_wrapper.optimizer.to_dict())
    batch = {k: v.float() if k.startswith(("rs", "nat")) else v for k, v in images(0).items()}
    moco = next(
        cell.cell_contents for cell in taken.__closure__ if hasattr(cell.cell_contents, "encoder_k")
    )
    before = {name: value.clone() for name, value in moco.state_dict().items()}
    taken(batch)
    taken(batch)  # the teacher's first update takes the student's weights
    changed = {k for k, v in moco.state_dict().items() if not torch.equal(v, before[k])}
    for part in ("backbone.conv1.weight", "neck.mlp.0.weight", "natural_head.fc.weight"):
        assert part in changed
    assert "encoder_k.module.0.conv1.weight" in changed and "queue" in changed


def write_picture(path: Path, value: int, size: tuple[int, int] = (20, 16)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size[::-1], 3), value, np.uint8)
    pixels[..., 0] = 255 - value
    Image.fromarray(pixels).save(path, quality=95)
    return str(path)


def test_released_pairs_decode_twice_and_pair_by_number(tmp_path: Path, monkeypatch: Any):
    peers = load("peers")
    rs = [(write_picture(tmp_path / f"rs{i}.jpg", 40 * i), 0) for i in range(3)]
    natural = [(write_picture(tmp_path / f"n{i}.jpg", 100 + 40 * i), i) for i in range(2)]
    reads = []
    decode = peers.mmcv.imfrombytes
    monkeypatch.setattr(
        peers.mmcv, "imfrombytes", lambda *a, **k: reads.append(1) or decode(*a, **k)
    )
    plain = dict(jitter=(0, 0, 0, 0), grayscale_prob=0.0)
    pairs = peers.ReleasedPairs(rs, natural, size=8, rs_parts=plain)
    sample = pairs[2]
    assert len(pairs) == 3 and len(reads) == 4
    assert sample["gt_label"] == [0] and len(sample["img"]) == 1 and len(sample["ex_img"]) == 2
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (peers.RGB_MEAN, peers.RGB_STD))
    for view in sample["ex_img"]:
        pixels = view * std + mean
        assert pixels.shape == (3, 8, 8)
        assert pixels.mean((1, 2)).tolist() == pytest.approx([175, 80, 80], abs=4)

    once = peers.ReleasedPairs(rs, natural, size=8, decodes=1)
    reads.clear()
    batch = peers.released_batch(torch.utils.data.default_collate([once[0], once[1]]))
    assert len(reads) == 4
    assert batch["label"].tolist() == [0, 1] and batch["rs_key"].shape == (2, 3, 8, 8)


def test_mmpretrain_pairs_are_uint8(tmp_path: Path):
    peers = load("peers")
    rs = [(write_picture(tmp_path / "rs.jpg", 30), 0)]
    natural = [(write_picture(tmp_path / "n.jpg", 90), 5)]
    sample = peers.MMPretrainPairs(rs, natural, size=12)[0]
    assert [view.shape for view in sample["remote_sensing"]["inputs"]] == [(3, 12, 12)] * 2
    assert sample["natural"]["inputs"].dtype == torch.uint8
    assert int(sample["natural"]["data_samples"].gt_label) == 5


# ------------------------------------------------------------------------------------------- timing
def test_rounds_rotate_and_ratios_are_paired():
    timing = load("timing")
    order: list[str] = []
    contenders = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.interleave(contenders, rounds=3, warmup=1)
    assert "".join(order) == "cababcbcacab"
    assert all(len(seconds) == 3 for seconds in times.values())
    ratio = timing.paired_ratio(dict(a=[2.0, 30.0, 8.0], b=[1.0, 10.0, 2.0]), "a", "b")
    assert ratio == dict(min=2.0, q1=2.5, median=3.0, q3=3.5, max=4.0)


def test_record_appends_a_row(tmp_path: Path):
    timing = load("timing")
    out = tmp_path / "results.jsonl"
    args = argparse.Namespace(record=out, rounds=2)
    for _ in range(2):
        timing.record(args, "a setting", dict(ours=1.5), dict(r=timing.spread([1.0, 2.0])))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 and rows[0]["values"] == dict(ours=1.5)
    assert {"script", "setting", "ratios", "hardware", "versions", "commit", "command"} <= {
        *rows[0]
    }
    assert rows[0]["versions"]["torch"] and "cores of" in rows[0]["hardware"]


def test_memory_format_is_read_from_the_model():
    step = load("step")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    assert step.memory_format(model) is torch.contiguous_format
    assert step.memory_format(model.to(memory_format=torch.channels_last)) is torch.channels_last


def test_flops_and_what_is_printed_of_a_gpu(capsys: pytest.CaptureFixture[str]):
    step = load("step")
    layer, images = torch.nn.Linear(5, 7), torch.randn(3, 5)
    assert step.count_flops(lambda: layer(images).sum().backward()) == 2 * (2 * 3 * 5 * 7)
    args = argparse.Namespace(batch=8, peak_tflops=100.0, amp=None, device="cuda")
    values = step._print_gpu(args, dict(ours=[0.5, 0.5]), dict(ours=12.0), 10**13)
    assert values["gpu"]["ours"] == dict(pairs_per_s=16, peak_mib=12, tflops=20, mfu=0.2)
    assert "10000.0 GFLOP a step" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ scripts
SCRIPTS = {
    "step": "--arch 18 --size 33 --batch 4 --queue 64 --rounds 2 --warmup 0",
    "input": "--images IMAGES --sources 64 --files 2 --pairs 2 --batch 2 --rounds 2 --warmup 0",
    "scenes": "--side 640 --pairs 2 --rounds 2 --warmup 0 --layouts tiles",
    "end_to_end": "--images IMAGES --batch 4 --size 33 --workers 0 --queue 64 --steps 2 --first 1 "
    "--rounds 1 --threads 1",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Run a script with tiny settings in this process and return the rows that it records."""
    for number in range(4):
        write_picture(tmp_path / "images" / f"{number}.jpg", 50 * number, (90, 70))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that scripts start
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "results.jsonl"

    def run_script(name: str, *more: str) -> list[dict[str, Any]]:
        arguments = SCRIPTS[name].replace("IMAGES", str(tmp_path / "images")).split()
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *arguments])
        sys.argv += ["--record", str(out), *more]
        script = load(name)
        script.main(script.parse_args())
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(row["script"] == f"{name}.py" for row in rows)
        return rows

    return run_script


def test_step_script(run: Any) -> None:
    (row,) = run("step")
    assert {"ours", "released", "mmpretrain", "bound"} <= {*row["values"]["step_ms"]}
    assert {"released / ours", "mmpretrain / ours", "ours / bound"} <= {*row["ratios"]}
    assert sum("released / ours" in name for name in row["ratios"]) == 4  # step and three parts


def test_step_script_compares_split_batch_norm(run: Any) -> None:
    (row,) = run(
        "step", "--only", "ours", "split", "--split-size", "2", "--contiguous", "--no-micro"
    )
    assert {*row["values"]["step_ms"]} == {"ours", "ours, split BatchNorm", "bound"}
    assert row["ratios"]["ours, split BatchNorm / ours"]["median"] > 0


def test_input_script(run: Any) -> None:
    (row,) = run("input")
    rates = row["values"]["pairs_per_s_per_core"]
    assert {*rates} == {*load("input").CONTENDERS}
    assert all(rate["median"] > 0 for rate in rates.values())


def test_scenes_script(run: Any) -> None:
    pytest.importorskip("rasterio")
    (row,) = run("scenes")
    assert {"ours", "whole file"} <= {*row["values"]["pairs_per_s"]}
    assert "ours / whole file" in row["ratios"] and 1 < row["values"]["worker_private_mb"] < 500


@pytest.mark.slow
def test_end_to_end_script(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("end_to_end")
    start, started = script.start, []

    def start_here(args: argparse.Namespace, child: str) -> dict[str, Any]:
        started.append(child)
        if child == script.OURS:
            return start(args, child)  # in a process of its own, as it should be
        forget_runs()
        return script.run_child(argparse.Namespace(**{**vars(args), "child": child}))

    monkeypatch.setattr(script, "start", start_here)
    rows = run("end_to_end")
    assert started == ["ours", "released", "breakdown"]
    kinds = [row["setting"].rpartition(": ")[2] for row in rows]
    assert kinds == ["mean step", "median step", "breakdown"]
    parts = rows[2]["values"]["ms"]
    names = ("waiting for data", "preprocessor", "student forward", "teacher forward", "backward")
    assert all(parts[name] > 0 for name in names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_examples(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        load(script).parse_args(["--help"])
    assert "Examples:" in capsys.readouterr().out
