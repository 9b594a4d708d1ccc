"""``gersp plan``: memory by part against independent counts, times, and options to paste."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from gersp_mm.commands import plan
from gersp_mm.engine import launch
from gersp_mm.engine.config import read_config
from gersp_mm.engine.precision import precision_of
from gersp_mm.planning.memory import RESERVE, Memory, fit, measure_memory, parse_bytes, split_batch
from gersp_mm.planning.time import Range, StepTimes, cores_needed, measure_steps
from gersp_mm.planning.timeline import ACTIVATIONS, GRADIENTS, IMAGES, KINDS, Timeline
from gersp_mm.planning.trial import Samples, Trial, can_checkpoint
from gersp_mm.utils.errors import UserError
from tests.support.runs import demo_config
from tests.support.smoke import CONFIGS, forget_runs

GERSP = "train_dataloader.dataset."
SIZES = (f"{GERSP}rs_pipeline.0.size=32", f"{GERSP}natural_pipeline.0.size=32")
R18 = dict(backbone=11_176_512, neck=512 * 512 + 512 + 512 * 128 + 128, head=513_000)
R50 = dict(backbone=23_508_032, neck=2048 * 2048 + 2048 + 2048 * 128 + 128, head=2_049_000)
# DeiT-S without its head, with positions for 2 x 2 patches instead of 14 x 14, and one more norm.
VIT = dict(
    backbone=21_665_664 - 192 * 384 + 768, neck=384 * 2048 + 2048 + 2048 * 128 + 128, head=385_000
)


def small(name: str, *options: str) -> Config:
    """Return a shipped config with crops of 32 pixels and a queue of 64, without its images."""
    cfg, _ = read_config(CONFIGS / "pretrain" / name, [*SIZES, "model.queue_len=64", *options])
    return cfg


def kept_after_forward(trial: Trial, size: int) -> int:
    """Add up what autograd keeps after the forward pass, by itself: each storage once."""
    kept: dict[int, int] = {}
    batch = trial.samples.batch(size)
    data = trial.model.data_preprocessor(batch, True)
    own = [*trial.model.parameters(), *trial.model.buffers(), *data["inputs"].values()]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in own}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in addresses:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), trial.wrapper.optim_context(trial.model):
        losses = trial.model(**data, mode="loss")
    total = sum(kept.values())
    del losses
    return total


def highest(memory: Memory, kind: int, size: int) -> float:
    """Return the most bytes of a kind at any moment of a step."""
    return (memory.constant + memory.slope * size)[:, kind].max()


def allocated(trial: Trial, size: int) -> int:
    """Return the most bytes that a step allocates at a time, by what the allocator reports."""
    batch = trial.samples.batch(size)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trial.step(batch)
    events, changes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if type(event.extra_fields).__name__ == "_ExtraFields_Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    changes.sort(key=lambda change: change[0])
    return int(np.cumsum([size for _, size in changes]).max())


@pytest.fixture(autouse=True)
def _forget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without data/
    yield
    forget_runs()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name, options, counts, states",
    [
        ("gersp_r18_demo.py", (), R18, 1),
        ("gersp_r50.py", (), R50, 1),
        ("gersp_vit-small.py", ("model.backbone.img_size=32",), VIT, 2),
    ],
)
def test_memory_by_part_equals_what_is_counted_and_kept(name, options, counts, states, precision):
    cfg = small(name, *options)
    trial = Trial(cfg, Samples(cfg), precision)
    memory = measure_memory(trial)
    trained = sum(counts.values())
    assert memory.gradients == 4 * trained
    tensors = sum(p.requires_grad for p in trial.model.parameters())
    steps = 4 * tensors if states == 2 else 0  # Adam counts its steps
    assert memory.optimizer == states * memory.gradients + steps
    assert memory.queue == 64 * 128 * 4 + 8
    backbone = trial.model.backbone
    norms = sum(b.numel() * b.element_size() for b in backbone.buffers())
    assert memory.teacher == 4 * (counts["backbone"] + counts["neck"]) + norms
    assert memory.weights - memory.gradients == norms + 24  # mean and std of the preprocessor
    for size in (3, 6):  # fitted on 2 and 4
        kept = kept_after_forward(trial, size)
        assert highest(memory, ACTIVATIONS, size) == pytest.approx(kept, rel=0.02)
        views, pixels = 3 * size, 3 * 32 * 32
        images = pytest.approx(views * pixels * 5 + 8 * size, rel=0.01)
        assert highest(memory, IMAGES, size) == images
        assert highest(memory, GRADIENTS, size) == memory.gradients
    assert memory.total(6) == sum(memory.parts(6).values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_sum_is_what_the_allocator_reports(precision, checkpointing):
    narrow = ["model.backbone.base_channels=16", "model.backbone.stem_channels=16",
              "model.neck.in_channels=128", "model.natural_head.in_channels=128",
              "train_dataloader.dataset.rs_pipeline.0.size=64",
              "train_dataloader.dataset.natural_pipeline.0.size=64"]  # fmt: skip
    cfg = small("gersp_r18_demo.py", *narrow)
    trial = Trial(cfg, Samples(cfg), precision, checkpointing)
    memory = measure_memory(trial)
    steady = memory.weights + memory.optimizer + memory.teacher + memory.queue
    batch = 12 * (3 * 3 * 64 * 64 + 8)  # as the loader gives it
    peak = steady + batch + allocated(trial, 12)
    assert memory.total(12) == pytest.approx(peak, rel=0.05)


def test_the_sum_of_a_transformer_is_what_the_allocator_reports():
    cfg = small("gersp_vit-small.py", "model.backbone.img_size=32")
    trial = Trial(cfg, Samples(cfg), "bf16")
    memory = measure_memory(trial)
    steady = memory.weights + memory.optimizer + memory.teacher + memory.queue
    peak = steady + 16 * (3 * 3 * 32 * 32 + 8) + allocated(trial, 16)
    assert memory.total(16) == pytest.approx(peak, rel=0.05)


def test_a_moment_holds_what_is_alive_then():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.data_preprocessor = torch.nn.Identity()
            self.weight = torch.nn.Parameter(torch.ones(5))

    model, batch = Model(), torch.ones(3, 5)
    timeline = Timeline(torch.device("cpu"), model.parameters())
    with timeline.recording(model):
        images = model.data_preprocessor(batch * 2)  # 15 numbers
        squares = (images * model.weight) ** 2  # The product is kept, too.
        loss = squares.exp().sum()
        del squares
        loss.backward()
        model.weight.grad.mul_(2)
        model.weight.grad = None
        torch.zeros(100)
    moments = timeline.moments
    assert moments.max(0).tolist() == [4 * 5, 4 * 15, 4 * 30, 4 * 100 + 4]
    assert (moments[:, IMAGES] >= 0).all() and len(KINDS) == moments.shape[1]
    assert moments[-1, GRADIENTS] == moments[-1, ACTIVATIONS] == 0
    assert not model.weight._post_accumulate_grad_hooks


def test_the_highest_moment_changes_with_the_batch_and_with_accumulation():
    # In the order of KINDS: the end of a backward pass, and the end of a forward pass.
    constant = np.array([[40.0, 0, 0, 4], [0.0, 0, 2, 2]])
    slope = np.array([[0.0, 1, 0, 0], [0.0, 1, 3, 1]])
    memory = Memory(50, 40, 10, 20, 8, constant, slope)
    assert memory.total(2) == 88 + 44 + 2 and memory.parts(2)["gradients"] == 40
    assert memory.total(20) == 88 + 4 + 100 and memory.parts(20)["gradients"] == 0
    assert memory.total(20, accumulating=True) == memory.total(20) + 40
    assert memory.largest_batch(192) == 20 and memory.largest_batch(191) == 19
    assert memory.largest_batch(192, accumulating=True) == 12
    assert memory.largest_batch(131) == 0 and memory.largest_batch(133) == 1
    assert fit(memory, 20, 192) == (20, 20, 1) and fit(memory, 24, 192) == (12, 12, 2)


def test_checkpointing_keeps_less_and_counts_what_is_recomputed():
    cfg = small("gersp_r50.py")
    assert can_checkpoint(cfg) and not can_checkpoint(small("gersp_vit-small.py"))
    samples = Samples(cfg)
    plain, recomputed = (measure_memory(Trial(cfg, samples, "fp32", cp)) for cp in (False, True))
    trial = Trial(cfg, samples, "fp32", checkpointing=True)
    after_forward = kept_after_forward(trial, 6)
    most = highest(recomputed, ACTIVATIONS, 6)
    assert after_forward < most < highest(plain, ACTIVATIONS, 6)
    assert recomputed.weights == plain.weights and recomputed.teacher == plain.teacher


@pytest.mark.parametrize(
    "name",
    ["gersp_swin-tiny.py", "baselines/byol_r18_demo.py", "baselines/simsiam_r18_demo.py",
     "baselines/mocov3_r18_demo.py", "baselines/imp_r18_demo.py", "baselines/moco-maid_r18_demo.py",
     "baselines/moco-in-maid_r18_demo.py"],
)  # fmt: skip
def test_configs_without_their_images_are_measured_on_stand_ins(name):
    cfg, _ = read_config(CONFIGS / "pretrain" / name)
    dataset = cfg.train_dataloader.dataset
    for pipeline in (dataset.rs_pipeline, dataset.get("natural_pipeline") or []):
        for view in pipeline:
            view.size = 32
    if "img_size" in cfg.model.backbone:
        cfg.model.backbone.update(img_size=32, pad_small_map=True)
    samples = Samples(cfg)
    assert not samples.present and samples.number is None
    assert samples.problem.endswith((" is not a folder", " is not a list"))
    memory = measure_memory(Trial(cfg, samples))
    has_teacher = not any(word in name for word in ("simsiam", "imp"))
    assert (memory.teacher > 0) is has_teacher
    assert memory.queue == (0 if not cfg.model.get("head") or "queue_len" not in cfg.model
                            else cfg.model.queue_len * 128 * 4 + 8)  # fmt: skip
    slope = memory.slope.max(0)
    assert slope[ACTIVATIONS] > slope[IMAGES] > 0


def test_a_batch_and_its_accumulation_make_up_the_step():
    assert split_batch(256, 300) == (256, 1)
    assert split_batch(256, 51) == (32, 8)
    assert split_batch(96, 40) == (32, 3)
    assert split_batch(254, 100) == (85, 3)  # 127 does not fit, and 2 are too few
    assert split_batch(31, 16) == (16, 2)
    assert split_batch(256, 1) == (1, 1) and split_batch(256, 0) == (0, 1)


def test_the_largest_batch_is_the_last_that_fits():
    cfg = small("gersp_r18_demo.py")
    memory = measure_memory(Trial(cfg, Samples(cfg)))
    for limit in (2.5e8, 1e9):
        batch = memory.largest_batch(limit)
        assert memory.total(batch) <= limit < memory.total(batch + 1)
    assert memory.largest_batch(memory.total(0) - 1) == 0


@pytest.mark.parametrize(
    "text, size",
    [("12GB", 12 * 10**9), ("11.5GiB", int(11.5 * 2**30)), ("8000m", 8 * 10**9), ("24 g", 24e9)],
)
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "12PB", "", "1.2.3GB", "-4GB"])
def test_no_amount_of_memory_is_one_line(text):
    with pytest.raises(UserError, match=f"--memory {text}: write an amount such as 12GB"):
        parse_bytes(text)


def test_times_of_larger_batches_lie_between_a_line_and_the_share():
    times = StepTimes({4: [1.0, 1.2], 8: [1.6, 1.8]})
    assert times.at(8) == (1.6, 1.8)
    assert times.at(16) == (pytest.approx(1.6 + 8 * 0.6 / 4), pytest.approx(3.6))
    assert StepTimes({8: [2.0, 3.0]}).at(16) == (4.0, 6.0)
    assert StepTimes({4: [2.0], 8: [1.0]}).at(16) == (1.0, 2.0)  # noise gives no negative slope
    assert times.describe() == "4 steps at batches of 4 and 8"
    assert str(Range(3000, 9000)) == "0.833 to 2.5 h" and str(Range(0.25, 0.5)) == "0.25 to 0.5 s"
    assert cores_needed(64, Range(0.5, 1.0), 0.01) == pytest.approx(1.28)


def test_steps_are_timed_up_to_the_batch_or_to_a_long_one():
    class Steps:
        def seconds(self, size, repeats):
            return [0.1 * size] * repeats

    assert measure_steps(Steps(), 12, 2) == {8: [0.8, 0.8], 12: [pytest.approx(1.2)] * 2}
    assert list(measure_steps(Steps(), 512, 1)) == [16, 32]  # 3.2 s are a long step


@pytest.fixture
def config(pair_data, tmp_path):
    """Write the demo config with a narrow network and the images of the tests."""
    cfg = demo_config(pair_data, tmp_path / "run")
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=12)
    path = tmp_path / "narrow.py"
    cfg.dump(path)
    return path


def train_by(command: str):
    """Train by a printed command."""
    words = shlex.split(command)
    assert words[:2] == ["gersp", "train"] and words[3] == "--cfg-options"
    forget_runs()
    runner = launch.build_runner(launch.load(words[2], words[4:]))
    runner.train()
    return runner


def test_the_printed_options_train_a_step(config, capsys):
    cfg, _ = read_config(config)
    memory = measure_memory(Trial(cfg, Samples(cfg), "bf16", checkpointing=True))
    words = [
        str(config),
        "--memory",
        f"{RESERVE + memory.total(7, accumulating=True):.0f}",
        "--steps",
        "1",
    ]
    words += ["--amp", "bf16", "--checkpointing", "--cfg-options", "randomness.seed=3"]
    plan.main(words)
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[-1].endswith(
        "--cfg-options randomness.seed=3 train_dataloader.batch_size=6 "
        "optim_wrapper.accumulative_counts=2 optim_wrapper.type=gersp_mm.BFloat16OptimWrapper "
        "model.backbone.with_cp=True"
    )
    rows = {line[:20].strip(): line[20:].split() for line in lines if line.startswith(("fp", "bf"))}
    assert list(rows) == ["fp32", "fp32, checkpointing", "bf16", "bf16, checkpointing"]
    assert rows["bf16, checkpointing"][:4] == ["7", "6", "x", "2"]
    activations = next(line for line in lines if line.startswith("activations (measured) "))
    assert activations.split()[-1] == f"{memory.parts(6, True)['activations'] / 2**20:.1f}"
    assert "time    an epoch of 2 steps: " in said and "time    the run of 1 epoch: " in said
    assert "samples a second of your images" in said and "by 2 steps at batches of 4 and 6" in said
    runner = train_by(lines[-1])
    assert runner.iter == 2 and runner.train_dataloader.batch_size == 6
    assert runner.model.queue_ptr.item() == 12
    assert runner.model.backbone.layer1[0].with_cp
    assert precision_of(runner.optim_wrapper) == "bf16"


def test_without_images_the_plan_says_what_it_leaves_open(tmp_path, capsys, monkeypatch):
    sizes = [*SIZES, "model.backbone.base_channels=8", "model.backbone.stem_channels=8",
             "model.neck.in_channels=64", "model.natural_head.in_channels=64"]  # fmt: skip
    plan.main(["gersp_r18_demo", "--gpus", "2", "--steps", "1", "--cfg-options", *sizes])
    said = capsys.readouterr().out
    assert "time    an epoch: unknown, because the images are not here" in said
    assert "input   not measured: data/demo/remote_sensing.txt is not a list" in said
    assert "time    what the GPUs send to each other is not counted" in said
    assert "communication (a model: gradients)" in said
    command = said.splitlines()[-1]
    assert command.startswith("bash tools/dist_train.sh gersp_r18_demo 2 --cfg-options ")
    assert command.endswith("train_dataloader.batch_size=16")


@pytest.mark.parametrize(
    "words, message",
    [
        (["no_such_config"], "no config no_such_config"),
        (["gersp_r50", "--memory", "much"], "--memory much: write an amount such as 12GB"),
        (["gersp_r50", "--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["gersp_vit-small", "--checkpointing"], "VisionTransformer has no argument with_cp"),
        (["downstream/eurosat/knn_r50_eurosat"], "trains nothing"),
        (["CONFIG", "--memory", "1GB"], "hold no batch of 2, which needs .* MiB .fp32.. Raise"),
    ],
)
def test_bad_input_is_one_line(config, capsys, words, message):
    words = [str(config) if word == "CONFIG" else word for word in words]
    with pytest.raises(SystemExit) as stop:
        plan.main(words)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
