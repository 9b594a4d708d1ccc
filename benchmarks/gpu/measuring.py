"""What the parts share: the register of measurements, their results, and the project's models."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bundle
import step as speed_step
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from timing import interleave, quiet, spread

from gersp_mm.engine import launch
from gersp_mm.utils.provenance import Provenance

VIEWS = ("rs_query", "rs_key", "natural")
PREFETCHED = 3  # batches of a worker that may be in memory at a time: two, and one on its way


# ------------------------------------------------------------------------------------- the register
class Measurement(NamedTuple):
    """A function that measures.

    Attributes:
        part: Number of its part.
        name: Name of the function.
        limit: Largest duration in seconds.
        function: It gets a :class:`Context`.
    """

    part: int
    name: str
    limit: float
    function: Callable[[Context], None]


MEASUREMENTS: list[Measurement] = []


def measurement(part: int, limit: float) -> Callable[[Any], Any]:
    """Register a function as a measurement of a part, with its time limit in seconds."""

    def register(function: Callable[[Context], None]) -> Callable[[Context], None]:
        MEASUREMENTS.append(Measurement(part, function.__name__, limit, function))
        return function

    return register


class Context:
    """What every measurement gets: the device, images, folders, the time left, and the results.

    Args:
        results: Lines of results; their origin is filled in.
        bundle_folder: The bundle with the images.
        scratch: Folder for files that nobody keeps.
        rehearsal: Whether to run on the CPU at a tiny size.

    Attributes:
        small: Whether this is a rehearsal.
        cuda: Whether the device is a GPU.
        device: ``'cuda'`` or ``'cpu'``.
        images: Folder of the unpacked images.
        out: Folder of the results.
        end: When the measurement has to have ended, as ``time.time()``.
    """

    def __init__(
        self, results: Any, bundle_folder: Path, scratch: Path, rehearsal: bool = False
    ) -> None:
        self.results, self.scratch, self.small = results, scratch, rehearsal
        self.out = results.path.parent
        self.cuda = not rehearsal
        self.device = "cuda" if self.cuda else "cpu"
        if self.cuda and not torch.cuda.is_available():
            raise SystemExit("error: torch finds no GPU; --rehearse runs on a CPU")
        if rehearsal:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        quiet()
        init_default_scope("mmpretrain")
        self.images = bundle.unpack_images(bundle_folder, scratch / "images")
        results.origin = dict(Provenance.now())
        packed = bundle_folder / "commit"
        if results.origin["commit"] is None and packed.is_file():  # no checkout, or one without git
            results.origin["commit"] = f"{packed.read_text().strip()} (of the bundle)"
        self.entry = Measurement(0, "", 0.0, lambda ctx: None)
        self.end = 0.0
        self.runs = itertools.count()

    def begin(self, entry: Measurement, end: float) -> None:
        """Begin a measurement that has to end at a time."""
        self.entry, self.end = entry, end

    def left(self) -> float:
        """Return the seconds left to this measurement."""
        return self.end - time.time()

    def put(self, status: str = "ok", **values: Any) -> None:
        """Add a line of results."""
        self.results.add(self.entry.part, self.entry.name, status, **values)

    def check(self, what: str, values: Mapping[str, float], bounds: Mapping[str, float]) -> None:
        """Add a line that fails where a value exceeds its bound, or is NaN."""
        bad = {name for name, bound in bounds.items() if not values[name] <= bound}
        self.put("fail" if bad else "ok", what=what, values=values, bounds=bounds)

    def bar(self, what: str, value: float, least: float) -> None:
        """Add a line that fails below a bar; a rehearsal only notes the value."""
        self.put("ok" if self.small or value >= least else "fail", what=what, value=value)

    def run(self, function: Callable[[Context], None]) -> None:
        """Run a measurement and add a line with its seconds, or with its error."""
        begin = time.time()
        try:
            function(self)
            status, values = "done", {}
        except Exception as error:
            trace = traceback.format_exc()
            print(trace, flush=True)
            status = "error"
            values = dict(error=f"{type(error).__name__}: {error}"[:1500], trace=trace[-3000:])
        self.put(status, seconds=round(time.time() - begin, 2), **values)

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()


def reset(ctx: Context) -> None:
    """Give every measurement the same start: no TF32, default modes, empty caches."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)
    forget_memory(ctx)
    if ctx.cuda:
        torch.cuda.set_sync_debug_mode("default")


def forget_memory(ctx: Context) -> None:
    """Free what nobody holds and start counting the peak anew."""
    gc.collect()
    if ctx.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def broken(ctx: Context) -> bool:
    """Tell whether the CUDA context does not work any more."""
    try:
        ctx.sync()
        return float(torch.ones(1, device=ctx.device)) != 1
    except Exception:
        return True


# ------------------------------------------------------------------------------------------- models
def config(
    ctx: Context, arch: int = 18, queue: int = 4096, amp: str | None = None, **model: Any
) -> Config:
    """Return ``configs/pretrain/gersp_r50.py`` with another ResNet; narrow in a rehearsal."""
    cfg = speed_step.load_config(arch, queue, amp)
    if ctx.small:
        channels = 64 if arch < 50 else 256
        cfg.model.backbone.update(stem_channels=8, base_channels=8)
        cfg.model.neck.update(in_channels=channels, hid_channels=64)
        cfg.model.natural_head.in_channels = channels
    cfg.model.update(model)
    return cfg


def large(ctx: Context, amp: str | None = "bf16", **model: Any) -> Config:
    """Return the config that speed and memory are measured with: ResNet-50, the whole queue."""
    return config(ctx, 18 if ctx.small else 50, 512 if ctx.small else 65536, amp, **model)


def build(cfg: Config, device: str, dtype: torch.dtype | None = None) -> speed_step.Ours:
    """Build model and optimizer; the same weights on every device, and no BatchNorm at zero."""
    torch.manual_seed(0)
    ours = speed_step.Ours(cfg, "cpu")
    generator = torch.Generator().manual_seed(1)
    for module in ours.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):
                torch.nn.init.uniform_(tensor, low, high, generator=generator)
    ours.model.teacher.copy_from(ours.model.backbone, ours.model.neck)
    state = ours.model.state_dict()
    torch.manual_seed(0)
    there = speed_step.Ours(cfg, device)  # Its optimizer is the one for the device.
    there.model.load_state_dict(state)
    if dtype is not None:
        there.model.to(dtype)
    return there


def random_batches(
    pairs: int, size: int, count: int, device: str, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[dict[str, torch.Tensor], list[DataSample]]]:
    """Yield batches of normalised random images with samples; the same ones on every device."""
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        shape = (3, pairs, 3, size, size)
        images = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        label = torch.randint(1000, (pairs,), generator=generator).to(device)
        samples = [DataSample().set_gt_label(one) for one in label.split(1)]
        yield dict(zip(VIEWS, images)), samples


class Step(NamedTuple):
    """The results of one training step: float64 losses on the CPU, and gradients."""

    losses: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]


def take_step(
    ours: speed_step.Ours, images: dict[str, torch.Tensor], samples: Sequence[DataSample]
) -> Step:
    """Take one training step with its teacher update."""
    wrapper = ours.optim_wrapper
    with wrapper.optim_context(ours.model):
        losses = ours.model(images, samples, mode="loss")
    total, _ = ours.model.parse_losses(losses)
    wrapper.backward(wrapper.scale_loss(total))
    gradients = {
        name: parameter.grad.detach().clone()
        for name, parameter in ours.model.named_parameters()
        if parameter.grad is not None
    }
    wrapper.step()
    wrapper.zero_grad()
    ours.model.update_teacher()
    return Step({k: v.detach().double().cpu() for k, v in losses.items()}, gradients)


def teacher_of(ours: speed_step.Ours) -> dict[str, torch.Tensor]:
    """Return a copy of the teacher's parameters."""
    return {n: p.detach().clone() for n, p in ours.model.teacher.named_parameters()}


# ------------------------------------------------------------------------------------- comparisons
def distance(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    start: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """Return ‖found - expected‖ / ‖expected - start‖ over all tensors of ``expected``."""
    top = bottom = 0.0
    for name, value in expected.items():
        reference = value.double().cpu()
        top += float((found[name].double().cpu() - reference).square().sum())
        base = 0.0 if start is None else start[name].double().cpu()
        bottom += float((reference - base).square().sum())
    return (top / max(bottom, 1e-300)) ** 0.5


def loss_error(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the largest relative difference of losses and similarities; accuracies may jump."""
    names = [name for name in expected if not name.startswith("acc")]
    return max(float((found[n] - expected[n]).abs() / expected[n].abs().clamp(min=1e-6))
               for n in names)  # fmt: skip


def levels(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Return how two uint8 batches differ: shares of the values, and the largest difference."""
    difference = (found.cpu().to(torch.int16) - expected.cpu().to(torch.int16)).abs()
    return dict(
        differing=float((difference > 0).double().mean()),
        above_1=float((difference > 1).double().mean()),
        above_2=float((difference > 2).double().mean()),
        largest=float(difference.max()),
    )


# ------------------------------------------------------------------------------------ data and runs
def loader_config(
    ctx: Context,
    batch: int,
    workers: int,
    size: int,
    pairs: int,
    folder: str = "rs256",
    natural: str = "natural",
    colour: str = "device",
    **parts: Any,
) -> dict[str, Any]:
    """Return the config of a loader of packed images.

    Args:
        ctx: The context.
        batch: Pairs per batch.
        workers: Number of worker processes, or fewer where shared memory is too small.
        size: Side of the views in pixels.
        pairs: Pairs of an epoch; the images are listed again and again.
        folder: Folder of the remote-sensing images.
        natural: Folder of the natural images, one sub-folder per class.
        colour: Where the colour work is done, see :class:`gersp_mm.ViewAugmentation`.
        **parts: Further arguments of the augmentation.
    """
    view = dict(type="gersp_mm.ViewAugmentation", size=size, colour=colour, **parts)

    def source(kind: str, name: str, labelled: bool) -> dict[str, Any]:
        paths = sorted((ctx.images / name).rglob("*.jpg"))
        if not paths:
            raise FileNotFoundError(f"the bundle has no images in {name}/")
        classes = sorted({path.parent.name for path in paths})
        lines = [str(path.relative_to(ctx.images)) for path in paths]
        if labelled:
            lines = [f"{a} {classes.index(p.parent.name)}" for a, p in zip(lines, paths)]
        file = ctx.scratch / f"{name}_{pairs}.txt"
        file.write_text("\n".join((lines * -(-pairs // len(lines)))[:pairs]) + "\n")
        return dict(type=f"gersp_mm.{kind}", data_root=str(ctx.images), ann_file=str(file))

    return dict(
        batch_size=batch,
        num_workers=(workers := workers_that_fit(workers, batch, size)),
        persistent_workers=workers > 0,
        pin_memory=ctx.cuda,
        drop_last=True,
        sampler=dict(type="gersp_mm.PairedSampler", seed=0, epoch_length="remote_sensing"),
        collate_fn=dict(type="gersp_mm.collate_pairs"),
        dataset=dict(
            type="gersp_mm.PairedDataset",
            remote_sensing=source("MillionAID", folder, labelled=False),
            natural=source("LabelledImages", natural, labelled=True),
            rs_pipeline=[view],
            natural_pipeline=[view],
        ),
    )


def workers_that_fit(workers: int, batch: int, size: int) -> int:
    """Return how many workers find room in /dev/shm for the batches that they send ahead.

    A container often has 64 MB there; a worker that needs more is killed by the system.

    Args:
        workers: Number that is wanted.
        batch: Pairs per batch.
        size: Side of the views in pixels.
    """
    try:
        shared = os.statvfs("/dev/shm")
    except OSError:
        return workers
    each = PREFETCHED * batch * len(VIEWS) * 3 * size**2
    return min(workers, int(0.9 * shared.f_bavail * shared.f_frsize) // each)


def make_loader(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """Build a data loader; see :func:`loader_config` for the arguments."""
    return Runner.build_dataloader(loader_config(ctx, *args, **kwargs), seed=0)


def load_batch(ctx: Context, pairs: int, size: int, **kwargs: Any) -> dict[str, Any]:
    """Return one collated batch of packed images, whose colours are left to the device."""
    return next(iter(make_loader(ctx, pairs, 0, size, pairs, **kwargs)))


def fresh(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with new samples, since the preprocessor writes labels into them."""
    return dict(batch, data_samples=[DataSample() for _ in batch["data_samples"]])


def pinned(ctx: Context, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in pinned memory, as the loader would give it on a GPU."""
    if not ctx.cuda:
        return batch
    inputs = {name: images.pin_memory() for name, images in batch["inputs"].items()}
    return dict(batch, inputs=inputs, gt_label=batch["gt_label"].pin_memory())


def make_runner(
    ctx: Context,
    cfg: Config,
    loader: dict[str, Any],
    epochs: int = 1,
    work_dir: Path | None = None,
    resume: Path | None = None,
) -> Runner:
    """Build a run of a config on packed images; with a work directory, it saves every epoch."""
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader = loader
    cfg.train_cfg.max_epochs = epochs
    cosine = dict(type="CosineAnnealingLR", T_max=max(epochs, 2), eta_min=0.001)
    cfg.param_scheduler = [dict(cosine, convert_to_iter_based=True)]
    if work_dir is None:
        hook = dict(type="gersp_mm.AtomicCheckpointHook", interval=-1, save_last=False)
        cfg.default_hooks.checkpoint = hook
        work_dir = ctx.scratch / f"run_{os.getpid()}_{next(ctx.runs)}"
    cfg.log_level, cfg.launcher, cfg.work_dir = "WARNING", "none", str(work_dir)
    # MMEngine keeps the state of runs by their names.
    cfg.experiment_name = f"{ctx.entry.name}_{os.getpid()}_{next(ctx.runs)}"
    cfg.resume, cfg.load_from = resume is not None, resume and str(resume)
    launch.adapt(cfg)
    launch.start()
    Runner._log_env = lambda self, env_cfg: None  # It asks compilers.
    return launch.build_runner(cfg)


def train(runner: Runner) -> None:
    """Train, and end the loader's workers at once instead of leaving them to the collector."""
    try:
        runner.train()
    finally:
        loader = runner.train_loop.dataloader
        iterator, loader._iterator = loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()


# ------------------------------------------------------------------------------------------ timing
def seconds_per_call(
    ctx: Context, function: Callable[[], Any], seconds: float, calls: int = 5
) -> dict[str, float]:
    """Time groups of calls for some seconds, within the limit of the measurement.

    Args:
        ctx: The context.
        function: What is timed, without waiting for the device.
        seconds: Duration of the timing.
        calls: Calls of a group, between which the host does not wait.

    Returns:
        Quartiles of the seconds per call, as :func:`timing.spread` names them.
    """
    if ctx.small:
        calls, seconds = 1, min(seconds, 0.1)
    for _ in range(1 if ctx.small else 3):
        function()
    groups: list[float] = []
    end = time.time() + min(seconds, ctx.left() - 2)
    while not groups or (time.time() < end and len(groups) < 50):
        groups += interleave({"": function}, 1, 0, ctx.device, calls)[""]
    return spread(groups)
