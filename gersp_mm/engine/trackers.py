"""TensorBoard, W&B and MLflow as logs of a run, with all values at iterations."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import mmengine.visualization as host
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.visualization.vis_backend import force_init_env

from gersp_mm.engine.runs import SCALARS, read_run
from gersp_mm.registry import VISBACKENDS
from gersp_mm.utils.errors import UserError

PROJECT = "gersp_mm"  # default project of W&B and experiment of MLflow
RUN_TAG = "gersp_mm.run_id"  # tag of a run of MLflow
STORE = "mlflow"  # folder of MLflow's data in a work directory
LEFT_OUT = {"step"}  # names in a line of scalars.json that are not values


def use_own_trackers(cfg: Config) -> None:
    """Replace MMEngine's trackers of a config by those of this module, with the same arguments.

    Values of a validation are then logged at iterations, like all other values.

    Args:
        cfg: Changed in place.
    """
    visualizer = cfg.get("visualizer")
    given = visualizer.get("vis_backends") if isinstance(visualizer, dict) else None
    entries = [given] if isinstance(given, dict) else list(given or [])
    for entry in entries:
        name = str(entry.get("type")).removeprefix("mmengine.") if isinstance(entry, dict) else ""
        if name in VISBACKENDS.module_dict:
            entry["type"] = f"gersp_mm.{name}"
            logger = cfg.setdefault("default_hooks", ConfigDict()).setdefault(
                "logger", ConfigDict(type="LoggerHook")
            )
            logger.setdefault("log_metric_by_epoch", False)


class Tracker(host.BaseVisBackend):
    """Base of the trackers, with the facts about this start of the run.

    A tracker begins with the first step, when all checks have passed, or with the first value that
    is written to it.

    Attributes:
        run_id: Id of the run in its checkpoints.
        work_dir: The run's work directory.
        done: Iterations of the checkpoint from which the run resumes; 0 in a new run.
    """

    run_id: str | None = None
    work_dir: Path | None = None
    done = 0
    cfg: Config | None = None

    def begin(self, run_id: str | None, work_dir: Path, done: int) -> None:
        """Open the tracker's record of the run, or continue it."""
        if not self._env_initialized:
            self.run_id, self.work_dir, self.done = run_id, work_dir, done
            _ = self.experiment  # opens it

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Keep the config until the tracker begins."""
        self.cfg = config

    def commit(self) -> None:
        """Write the values of the iteration that has ended."""

    def _write_config(self) -> None:
        """Write the kept config; called once when the tracker has begun."""
        if self.cfg is not None:
            self._env_initialized = True
            super().add_config(self.cfg)

    def _earlier(self, pattern: str) -> list[Path]:
        """Return files of earlier starts of this run in its work directory, the oldest first."""
        if self.work_dir is None or self.run_id is None:
            return []
        return sorted(self.work_dir.glob(pattern))


@VISBACKENDS.register_module()
class TensorboardVisBackend(Tracker, host.TensorboardVisBackend):
    """MMEngine's TensorBoard backend, in which a resumed run continues in the folder of its start.

    Values logged after the checkpoint are purged. The event files hold the id of their run.

    Args:
        save_dir: Folder of the event files; the run sets it.
    """

    def _init_env(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        suffix = f".{self.run_id}" if self.run_id else ""
        earlier = self._earlier(f"*/vis_data/events.out.tfevents.*{suffix}") if self.done else []
        folder = earlier[0].parent if earlier else Path(self._save_dir)
        purge = self.done + 1 if self.done else None
        self._tensorboard = SummaryWriter(folder, purge_step=purge, filename_suffix=suffix)
        if self.cfg is not None:
            self._tensorboard.add_text("config", self.cfg.pretty_text, self.done)

    def commit(self) -> None:
        """Write the values to the file, of which a killed process would lose two minutes."""
        if self._env_initialized:
            self._tensorboard.flush()


@VISBACKENDS.register_module()
class WandbVisBackend(Tracker, host.WandbVisBackend):
    """MMEngine's W&B backend, with iterations as steps and one W&B run for all starts of a run.

    The run has the id in its checkpoints and belongs to the project ``gersp_mm``, unless
    ``init_kwargs`` or W&B's environment variables say otherwise. The values of one iteration form
    one row.

    W&B cannot remove values. A resumed run on a server leaves out the steps that W&B has. An
    offline run is written again from ``scalars.json``, and the folder of its earlier start is moved
    to ``superseded``.

    Args:
        save_dir: Folder of W&B's files; the run sets it.
        init_kwargs: Arguments of ``wandb.init``.
        define_metric_cfg: Arguments of ``wandb.define_metric``.
        commit: Whether rows are sent when their iteration ends.
        log_code_name: Name of the code in W&B.
        watch_kwargs: Arguments of ``wandb.watch``.

    Raises:
        UserError: W&B cannot start a run, for example without a login.
    """

    _init_kwargs: dict[str, Any] | None
    _step = 0  # step of the row that is being filled
    _first = 0  # the first step that W&B takes

    def _init_env(self) -> None:
        given: dict[str, Any] = dict(self._init_kwargs or {})
        if "WANDB_PROJECT" not in os.environ:
            given.setdefault("project", PROJECT)
        if "WANDB_RUN_ID" not in os.environ and self.run_id is not None:
            given.setdefault("id", self.run_id)
        offline = (given.get("mode") or os.environ.get("WANDB_MODE")) == "offline"
        if self.done:
            given.setdefault("allow_val_change", True)
            if not offline and "WANDB_RESUME" not in os.environ:
                given.setdefault("resume", "allow")
        self._init_kwargs = given
        try:
            super()._init_env()
        except Exception as error:
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise UserError(
                f"W&B cannot start a run: {reason}. Log in with "
                "`wandb login`, or log to files with WANDB_MODE=offline"
            ) from error
        run = self._wandb.run
        self._write_config()
        if run.offline:
            self._write_history(run)
        elif run.resumed:
            self._first = run.step

    def _write_history(self, run: Any) -> None:
        """Write the values that the run logged before, and move its earlier offline folders."""
        new = Path(run.dir).parent
        name = f"offline-run-*-{run.id}"
        earlier = {*self._earlier(f"**/{name}"), *new.parent.glob(name)} - {new}
        if not self.done or not earlier or self.work_dir is None:
            return
        own = Path(self._save_dir, "scalars.json")
        files = [file for file in sorted(self.work_dir.glob(SCALARS)) if file != own]
        for step, entry in read_run(files):
            if step <= self.done:
                row = {name: value for name, value in entry.items() if name not in LEFT_OUT}
                self._log(row, int(step))
        self.commit()
        for folder in earlier:
            if folder.parent.name != "superseded":
                aside = folder.parent / "superseded"
                aside.mkdir(exist_ok=True)
                folder.rename(aside / folder.name)

    @force_init_env
    def add_image(self, name: str, image: Any, step: int = 0, **kwargs: Any) -> None:
        """Write an image at an iteration."""
        self._log({name: self._wandb.Image(image)}, step)

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Write a value at an iteration."""
        self._log({name: value}, step)

    @force_init_env
    def add_scalars(
        self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Write values at an iteration."""
        self._log(scalar_dict, step)

    def _log(self, row: dict[str, Any], step: int) -> None:
        self._step = max(step, self._step)  # The step of an image or a validation may be an epoch.
        if self._step >= self._first:
            self._wandb.log(row, step=self._step)

    def commit(self) -> None:
        """Send the row of the iteration that has ended."""
        if self._env_initialized and self._commit and self._step >= max(self._first, 1):
            self._wandb.log({}, step=self._step, commit=True)
            self._first = self._step + 1

    def close(self) -> None:
        """End the run in W&B."""
        if self._env_initialized:
            self._wandb.finish()
            self._env_initialized = False


@VISBACKENDS.register_module()
class MLflowVisBackend(Tracker, host.MLflowVisBackend):
    """MMEngine's MLflow backend, with a store that MLflow 3 accepts and one run for all starts.

    Without ``tracking_uri`` and without the variable ``MLFLOW_TRACKING_URI``, the store is
    ``<work_dir>/mlflow/mlflow.db``, and values logged after the checkpoint are removed from it
    when a run is resumed. Values on a server cannot be removed: a resumed run leaves out the steps
    that the server has.

    Args:
        save_dir: Not used.
        exp_name: Name of the experiment; by default ``MLFLOW_EXPERIMENT_NAME`` or ``gersp_mm``.
        run_name: Name of the run.
        tags: Tags of the run.
        params: Parameters of the run in addition to those of the config.
        tracking_uri: Address of MLflow's store.
        artifact_suffix: Suffix of the files of the work directory that are uploaded at the end.
        tracked_config_keys: Sections of the config that are parameters; by default all.
        artifact_location: Folder or address for the files of a new experiment.
    """

    _artifact_location: str | None
    _last: dict[str, int]  # the last step of each value that the store has

    def _init_env(self) -> None:
        import mlflow

        self._mlflow, self._last = mlflow, {}
        work_dir = self._work_dir()
        uri = self._tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        database = None
        if not uri:
            folder = work_dir.absolute() / STORE
            folder.mkdir(parents=True, exist_ok=True)
            database = folder / "mlflow.db"
            uri = f"sqlite:///{database}"
            self._artifact_location = self._artifact_location or (folder / "artifacts").as_uri()
        mlflow.set_tracking_uri(uri)
        name = self._exp_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        if mlflow.get_experiment_by_name(name) is None:
            mlflow.create_experiment(name, artifact_location=self._artifact_location)
        experiment = mlflow.set_experiment(name).experiment_id
        known = None
        if self.done and self.run_id is not None:
            which = f"tags.`{RUN_TAG}` = '{self.run_id}'"
            client = mlflow.MlflowClient()
            known = next(iter(client.search_runs([experiment], which, max_results=1)), None)
        if known is not None:
            if database is not None:
                _cut_metrics(database, known.info.run_id, self.done)
            for metric in client.get_run(known.info.run_id).data.metrics:
                history = client.get_metric_history(known.info.run_id, metric)
                self._last[metric] = max(entry.step for entry in history)
        if mlflow.active_run() is None:
            mlflow.start_run(known.info.run_id if known else None, run_name=self._run_name)
        if self.run_id is not None:
            mlflow.set_tag(RUN_TAG, self.run_id)
        if self._tags is not None:
            mlflow.set_tags(self._tags)
        self._log_params(self._params or {}, known)
        if self.cfg is not None:
            cfg = self.cfg.to_dict()
            keys = cfg if self._tracked_config_keys is None else self._tracked_config_keys
            self._log_params(self._flatten({key: cfg[key] for key in keys}), known)
            mlflow.log_text(self.cfg.pretty_text, "config.py")

    def _work_dir(self) -> Path:
        if self.work_dir is not None:
            return self.work_dir
        return Path(self.cfg.work_dir if self.cfg is not None else self._save_dir)

    def _log_params(self, params: dict[str, Any], known: Any) -> None:
        """Write parameters; those of a resumed run stay, because MLflow cannot change them."""
        old = known.data.params if known is not None else {}
        try:
            self._mlflow.log_params({name: v for name, v in params.items() if name not in old})
        except self._mlflow.MlflowException as error:
            print_log(f"MLflow did not take the config's parameters: {error}", "current")

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Write a value at an iteration."""
        self.add_scalars({name: value}, step)

    @force_init_env
    def add_scalars(
        self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Write values at an iteration."""
        new = {name: v for name, v in scalar_dict.items() if step > self._last.get(name, -1)}
        super().add_scalars(new, step)

    def close(self) -> None:
        """Upload the run's text files, but for those of MLflow and W&B, and end the run."""
        if not self._env_initialized:
            return
        work_dir = self._work_dir()
        for path in _texts(work_dir, self._artifact_suffix):
            inside = path.relative_to(work_dir)
            if not {STORE, "wandb"} & set(inside.parts):
                folder = inside.parent.as_posix()
                self._mlflow.log_artifact(str(path), None if folder == "." else folder)
        self._mlflow.end_run()
        self._env_initialized = False


def _texts(folder: Path, suffix: str | Sequence[str]) -> list[Path]:
    ends = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    files = (path for path in sorted(folder.rglob("*")) if path.name.endswith(ends))
    return [path for path in files if path.is_file() and not path.name.startswith(".")]


def _cut_metrics(database: Path, run: str, done: int) -> None:
    """Remove the values of a run after an iteration, for which MLflow has no function."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("metrics", "latest_metrics"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND step > ?", (run, done))
        # The latest remaining values become the latest metrics.
        connection.execute(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
            "SELECT key, value, timestamp, step, is_nan, run_uuid FROM metrics AS m "
            "WHERE run_uuid = ? AND step = "
            "(SELECT MAX(step) FROM metrics WHERE run_uuid = m.run_uuid AND key = m.key) AND NOT "
            "EXISTS (SELECT 1 FROM latest_metrics WHERE run_uuid = m.run_uuid AND key = m.key) "
            "GROUP BY key",
            (run,),
        )
