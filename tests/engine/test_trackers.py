"""TensorBoard, W&B and MLflow: a run is one there, with every step once, killed or not."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import struct
import sys
from pathlib import Path
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gersp_mm.engine import launch, runs
from gersp_mm.engine.trackers import use_own_trackers
from gersp_mm.registry import VISBACKENDS
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization.curves import read_curves
from tests.support import tracked as script
from tests.support.downstream import downstream_twin
from tests.support.forked import Forked, run_ranks
from tests.support.runs import resumed
from tests.support.smoke import forget_runs
from tests.support.tracked import RUN_ID, tracked

TRACKERS = ("tensorboard", "wandb", "mlflow")
SCRIPT = script.__file__
CHECKPOINT = 3


def needs(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return launch.VIS_BACKENDS[name][0]


def read_tensorboard(work_dir: Path) -> list[dict]:
    """Return the scalars of each run in a folder, by TensorBoard's own reader."""
    found = []
    for folder in sorted({file.parent for file in work_dir.rglob("events.out.tfevents.*")}):
        log = EventAccumulator(str(folder)).Reload()
        names = log.Tags()["scalars"]
        found.append({name: [(e.step, e.value) for e in log.Scalars(name)] for name in names})
    return found


def read_wandb(work_dir: Path) -> list[dict]:
    """Return the scalars of each offline run that ``wandb sync`` would send."""
    found = []
    for file in sorted(work_dir.glob("*/vis_data/wandb/offline-run-*/*.wandb")):
        run: dict = {}
        for record in wandb_records(file.read_bytes()):
            if record.WhichOneof("record_type") == "run":
                run["project"], run["id"] = record.run.project, record.run.run_id
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    value = float(json.loads(item.value_json))
                    run.setdefault(name, []).append((record.history.step.num, value))
        found.append(run)
    return found


def wandb_records(data: bytes):
    """Yield W&B's own records; its file is a log of LevelDB after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, part = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def read_mlflow(work_dir: Path, store: Path | None = None) -> list[dict]:
    """Return the scalars of each run in a store, by MLflow's client."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store or work_dir / 'mlflow' / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "gersp_mm")
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        histories = {k: client.get_metric_history(run.info.run_id, k) for k in run.data.metrics}
        found.append({k: [(e.step, e.value) for e in values] for k, values in histories.items()})
        assert run.info.status == "FINISHED"
        for name, values in found[-1].items():
            assert run.data.metrics[name] == values[-1][1]
    return found


READ = dict(tensorboard=read_tensorboard, wandb=read_wandb, mlflow=read_mlflow)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_killed_and_resumed_run_is_one_with_every_step_once(name, tmp_path, monkeypatch):
    backend = needs(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    work_dir = tmp_path / "run"
    for done, code in ((0, -9), (CHECKPOINT, 0)):
        output = tmp_path / f"{done}.log"
        child = Forked(SCRIPT, "start", backend, done, work_dir, output=output, cwd=tmp_path)
        assert child.wait(300) == code, output.read_text()[-3000:]
    (run,) = READ[name](work_dir)
    assert (
        run["loss"]
        == run["knn_top1"]
        == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    )
    if name == "wandb":
        assert (run["project"], run["id"]) == ("gersp_mm", RUN_ID)
        assert len(list(work_dir.glob("*/vis_data/wandb/superseded/offline-run-*"))) == 1
    if name == "mlflow":
        uploaded = sorted((work_dir / "mlflow" / "artifacts").rglob("*.json"))
        assert [file.parts[-3][:8] for file in uploaded] == ["20260100", "20260103"]
        assert not list((work_dir / "mlflow" / "artifacts").rglob("*.db"))
    assert not (tmp_path / "mlruns").exists()


def test_a_store_of_mlflow_that_is_not_ours_keeps_what_it_has(tmp_path, monkeypatch):
    """As a server, from which nothing can be removed."""
    backend = needs("mlflow")
    store = tmp_path / "store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    for done, code in ((0, -9), (CHECKPOINT, 0)):
        output = tmp_path / f"{done}.log"
        words = ("start", backend, done, tmp_path / "run")
        child = Forked(SCRIPT, *words, output=output, cwd=tmp_path)
        assert child.wait(300) == code, output.read_text()[-3000:]
    (run,) = read_mlflow(tmp_path, store)
    assert run["loss"] == run["knn_top1"] == [*enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 60.0], 1)]
    assert not (tmp_path / "run" / "mlflow").exists()


@pytest.mark.dist
def test_of_two_processes_one_logs(pair_data, tmp_path):
    names = [name for name in TRACKERS if importlib.util.find_spec(name)]
    environment = dict(os.environ, WANDB_MODE="offline", WANDB_SILENT="true")
    work_dir = tmp_path / "run"
    words = ("rank", pair_data, work_dir, *names)
    for done in run_ranks(SCRIPT, *words, output=tmp_path, env=environment):
        assert done.returncode == 0, done.stdout[-3000:]
    for name in names:
        (run,) = READ[name](work_dir)
        assert [step for step, _ in run["loss"]] == [1, 2, 3, 4, 5, 6], name
        assert [step for step, _ in run["knn_top1"]] == [2, 4, 6], name
    uploaded = [path.parts for path in (work_dir / "mlflow" / "artifacts").rglob("*")]
    assert not any("wandb" in parts or "mlflow.db" in parts for parts in uploaded)


class Killed(BaseException):
    pass


class Kill(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.iteration:
            raise Killed


def test_a_training_logs_every_value_at_the_iterations_it_had_seen(
    pair_data, tmp_path, monkeypatch
):
    moments = itertools.count()
    monkeypatch.setattr(
        runs.time, "strftime", lambda *_: f"20260101_{next(moments):06d}"
    )  # two starts in one second would share a folder
    forget_runs()
    kill = Kill(4)
    monkeypatch.setattr(launch, "make_resumable", _with(kill))
    with pytest.raises(Killed):
        launch.train(tracked(pair_data, tmp_path, "tensorboard"))
    kill.iteration = 0
    forget_runs()
    again = resumed(tracked(pair_data, tmp_path, "tensorboard"), tmp_path / "epoch_1.pth")
    launch.train(again)
    (run,) = read_tensorboard(tmp_path)
    steps = {name: [step for step, _ in values] for name, values in run.items()}
    assert steps["loss"] == steps["lr"] == [1, 2, 3, 4, 5, 6]
    assert steps["knn_top1"] == [2, 4, 6]
    curves = read_curves(tmp_path)
    assert [place for place, _ in curves["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [place for place, _ in curves["knn_top1"]] == [2, 4, 6]
    assert [value for _, value in run["loss"]] == pytest.approx([y for _, y in curves["loss"]])


def test_a_validation_stands_at_its_iteration(downstream_data, tmp_path):
    """MMEngine places it at its epoch."""
    name = "eurosat/finetune_r50_eurosat.py"
    cfg = downstream_twin(name, downstream_data, tmp_path, iterations=3)
    cfg.model.backbone.init_cfg = None
    cfg.train_cfg.update(max_epochs=2, val_interval=1)
    cfg.launcher = "none"
    launch.log_to(cfg, "tensorboard")
    launch.adapt(cfg)
    forget_runs()
    launch.train(cfg)
    (run,) = read_tensorboard(tmp_path)
    assert [step for step, _ in run["accuracy/top1"]] == [3, 6]
    (curve,) = [c for n, c in read_curves(tmp_path).items() if n == "accuracy/top1"]
    assert [place for place, _ in curve] == [3, 6]


def _with(hook: Hook):
    make_resumable = launch.make_resumable

    def make(runner):
        runner.register_hook(hook, priority="LOWEST")
        make_resumable(runner)

    return make


def test_trackers_of_a_config_are_replaced_and_evaluate_by_iteration():
    entry = dict(type="mmengine.WandbVisBackend", init_kwargs=dict(project="mine"))
    local = dict(type="LocalVisBackend")
    cfg = Config(dict(visualizer=dict(type="Visualizer", vis_backends=[local, entry])))
    use_own_trackers(cfg)
    assert [backend.type for backend in cfg.visualizer.vis_backends] == [
        "LocalVisBackend",
        "gersp_mm.WandbVisBackend",
    ]
    assert cfg.default_hooks.logger.log_metric_by_epoch is False
    own = VISBACKENDS.get("gersp_mm.WandbVisBackend")
    assert own(save_dir="x", init_kwargs=entry["init_kwargs"])._init_kwargs == dict(project="mine")

    plain = Config(dict(visualizer=dict(type="Visualizer", vis_backends=[local])))
    use_own_trackers(plain)
    assert "default_hooks" not in plain


class Service:
    """Stands in for W&B with a server, which has a run's steps up to 5 already."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []
        self.run = mock.Mock(offline=False, resumed=True, step=6)

    def init(self, **options) -> None:
        self.options = options

    def log(self, row: dict, step: int, commit: bool | None = None) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.run = None


def test_a_resumed_run_on_a_server_of_wandb_sends_no_step_again(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    tracker = VISBACKENDS.get("gersp_mm.WandbVisBackend")(str(tmp_path))
    tracker.begin(RUN_ID, tmp_path, 3)
    expected = dict(id=RUN_ID, project="gersp_mm", resume="allow", allow_val_change=True)
    assert {name: service.options[name] for name in expected} == expected
    for step in (4, 5, 6, 7):
        tracker.commit()
        tracker.add_scalars(dict(loss=float(step)), step=step)
    tracker.add_scalar("accuracy/top1", 50.0, step=2)  # an epoch
    tracker.close()
    sent = [(6, dict(loss=6.0)), (7, dict(loss=7.0)), (7, {"accuracy/top1": 50.0})]
    assert [(step, row) for step, row in service.rows if row] == sent


def test_wandb_that_does_not_begin_is_one_line(tmp_path, monkeypatch):
    service = Service()
    service.init = mock.Mock(side_effect=RuntimeError("No API key configured."))
    monkeypatch.setitem(sys.modules, "wandb", service)
    tracker = VISBACKENDS.get("gersp_mm.WandbVisBackend")(str(tmp_path))
    with pytest.raises(UserError, match="No API key configured. Log in .*WANDB_MODE=offline"):
        tracker.begin(RUN_ID, tmp_path, 0)
