from __future__ import annotations

import argparse
import importlib.util

import pytest
import torch
from mmengine.config import Config

from gersp_mm.commands import options
from gersp_mm.engine import launch
from gersp_mm.utils.errors import UserError
from tests.support.smoke import CONFIGS

DEMO = str(CONFIGS / "pretrain" / "gersp_r18_demo.py")


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--work-dir")
    options.add_common_arguments(parser)
    return parser.parse_args(argv)


def load(*argv: str) -> Config:
    return launch.load_config(arguments(*argv))


def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_options_replace_config_values():
    cfg = load(DEMO, "--cfg-options", "model.queue_len=64", "model.neck=None",
               "model.data_preprocessor.std=[1,2,3]")  # fmt: skip
    assert cfg.model.queue_len == 64
    assert cfg.model.neck is None
    assert cfg.model.data_preprocessor.std == [1, 2, 3]
    assert cfg.launcher == "none"


def test_work_dir_defaults_to_the_configs_name(tmp_path):
    assert load(DEMO).work_dir == "work_dirs/gersp_r18_demo"
    assert load(DEMO, "--cfg-options", "work_dir=elsewhere").work_dir == "elsewhere"
    assert load(DEMO, "--work-dir", str(tmp_path)).work_dir == str(tmp_path)


def test_a_shipped_config_is_found_by_its_bare_name():
    assert load("gersp_r18_demo").model.backbone.depth == 18


def test_persistent_workers_are_switched_off_without_workers():
    assert load(DEMO).train_dataloader.persistent_workers
    cfg = load(DEMO, "--cfg-options", "train_dataloader.num_workers=0")
    assert not cfg.train_dataloader.persistent_workers


@pytest.mark.parametrize("config", ["gersp_r50", "gersp_r18_demo"])
def test_memory_is_pinned_for_gpus_alone(monkeypatch, config):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # MMEngine's logger asks for its number
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load(config).train_dataloader.pin_memory
    no_gpu(monkeypatch)
    assert not load(config).train_dataloader.pin_memory


def test_a_hook_set_to_none_is_left_out():
    cfg = load(
        DEMO, "--cfg-options", "default_hooks.export_backbone=None", "default_hooks.logger=None"
    )
    assert "export_backbone" not in cfg.default_hooks
    assert cfg.default_hooks.logger is None  # MMEngine drops its own


@pytest.mark.parametrize(
    "content, text",
    [
        ("model = dict(", "SyntaxError"),
        ("_base_ = './nothing.py'", "nothing.py"),
        ("raise ValueError('set GERSP_CHECKPOINT')", "set GERSP_CHECKPOINT"),
    ],
)
def test_a_broken_config_is_named(tmp_path, content, text):
    config = tmp_path / "broken.py"
    config.write_text(content)
    with pytest.raises(UserError, match=f"cannot read config {config}: .*{text}"):
        load(str(config))


def test_a_missing_config_is_named():
    with pytest.raises(UserError, match="no config gersp_r51.py.*did you mean .*gersp_r50"):
        load("gersp_r51.py")


def test_options_without_a_value_are_explained(capsys):
    with pytest.raises(SystemExit) as caught:
        arguments(DEMO, "--cfg-options", "model.queue_len")
    assert caught.value.code == 2
    assert "--cfg-options takes key=value, got 'model.queue_len'" in capsys.readouterr().err


VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}


@pytest.mark.parametrize("launcher, names", VARIABLES.items())
def test_processes_without_a_launchers_environment_say_what_is_missing(
    monkeypatch, launcher, names
):
    no_gpu(monkeypatch)
    for name in (*names, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    text = (
        f"--launcher {launcher} needs {', '.join(names)}, MASTER_ADDR, MASTER_PORT in the "
        "environment. Start the processes with tools/dist_train.sh or tools/slurm_train.sh."
    )
    with pytest.raises(UserError) as caught:
        launch.join_cpu_processes(launcher)
    assert str(caught.value) == text
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(names[0], "0")
    with pytest.raises(UserError, match=f"needs {names[1]}, MASTER_PORT in the"):
        launch.join_cpu_processes(launcher)


def test_launcher_pytorch_without_torchrun_is_one_error_on_gpus_too(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="--launcher pytorch needs RANK, WORLD_SIZE in the"):
        load(DEMO, "--launcher", "pytorch")


def test_scalars_go_to_one_more_place_once():
    cfg = Config(dict(visualizer=dict(type="Visualizer", vis_backends=[])))
    launch.log_to(cfg, "tensorboard")
    launch.log_to(cfg, "tensorboard")
    types = [backend.type for backend in cfg.visualizer.vis_backends]
    assert types == ["LocalVisBackend", "TensorboardVisBackend"]


def test_scalars_for_a_package_that_is_not_there_name_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        launch.log_to(Config(), "wandb")
    assert str(caught.value) == ("--log-to wandb needs a package. Install it: pip install wandb")


@pytest.mark.parametrize(
    "error, code, printed",
    [
        (UserError("a.txt is empty: fill it"), 2, "error: a.txt is empty: fill it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_tools_end_in_one_line(capsys, error, code, printed):
    def main(args):
        raise error

    with pytest.raises(SystemExit) as caught:
        options.run_tool(main, argparse.Namespace())
    assert caught.value.code == code
    assert capsys.readouterr().err.strip() == printed


def test_other_errors_keep_their_traceback():
    def main(args):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        options.run_tool(main, argparse.Namespace())
