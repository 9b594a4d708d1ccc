"""What every process of the distributed tests runs; test_dist.py looks at what it writes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather, get_rank
from mmengine.hooks import Hook
from torch.nn import functional

from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.engine.launch import join_cpu_processes
from gersp_mm.evaluation.features import extract_features
from gersp_mm.models import key_exchange
from gersp_mm.models.key_norm import deal
from gersp_mm.utils.model import unwrap
from tests.support.models import batch, tiny_gersp, total
from tests.support.runs import build, demo_config, load, resumed
from tests.support.smoke import CONFIGS, narrow, smoke_twin

GLOBAL_BATCH = 4
ITERATIONS = 4
BASELINES = sorted(path.stem for path in (CONFIGS / "pretrain/baselines").glob("*_demo.py"))


class StepRecorder(Hook):
    """Keeps every iteration's losses, and which parameters got a gradient."""

    def before_train(self, runner):
        self.losses: list[dict[str, float]] = []
        self.without_gradient: set[str] = set()
        step = runner.optim_wrapper.optimizer.step

        def noted_step(*args, **kwargs):
            parameters = unwrap(runner.model).named_parameters()
            trainable = {name: p for name, p in parameters if p.requires_grad}
            self.without_gradient |= {n for n, p in trainable.items() if p.grad is None}
            return step(*args, **kwargs)

        runner.optim_wrapper.optimizer.step = noted_step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value.detach()) for name, value in outputs.items()})


class GradientsAtEpochsEnd(Hook):
    """Keeps the gradients that are still accumulating after an epoch."""

    def after_train_epoch(self, runner):
        named = unwrap(runner.model).named_parameters()
        self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}


def paired_config(data: Path, work_dir: Path, world_size: int) -> Config:
    """Four steps of four pairs in all, however many processes share them."""
    cfg = demo_config(data, work_dir, ITERATIONS)
    cfg.train_dataloader.batch_size = GLOBAL_BATCH // world_size
    cfg.model.queue_len = 12
    if world_size > 1:
        cfg.launcher = "pytorch"
        cfg.model_wrapper_cfg = dict(type="gersp_mm.CPUDistributedDataParallel")
    return cfg


def without_batch_norm(cfg: Config) -> Config:
    cfg.model.backbone.norm_cfg = dict(type="GN", num_groups=4)
    return cfg


def split_batches(cfg: Config) -> Config:
    """Two groups of two images of each kind in every process."""
    cfg.model.update(key_bn="split", split_size=2)
    cfg.train_dataloader.batch_size = 4
    return cfg


def run(cfg: Config, *hooks: Hook) -> dict[str, Any]:
    """Train and return what the run ended with."""
    recorder = StepRecorder()
    runner = build(cfg, recorder, *hooks)
    runner.train()
    model = unwrap(runner.model)
    return dict(
        parameters={name: p.detach().clone() for name, p in model.named_parameters()},
        queue=getattr(model, "queue", None),
        queue_ptr=getattr(model, "queue_ptr", None),
        losses=recorder.losses,
        without_gradient=recorder.without_gradient,
    )


def baseline(name: str, data: Path, work_dir: Path) -> dict[str, Any]:
    """Two steps of a narrow twin of a baseline's config."""
    cfg = smoke_twin(f"baselines/{name}.py", data, work_dir)
    narrow(cfg.model)
    cfg.log_level = "ERROR"
    cfg.train_dataloader.batch_size = 2
    cfg.launcher = "pytorch"
    cfg.model_wrapper_cfg = dict(type="gersp_mm.CPUDistributedDataParallel")
    return run(cfg)


def shuffled_keys(data: Path, work_dir: Path) -> dict[str, Any]:
    """Keys of numbered images with and without shuffling, and which images the teacher saw."""
    model = unwrap(build(paired_config(data, work_dir, 2)).model)
    model.init_weights()
    rank = get_rank()
    numbers = torch.arange(8) + 100 * rank
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    images[:, 0, 0, 0] = numbers
    seen = []
    model.teacher.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][:, 0, 0, 0].long())
    )
    model.train()
    keys = {}
    for key_bn in ("shuffle", "none"):
        model.key_bn = key_bn
        model.teacher.eval()  # running statistics: a key depends on its own image alone
        keys[key_bn] = model._teacher_keys(images)
    model.teacher.train()
    for key_bn in ("shuffle", "none"):
        model.key_bn = key_bn
        keys[f"{key_bn}_batch_statistics"] = model._teacher_keys(images)
    return dict(numbers=numbers, seen=seen, keys=keys)


def one_group(n: int = 16) -> dict[str, Any]:
    """A step of the process that has every second image, whose keys are dealt as in `split`."""
    rank, number = get_rank(), 2
    torch.manual_seed(0)
    model = tiny_gersp(key_bn="none").double()
    arguments = batch(rs=n, natural=n, dtype=torch.float64)
    torch.manual_seed(1)
    order = deal(n, number)

    def dealt_keys(images: torch.Tensor) -> torch.Tensor:
        own = order[rank::number]
        with torch.no_grad():
            keys = functional.normalize(model.teacher(arguments["inputs"]["rs_key"][own])[0], dim=1)
        gathered = torch.cat(all_gather(keys)).view(number, n // number, -1)
        return gathered.transpose(0, 1).flatten(0, 1)[order.argsort()][rank::number]

    model._teacher_keys = dealt_keys
    inputs = {name: images[rank::number] for name, images in arguments["inputs"].items()}
    losses = model.loss(inputs, arguments["data_samples"][rank::number])
    total(losses).backward()
    return dict(
        losses={name: value.detach() for name, value in losses.items()},
        gradients={name: p.grad for name, p in model.named_parameters() if p.requires_grad},
        buffers=dict(model.named_buffers()),
    )


def exchanged(n: int, precision: str) -> dict[str, Any]:
    """Numbered images after one exchange, and what comes back for them."""
    images = torch.zeros(n, 3, 4, 4)
    images[:, 0, 0, 0] = torch.arange(n) + 100 * get_rank()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        received, order = key_exchange.send_away(images)
        keys = received[:, :, 0, 0].float() * 2
        returned = key_exchange.bring_back(keys, order)
        gathered = key_exchange.gather_keys(returned)
    return dict(
        numbers=images[:, 0, 0, 0],
        received=received[:, 0, 0, 0].float(),
        dtypes=(received.dtype, gathered.dtype),
        returned=returned[:, 0],
        gathered=gathered[:, 0].float(),
    )


class Die(Exception):
    """Takes the place of a kill: nothing of the run is used afterwards but its files."""


class DieAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise Die


def killed_and_resumed(counts: int, data: Path, work_dir: Path) -> dict[str, Any]:
    """Three epochs of four iterations that accumulate, saved every five iterations.

    Returns:
        The last checkpoint of a run that was never interrupted, that of one which died in
        iteration 11 and was resumed, and the name of the file that it was resumed from.
    """

    def config(name: str) -> Config:
        cfg = paired_config(data, work_dir / name, 2)
        cfg.train_cfg.max_epochs = 3
        cfg.optim_wrapper.accumulative_counts = counts
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=5)
        return cfg

    build(config("whole")).train()
    with contextlib.suppress(Die):
        build(config("killed"), DieAt(11)).train()
    torch.distributed.barrier()
    newest = latest_checkpoint(work_dir / "killed")
    assert newest is not None
    build(resumed(config("killed"), newest)).train()
    torch.distributed.barrier()
    ends = {name: load(work_dir / name / "iter_12.pth") for name in ("whole", "killed")}
    parts = ("state_dict", "optimizer", "param_schedulers")
    states = {name: {part: end[part] for part in parts} for name, end in ends.items()}
    return dict(states, resumed_from=Path(newest).name)


def failing_evaluation() -> str:
    """Extract features where the second rank's network fails; return what this rank is told."""

    class Backbone(torch.nn.Module):
        def forward(self, images):
            if get_rank() == 1:
                raise ValueError("no such stage")
            return images.mean((2, 3))

    images = [(torch.zeros(3, 4, 4), 0)] * 4
    try:
        extract_features(Backbone(), images, progress=None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(data: Path, out: Path) -> None:
    join_cpu_processes("pytorch")
    results: dict[str, Any] = {}

    def case(name: str, change: Any = None) -> None:
        cfg = paired_config(data, out / name, 2)
        if change is not None:
            change(cfg)
        results[name] = run(cfg)

    case("whole_method")
    case("no_batch_norm", without_batch_norm)
    case("contrastive_only", lambda cfg: cfg.model.update(alpha=0))
    case("split", split_batches)
    case("natural_only", lambda cfg: cfg.model.update(neck=None, head=None))
    case("other_seed_a_rank", lambda cfg: cfg.update(randomness=dict(seed=0, diff_rank_seed=True)))

    cfg = paired_config(data, out / "accumulating", 2)
    cfg.optim_wrapper.accumulative_counts = 3
    cfg.train_cfg.max_epochs = 2
    hook = GradientsAtEpochsEnd()
    hook.priority = "LOWEST"
    runner = build(cfg, hook)
    stop_after_first_epoch(runner)
    runner.train()
    results["accumulating"] = dict(gradients=hook.gradients)

    for counts in (2, 3):
        results["killed", counts] = killed_and_resumed(counts, data, out / f"killed_{counts}")
    for name in BASELINES:
        results[name] = baseline(name, data, out / name)
    results["shuffle"] = shuffled_keys(data, out / "shuffle")
    results["one group"] = one_group()
    results["exchange"] = {
        (n, precision): exchanged(n, precision) for n in (1, 5, 8) for precision in ("fp32", "bf16")
    }
    results["failing evaluation"] = failing_evaluation()
    torch.save(results, out / f"rank{get_rank()}.pt")
    torch.distributed.destroy_process_group()


def stop_after_first_epoch(runner: Any) -> None:
    class Stop(Hook):
        def after_train_epoch(self, runner):
            runner.train_loop.stop_training = True

    runner.register_hook(Stop(), priority="LOWEST")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
