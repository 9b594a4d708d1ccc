"""Starting a run: its config adapted to the machine, its processes, its precision and its logs."""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import os.path as osp
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import init_dist, is_distributed
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from gersp_mm.engine.checkpoint_loading import read_all_weights_safely
from gersp_mm.engine.config import read_config
from gersp_mm.engine.hooks.watch import KeepingRunner, QuietRunner, WatchHook
from gersp_mm.engine.logs import ContinueLogsHook
from gersp_mm.engine.loop import make_resumable
from gersp_mm.engine.precision import Choice, choose_precision
from gersp_mm.engine.preflight.building import told_in_one_line
from gersp_mm.engine.preflight.checks import CONFIG_CHECKS
from gersp_mm.engine.preflight.classes import fill_class_count
from gersp_mm.engine.preflight.findings import refuse_errors, run_checks, warn
from gersp_mm.engine.resume import ReplaceHook
from gersp_mm.engine.trackers import use_own_trackers
from gersp_mm.resources import find_config
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.memory import keep_freed_memory

VIS_BACKENDS = {
    "tensorboard": ("TensorboardVisBackend", "tensorboard", "tensorboard"),
    "wandb": ("WandbVisBackend", "wandb", "wandb"),
    "mlflow": ("MLflowVisBackend", "mlflow", "mlflow"),
}
MIXED_PRECISION = ("AmpOptimWrapper", "ApexOptimWrapper", "BFloat16OptimWrapper")
MMENGINE_HOOKS = (
    "runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint",
)  # fmt: skip


def load_config(args: argparse.Namespace) -> Config:
    """Load the config that the arguments of a tool name; see :func:`load`."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return load(args.config, args.cfg_options, args.work_dir, args.launcher)


def load(
    config: str | Path,
    options: Sequence[str] | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config, check it, adapt it to the machine and prepare this process for it.

    Args:
        config: A file, or the name of a shipped config.
        options: Values to replace, as ``key=value``.
        work_dir: Folder of the run; by default that of the config, else
            ``work_dirs/<config name>``.
        launcher: Launcher of the processes: ``'none'``, ``'pytorch'``, ``'slurm'``, ``'mpi'``.

    Raises:
        UserError: The config does not exist, cannot be read or holds errors.
    """
    try:
        path = find_config(config)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    cfg, notes = read_config(path, options)
    refuse_errors(notes + run_checks(CONFIG_CHECKS, cfg))
    warn(notes, partial(print, file=sys.stderr))
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get("work_dir") or osp.join("work_dirs", path.stem)
    adapt(cfg)
    start(launcher)
    return cfg


def adapt(cfg: Config) -> None:
    """Add the hooks of every run to a config, and set the options that this machine needs.

    Args:
        cfg: Changed in place; ``launcher`` is set.
    """
    hooks = cfg.setdefault("default_hooks", ConfigDict())
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in MMENGINE_HOOKS:
            hooks.pop(name)  # MMEngine drops only its own hooks.
    hooks.setdefault("checkpoint_check", dict(type="gersp_mm.CheckpointCheckHook"))
    hooks.setdefault("preflight", dict(type="gersp_mm.PreflightHook"))
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg.get(name)
        if loader and not loader.get("num_workers"):
            # PyTorch rejects both without worker processes.
            loader.persistent_workers = False
            loader.pop("prefetch_factor", None)
        if loader and not torch.cuda.is_available():
            loader.pin_memory = False
    if cfg.launcher != "none" and not torch.cuda.is_available():
        cfg.model_wrapper_cfg = dict(type="gersp_mm.CPUDistributedDataParallel")


def start(launcher: str = "none") -> None:
    """Set up safe reading of weights, memory and the process group on CPUs.

    Raises:
        UserError: Environment variables of the launcher are missing.
    """
    read_all_weights_safely()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_freed_memory()
    if launcher == "none":
        return
    atexit.register(_leave_processes)
    if launcher == "pytorch":
        _check_environment(launcher, "RANK", "WORLD_SIZE")
    if not on_gpu:
        join_cpu_processes(launcher)


def build_runner(cfg: Config, runner: type[Runner] = KeepingRunner) -> Runner:
    """Build the run of a config, and replace ``num_classes='auto'`` by the number in the data.

    Args:
        cfg: The config.
        runner: Class of the run.

    Raises:
        UserError: A part cannot be built; the message names its key.
    """
    use_own_trackers(cfg)
    with told_in_one_line(cfg):
        fill_class_count(cfg)
        return runner.from_cfg(cfg)


def train(
    cfg: Config,
    replaced: Sequence[Path] = (),
    summary: bool = False,
    to_continue: str = "with --resume",
) -> None:
    """Build the run of a config, and train.

    Args:
        cfg: The config.
        replaced: Files of an older run. They are removed before the first step.
        summary: Whether the console shows a summary and a bar instead of the whole log.
        to_continue: How to run the same command so that it continues a stopped run.

    Raises:
        UserError: A part cannot be built; the message names its key.
    """
    runner = build_runner(cfg, QuietRunner if summary else KeepingRunner)
    runner.to_continue = to_continue  # Read by the loop where it stops.
    if summary:
        runner.register_hook(WatchHook())
    if replaced:
        runner.register_hook(ReplaceHook(replaced))
    runner.register_hook(ContinueLogsHook())
    with told_in_one_line(cfg):
        make_resumable(runner)
        runner.train()


def join_cpu_processes(launcher: str) -> None:
    """Start the gloo process group of CPU processes, which MMEngine's own start-up cannot do.

    Raises:
        UserError: The launcher's environment variables are missing.
    """
    names = {
        "pytorch": ("RANK", "WORLD_SIZE"),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
        "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    }[launcher]
    _check_environment(launcher, *names, "MASTER_ADDR", "MASTER_PORT")
    rank, world_size = (int(os.environ[name]) for name in names)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)


def join_processes(cfg: Config) -> None:
    """Start the process group of a config's launcher earlier than MMEngine's Runner does."""
    if cfg.launcher == "none" or is_distributed():
        return
    environment = cfg.get("env_cfg", {})
    set_multi_processing(**environment.get("mp_cfg", {}), distributed=True)
    init_dist(cfg.launcher, **environment.get("dist_cfg", {}))


def _leave_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_environment(launcher: str, *names: str) -> None:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(
            f"--launcher {launcher} needs {', '.join(missing)} in the environment. Start the "
            "processes with tools/dist_train.sh or tools/slurm_train.sh."
        )


def use_amp(cfg: Config, precision: str) -> Choice:
    """Set the precision of an optimizer wrapper: automatic mixed precision, or fp32.

    Args:
        cfg: Changed in place.
        precision: ``'fp16'``, ``'bf16'``, ``'fp32'``, or ``'auto'`` for what this machine
            multiplies, see :func:`gersp_mm.engine.precision.choose_precision`.

    Returns:
        The precision and the reason for it.

    Raises:
        UserError: fp16 is requested without a GPU.
    """
    choice = Choice(precision, "as asked for")
    if precision == "auto":
        choice = choose_precision(several=cfg.get("launcher", "none") != "none")
    if choice.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--amp fp16 needs a GPU. Use --amp auto, which chooses by the processor.")
    wrapper = cfg.optim_wrapper
    if choice.precision == "fp16":
        wrapper.type, wrapper.dtype = "AmpOptimWrapper", "float16"
        wrapper.setdefault("loss_scale", "dynamic")
        return choice
    for name in ("dtype", "loss_scale"):  # options of an AmpOptimWrapper
        wrapper.pop(name, None)
    if choice.precision == "bf16":
        wrapper.type = "gersp_mm.BFloat16OptimWrapper"
    elif str(wrapper.get("type")).rpartition(".")[2] in MIXED_PRECISION:
        wrapper.type = "OptimWrapper"
    return choice


def log_to(cfg: Config, name: str) -> None:
    """Add a visualisation backend.

    Args:
        cfg: Changed in place.
        name: ``'tensorboard'``, ``'wandb'`` or ``'mlflow'``.

    Raises:
        UserError: Its package is not installed.
    """
    backend, module, package = VIS_BACKENDS[name]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--log-to {name} needs a package. Install it: pip install {package}")
    visualizer = cfg.setdefault("visualizer", ConfigDict(type="Visualizer"))
    backends = list(visualizer.get("vis_backends") or [dict(type="LocalVisBackend")])
    if all(entry["type"] != backend for entry in backends):
        backends.append(dict(type=backend))
    visualizer.vis_backends = backends
