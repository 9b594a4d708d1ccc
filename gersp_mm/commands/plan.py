"""Say what fits into memory and how long a pre-training takes, from a few steps of its config.

The model and small batches of the images are run on the GPU, or on the CPU where there is none.
Where the images are not here, random ones stand in, and what depends on them is left open. The
memory is that of one process; --memory plans for another machine than this one.

Examples:
  gersp plan configs/pretrain/gersp_r50.py --memory 12GB
  gersp plan configs/pretrain/gersp_r50.py --memory 24GB --gpus 4 --amp bf16
  gersp plan configs/pretrain/gersp_r50.py --memory 8GB --amp bf16 --checkpointing
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from gersp_mm.commands.options import CfgOptions, run_tool
from gersp_mm.utils.errors import UserError, counted

if TYPE_CHECKING:
    from gersp_mm.planning.memory import Memory
    from gersp_mm.planning.time import StepTimes
    from gersp_mm.planning.trial import Samples

MIB = 2**20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="config file of a pre-training")
    add("--memory", help="plan for this much memory a GPU: 12GB, 11.5GiB [of the GPU or machine]")
    add("--gpus", type=int, default=1, metavar="N", help="plan for N GPUs, a process on each [1]")
    add("--amp", choices=("auto", "fp16", "bf16", "fp32"),
        help="plan with this precision [the config's]")  # fmt: skip
    add("--checkpointing", action="store_true",
        help="plan with a backbone that recomputes its activations")  # fmt: skip
    add("--steps", type=int, default=3, metavar="N", help="time N steps of each batch [3]")
    add("--cfg-options", nargs="+", action=CfgOptions, help="replace config values: a.b=1")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measure, and print the plan."""
    for name in ("gpus", "steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    import torch
    from mmengine.logging import MMLogger

    from gersp_mm.engine import launch
    from gersp_mm.engine.precision import choose_precision
    from gersp_mm.planning import memory
    from gersp_mm.planning.time import measure_steps
    from gersp_mm.planning.trial import Samples, Trial, can_checkpoint
    from gersp_mm.utils.console import progress_bar

    MMLogger.get_instance("mmengine", log_level="ERROR")
    limit = memory.parse_bytes(args.memory) if args.memory else memory.device_memory()
    cfg = launch.load(args.config, args.cfg_options)
    if not (cfg.get("train_cfg") and cfg.get("model") and cfg.get("optim_wrapper")):
        raise UserError(f"{args.config} trains nothing: it needs model, train_cfg and a loader.")
    own = _precision(cfg)
    device = choose_precision().precision
    mixed = own if own != "fp32" else device if device != "fp32" else "bf16"
    chosen = device if args.amp == "auto" else args.amp or own
    recomputes = can_checkpoint(cfg)
    if args.checkpointing and not recomputes:
        raise UserError(
            f"--checkpointing: {cfg.model.backbone.type} has no argument with_cp. Leave it out."
        )
    kinds = {own: None, "fp32": None, mixed: None, chosen: None}
    variants = [(kind, cp) for kind in kinds for cp in ((False, True) if recomputes else (False,))]
    measured: dict[tuple[str, bool], Memory] = {}
    with progress_bar("measuring", "parts", len(variants) + 2) as bar:
        samples = Samples(cfg)
        bar.advance(note="memory")
        for kind, checkpointing in variants:
            trial = Trial(cfg, samples, kind, checkpointing)
            measured[kind, checkpointing] = memory.measure_memory(trial)
            bar.advance(note=_words(kind, checkpointing))
        trial = Trial(cfg, samples, chosen, args.checkpointing)
        used = measured[chosen, args.checkpointing]
        share = _total_batch(cfg, args.gpus) / args.gpus
        room = limit - memory.RESERVE - (used.gradients if args.gpus > 1 else 0)
        _, batch, accumulated = memory.fit(used, share, room)
        if batch < 2:
            need = (used.total(2) + limit - room) / MIB
            raise UserError(
                f"{limit / MIB:,.0f} MiB hold no batch of 2, which needs {need:,.0f} MiB "
                f"({_words(chosen, args.checkpointing)}). Raise --memory"
                + _remedies(measured, chosen, args.checkpointing, room)
            )
        times = measure_steps(trial, batch, args.steps)
        bar.advance()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    if name == "CPU":
        name = f"CPU, {counted(torch.get_num_threads(), 'thread')}"
    print(f"measured on {name}; planned for {args.gpus} x {limit / MIB:,.0f} MiB, of which "
          f"{memory.RESERVE / MIB:,.0f} stay free\n")  # fmt: skip
    print(_variant_table(measured, room, share, batch) + "\n")
    print(_part_table(used, batch, accumulated > 1, args.gpus) + "\n")
    said = dict(
        time=_time_lines(cfg, times, samples, batch, args.gpus, name),
        input=_input_lines(times, samples, batch),
    )
    for topic, lines in said.items():
        for line in lines:
            print(f"{topic:<8}{line}")
    print(f"\n{_command(args, cfg, batch, accumulated, chosen, own)}")


def _precision(cfg: Any) -> str:
    kind = str(cfg.optim_wrapper.get("type")).rpartition(".")[2]
    if kind == "BFloat16OptimWrapper" or cfg.optim_wrapper.get("dtype") == "bfloat16":
        return "bf16"
    return "fp16" if kind == "AmpOptimWrapper" else "fp32"


def _total_batch(cfg: Any, gpus: int) -> int:
    """Return the samples of an optimizer step that the learning rate is meant for."""
    base = (cfg.get("auto_scale_lr") or {}).get("base_batch_size")
    own = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get("accumulative_counts", 1) * gpus
    return base or own


def _words(kind: str, checkpointing: bool) -> str:
    return kind + (", checkpointing" if checkpointing else "")


def _remedies(
    measured: dict[tuple[str, bool], Memory], chosen: str, checkpointing: bool, room: float
) -> str:
    better = [
        f"--amp {kind}" + " --checkpointing" * cp
        for (kind, cp), one in measured.items()
        if one.largest_batch(room) >= 2 and (kind, cp) != (chosen, checkpointing)
    ]
    return f", or use {' or '.join(better)}." if better else "."


def _variant_table(
    measured: dict[tuple[str, bool], Memory], room: float, share: float, batch: int
) -> str:
    from gersp_mm.planning.memory import fit
    from gersp_mm.utils.console import table

    rows = []
    for (kind, checkpointing), one in measured.items():
        most, fits, accumulated = fit(one, share, room)
        use = f"{fits} x {accumulated}" if fits >= 2 else "none"
        needed = round(one.total(batch, batch < share) / MIB)
        rows.append((_words(kind, checkpointing), most, use, needed))
    header = ("per process", "largest batch", "batch x accumulated", f"MiB at a batch of {batch}")
    return table(header, rows)


def _part_table(used: Memory, batch: int, accumulating: bool, gpus: int) -> str:
    from gersp_mm.planning.timeline import KINDS
    from gersp_mm.utils.console import table

    parts = used.parts(batch, accumulating)
    how = dict.fromkeys(KINDS, "measured")
    if gpus > 1:
        parts["communication"], how["communication"] = float(used.gradients), "a model: gradients"
    rows = [(f"{n} ({how.get(n, 'counted')})", round(size / MIB, 1)) for n, size in parts.items()]
    total = round(sum(parts.values()) / MIB, 1)
    return table((f"a batch of {batch}", "MiB"), [*rows, ("sum, when it is highest", total)])


def _time_lines(
    cfg: Any, times: StepTimes, samples: Samples, batch: int, gpus: int, where: str
) -> list[str]:
    from gersp_mm.engine.schedule import run_length

    step = times.at(batch)
    lines = [f"a step of {batch}: {step}, by {times.describe()} on {where}"]
    length = run_length(cfg)
    if length is None:
        return lines
    if length.unit == "iters":
        lines.append(f"the run of {counted(length.number, 'step')}: {step.times(length.number)}")
    elif samples.number is None:
        lines.append("an epoch: unknown, because the images are not here")
        lines.append(f"10,000 steps: {step.times(10_000)}")
    else:
        steps = max(1, samples.number // (batch * gpus))
        epoch = step.times(steps)
        lines.append(f"an epoch of {counted(steps, 'step')}: {epoch}")
        lines.append(f"the run of {counted(length.number, 'epoch')}: {epoch.times(length.number)}")
    if gpus > 1:
        lines.append("what the GPUs send to each other is not counted")
    return lines


def _input_lines(times: StepTimes, samples: Samples, batch: int) -> list[str]:
    from gersp_mm.planning.time import cores_needed

    if not samples.present:
        return [f"not measured: {samples.problem}"]
    cores = cores_needed(batch, times.at(batch), samples.seconds)
    return [
        f"a core makes {1 / samples.seconds:,.0f} samples a second of your images",
        f"a process uses up those of {cores:.2g} cores at this speed",
    ]


def _command(
    args: argparse.Namespace, cfg: Any, batch: int, accumulated: int, chosen: str, own: str
) -> str:
    """Return the command that trains as planned."""
    from mmengine.config import Config

    from gersp_mm.engine.launch import use_amp
    from gersp_mm.planning.trial import CHECKPOINTING

    options = [f"train_dataloader.batch_size={batch}"]
    if accumulated != cfg.optim_wrapper.get("accumulative_counts", 1):
        options.append(f"optim_wrapper.accumulative_counts={accumulated}")
    if chosen != own:
        wrapper = Config(dict(optim_wrapper=dict(type="OptimWrapper")))
        use_amp(wrapper, chosen)
        options += [
            f"optim_wrapper.{name}={value}" for name, value in wrapper.optim_wrapper.items()
        ]
    if args.checkpointing:
        options.append(f"{CHECKPOINTING}=True")
    words = [*(args.cfg_options or ()), *options]
    start = f"gersp train {shlex.quote(args.config)}"
    if args.gpus > 1:
        start = f"bash tools/dist_train.sh {shlex.quote(args.config)} {args.gpus}"
    return f"{start} --cfg-options {shlex.join(words)}"


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    import warnings

    args = parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's advice to the hosts' checkpointing
        run_tool(run, args)
