"""What processes exchange in a step, measured with gloo on CPUs, and a model of many GPUs.

Measured: seconds a step of one and of two processes with the same batch and number of threads
each, and every byte that a process hands to a collective, by what it is for. Modelled: the step on
8, 64 and 512 GPUs, from those bytes and the assumptions given as arguments. The model is a model:
no run on that many GPUs stands behind it.

Examples:
  python benchmarks/speed/scaling.py
  python benchmarks/speed/scaling.py --arch 18 --size 64 --batch 16 --steps 10 --record
  python benchmarks/speed/scaling.py --model-batch 256 --model-step-ms 400
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from _common import add_arguments, medians, paired_ratio, print_ratios, print_table, record
from mmengine.dist import get_rank, get_world_size
from mmengine.model import MMDistributedDataParallel
from torch import distributed as dist
from torch import multiprocessing
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

GRADIENTS, IMAGES, KEYS = "gradients", "shuffled images", "keys"
BUFFERS, OTHER = "buffers", "other"
KINDS = (GRADIENTS, IMAGES, KEYS, BUFFERS, OTHER)
PER_PAIR = (IMAGES, KEYS)  # grow with the batch
WORLDS = (1, 2)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, default=50, help="depth of the ResNet (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="pairs a process (%(default)s)")
    parser.add_argument("--queue", type=int, default=65536, help="length (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a round (%(default)s)")
    add_arguments(parser, rounds=5)
    model = parser.add_argument_group("assumptions of the model")
    model.add_argument("--model-gpus", type=int, nargs="+", default=[8, 64, 512])
    model.add_argument("--model-batch", type=int, default=32, help="pairs a GPU (%(default)s)")
    model.add_argument(
        "--model-step-ms", type=float, default=60.0, help="step of one GPU alone (%(default)s)"
    )
    model.add_argument(
        "--backward-share",
        type=float,
        default=0.5,
        help="share of the step that gradients can travel under (%(default)s)",
    )
    model.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    model.add_argument(
        "--gb-per-s",
        type=float,
        nargs=2,
        default=[200.0, 20.0],
        metavar=("INSIDE", "BETWEEN"),
        help="bandwidth of a GPU inside a node and between nodes (%(default)s)",
    )
    model.add_argument(
        "--latency-us",
        type=float,
        nargs=2,
        default=[10.0, 20.0],
        metavar=("INSIDE", "BETWEEN"),
        help="of one hop (%(default)s)",
    )
    return parser.parse_args(argv)


# ----------------------------------------------------------------------------------------- counting
class Traffic:
    """Bytes that this process contributes to collectives, and their number, by kind."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.collective: dict[str, str] = {}
        self._averaging = False

    def add(self, kind: str, tensor: torch.Tensor, collective: str) -> None:
        """Count one tensor."""
        self.collective[kind] = collective
        self.bytes[kind] += tensor.numel() * tensor.element_size()
        self.calls[kind] += 1

    def gradient_hook(self, _: Any, bucket):  # DDP refuses annotations that are strings
        """Average a bucket of gradients as DDP does, and know them for what they are."""
        self._averaging = True
        try:
            return allreduce_hook(None, bucket)
        finally:
            self._averaging = False

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what goes through ``torch.distributed`` meanwhile."""
        originals = {name: getattr(dist, name) for name in _INPUTS}

        def counted(name: str) -> Any:
            def collective(*args: Any, **kwargs: Any) -> Any:
                for tensor in _INPUTS[name](*args, **kwargs):
                    kind = GRADIENTS if self._averaging else _kind(name, tensor)
                    self.add(kind, tensor, name)
                return originals[name](*args, **kwargs)

            return collective

        for name in originals:
            setattr(dist, name, counted(name))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)


# What a process puts in, of every collective that the package, its libraries or DDP may call.
_INPUTS: dict[str, Any] = {
    "all_gather": lambda output, tensor, *_, **__: [tensor],
    "all_gather_into_tensor": lambda output, tensor, *_, **__: [tensor],
    "all_reduce": lambda tensor, *_, **__: [tensor],
    "all_to_all": lambda outputs, inputs, *_, **__: inputs,
    "all_to_all_single": lambda output, tensor, *_, **__: [tensor],
    "broadcast": lambda tensor, *_, **__: [tensor],
    "reduce_scatter_tensor": lambda output, tensor, *_, **__: [tensor],
    "_broadcast_coalesced": lambda group, tensors, *_, **__: tensors,
}


def _kind(collective: str, tensor: torch.Tensor) -> str:
    """Tell what a tensor is from how it travels: images have four dimensions, keys two."""
    if collective == "_broadcast_coalesced":
        return BUFFERS
    if tensor.is_floating_point() and tensor.ndim in (2, 4):
        return IMAGES if tensor.ndim == 4 else KEYS
    return OTHER


# ---------------------------------------------------------------------------------------- measuring
def run_process(rank: int, world: int, port: int, folder: str, options: dict[str, Any]) -> None:
    """Take steps as one of ``world`` processes and leave seconds and bytes in ``folder``."""
    from step import Ours, load_config, make_batch

    from gersp_mm.engine.launch import join_cpu_processes

    torch.set_num_threads(options["threads"])
    _prepare(rank)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world)
    )
    if world > 1:
        join_cpu_processes("pytorch")
    cfg = load_config(options["arch"], options["queue"])
    torch.manual_seed(0)
    ours = Ours(cfg)
    traffic = Traffic()
    model: Any = ours.model
    if world > 1:  # as gersp_mm.engine.launch wraps it
        model = MMDistributedDataParallel(ours.model, device_ids=None, broadcast_buffers=False)
        model.register_comm_hook(None, traffic.gradient_hook)
    batch = make_batch(options["batch"], options["size"], cfg.model.natural_head.num_classes)
    inputs = {name: batch[name] for name in ("rs_query", "rs_key", "natural")}

    def take_step() -> None:
        with ours.optim_wrapper.optim_context(model):
            losses = model(inputs, batch["data_samples"], mode="loss")
        ours.optim_wrapper.update_params(ours.model.parse_losses(losses)[0])
        ours.model.update_teacher()

    with traffic.counting():
        for _ in range(options["warmup"]):
            take_step()
        traffic.bytes.clear()
        traffic.calls.clear()
        begin = time.perf_counter()
        for _ in range(options["steps"]):
            take_step()
        seconds = (time.perf_counter() - begin) / options["steps"]
    assert get_world_size() == world and get_rank() == rank
    result = dict(
        seconds=seconds,
        bytes={kind: traffic.bytes[kind] / options["steps"] for kind in KINDS},
        calls={kind: traffic.calls[kind] / options["steps"] for kind in KINDS},
        collective=traffic.collective,
    )
    torch.save(result, Path(folder, f"{rank}.pt"))
    if world > 1:
        dist.destroy_process_group()


def _prepare(rank: int) -> None:
    import warnings

    from _common import quiet

    quiet()
    if rank:
        warnings.simplefilter("ignore")  # said once is enough


def measure(world: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return what rank 0 of ``world`` processes measured."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run_process, (world, port, folder, options), nprocs=world)
        return torch.load(Path(folder, "0.pt"), weights_only=True)


# ---------------------------------------------------------------------------------------- modelling
def modelled(gpus: int, args: argparse.Namespace, measured: Mapping[str, Any]) -> dict[str, float]:
    """Return milliseconds of a step on ``gpus`` GPUs by the alpha-beta model.

    A collective takes its hops times the latency plus the bytes that pass a GPU's slowest link
    divided by that link's bandwidth. Of S bytes a GPU puts in, 2·S·(n - 1)/n pass in an all-reduce,
    S·(n - 1) in an all-gather, S·(n - 1)/n in an all-to-all and S in a broadcast; hops are those of
    a tree, log2(n), and twice that for an all-reduce. Gradients travel under the backward pass as
    far as that lasts; nothing else overlaps.

    Args:
        gpus: n, one process each.
        args: the assumptions.
        measured: bytes, calls and collective by kind, of :func:`run_process`.
    """
    between = gpus > args.gpus_per_node
    bandwidth = args.gb_per_s[between] * 1e9
    latency = args.latency_us[between] * 1e-6
    hops = math.ceil(math.log2(gpus))
    times = dict.fromkeys(KINDS, 0.0)
    for kind, collective in measured["collective"].items():
        size = traffic_per_gpu(args, measured["bytes"])[kind]
        everybody = gpus - 1 if "gather" in collective else (gpus - 1) / gpus
        passed = size * (1 if "broadcast" in collective else everybody)
        both_ways = 2 if collective == "all_reduce" else 1
        travel = passed / bandwidth + measured["calls"][kind] * hops * latency
        times[kind] = 1e3 * both_ways * travel
    hidden = min(times[GRADIENTS], args.backward_share * args.model_step_ms)
    exposed = sum(times.values()) - hidden
    total = args.model_step_ms + exposed
    return {
        "step ms": total,
        "exposed ms": exposed,
        "efficiency": args.model_step_ms / total,
        **{f"{kind} ms": value for kind, value in times.items() if value},
    }


def traffic_per_gpu(args: argparse.Namespace, measured: Mapping[str, float]) -> dict[str, float]:
    """Scale measured bytes from ``--batch`` pairs and two processes to the model's."""
    scale = args.model_batch / args.batch
    return {kind: v * (scale if kind in PER_PAIR else 1) for kind, v in measured.items()}


# --------------------------------------------------------------------------------------------- main
def main(args: argparse.Namespace) -> None:
    options = {name: getattr(args, name) for name in ("arch", "size", "batch", "queue", "steps")}
    options.update(threads=args.threads or 1, warmup=args.warmup)
    names = {world: f"{world} process{'es' * (world > 1)}" for world in WORLDS}
    times: dict[str, list[float]] = {name: [] for name in names.values()}
    for number in range(args.rounds):
        for world in WORLDS if number % 2 == 0 else WORLDS[::-1]:
            result = measure(world, options)
            times[names[world]].append(result["seconds"])
            if world > 1:
                traffic = result
    title = f"ResNet-{args.arch}, {args.size} px, {args.batch} pairs a process"
    title += f", {options['threads']} threads each"
    rows = [[name, *spread.values()] for name, spread in medians(times).items()]
    header = ["", "min", "q1", "median", "q3", "max"]
    print_table(f"Measured: {title} [ms a step]", header, rows)
    ratios = {f"{names[1]} / {names[2]} (efficiency)": paired_ratio(times, names[1], names[2])}
    print_ratios("Ratio, round by round", ratios)
    columns = [traffic["bytes"], traffic["calls"], traffic["collective"]]
    rows = [[kind, *(column.get(kind, "") for column in columns)] for kind in KINDS]
    print_table(
        "Measured: what each of two processes puts into collectives in a step",
        ["", "bytes", "calls", "collective"],
        [[k, f"{n:,.0f}", f"{calls:g}", how] for k, n, calls, how in rows],
    )

    models = {gpus: modelled(gpus, args, traffic) for gpus in args.model_gpus}
    columns = list(models[args.model_gpus[-1]])
    print_table(
        f"MODEL, NOT MEASUREMENT: {args.model_batch} pairs a GPU, {args.model_step_ms:g} ms alone, "
        f"{args.backward_share:.0%} of it to hide gradients under,\n{args.gpus_per_node} GPUs a "
        f"node, {args.gb_per_s} GB/s a GPU and {args.latency_us} us a hop inside and between nodes",
        ["GPUs", *columns],
        [[gpus, *(model.get(name, 0.0) for name in columns)] for gpus, model in models.items()],
    )
    record(
        args,
        f"scaling: {title}",
        dict(
            step_ms=medians(times),
            bytes_a_step=traffic["bytes"],
            calls_a_step=traffic["calls"],
            model_not_measurement=models,
        ),
        ratios,
    )


if __name__ == "__main__":
    main(parse_args())
