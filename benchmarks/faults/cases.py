"""Running an entry: its copy of the data, the injected fault, the public command, its output."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from data import write_healthy
from inject import INJECTORS
from output import MARKER, Output, find_message, read_output
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 240  # seconds that a command may take
SHORT = {
    "train": "tools/train.py {configs}/tiny.py --work-dir {run}",
    "train_nan": "tools/train.py {configs}/tiny_nan.py --work-dir {run}",
    "finetune": "tools/train.py {configs}/tiny_finetune.py --work-dir {run} "
    "--cfg-options pretrained={weights}",
    "moco": "benchmarks/faults/mmpretrain_train.py {configs}/mmpretrain_moco.py --work-dir {run}",
    "moco_nan": "benchmarks/faults/mmpretrain_train.py {configs}/mmpretrain_nan.py "
    "--work-dir {run}",
    "classifier": "benchmarks/faults/mmpretrain_train.py {configs}/mmpretrain_classifier.py "
    "--work-dir {run}",
    "lightly": "benchmarks/faults/lightly_train.py {data}/rs --work-dir {run}",
}
# Healthy runs from which other cases start; each is run once.
STARTS = {"pretrain": "{train}", "finetune": "{finetune}", "moco": "{moco}",
          "classifier": "{classifier}"}  # fmt: skip


class Done(NamedTuple):
    """A command that has ended.

    Attributes:
        code: Exit code; None if we stopped the command.
        text: Its output.
        seconds: Its duration in seconds.
    """

    code: int | None
    text: str
    seconds: float


def expand(command: str, case: Path) -> list[str]:
    """Return the words of a command of an entry, with the interpreter in front."""
    places = dict(case=case, data=case / "data", run=case / "run", weights=case / "weights.pth",
                  configs=HERE / "configs", repo=ROOT)  # fmt: skip
    for name, long in SHORT.items():
        command = command.replace(f"{{{name}}}", long)
    for name, path in places.items():
        command = command.replace(f"{{{name}}}", str(path))
    script, *arguments = shlex.split(command)
    return [sys.executable, str(ROOT / script), *arguments]


def environment(case: Path) -> dict[str, str]:
    """Return the environment of the commands of a case."""
    paths = [str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return dict(
        os.environ,
        FAULTS_DATA=str(case / "data"),
        FAULTS_WEIGHTS=str(case / "weights.pth"),
        GERSP_DATA=str(case / "data"),
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        PYTHONUNBUFFERED="1",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )


def call(command: str, case: Path, until: int | None = None) -> Done:
    """Run a command in the folder of a case.

    Args:
        command: See :func:`expand`.
        case: The folder.
        until: Step at whose beginning the command is stopped; by default it runs to its end.
    """
    started = time.perf_counter()
    lines: list[str] = []
    process = _start(command, case)
    limit = threading.Timer(LIMIT, _end, (process,))
    limit.start()
    stopped = False
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            marker = MARKER.search(line)
            if until is not None and marker and int(marker[1]) >= until:
                stopped = True
                _end(process)
    limit.cancel()
    code = process.wait()
    return Done(None if stopped else code, "".join(lines), time.perf_counter() - started)


def _start(command: str, case: Path) -> subprocess.Popen:
    return subprocess.Popen(
        expand(command, case),
        cwd=case,
        env=environment(case),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Workshop:
    """The folder in which cases are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()

    def data(self) -> Path:
        """Return the folder of the healthy data, which is written if necessary."""
        with self._lock:
            folder = self.folder / "healthy" / "data"
            if not folder.is_dir():
                write_healthy(folder)
            return folder

    def healthy(self, start: str) -> Path:
        """Return the folder of a healthy run, which is run if necessary.

        Raises:
            RuntimeError: The healthy run failed, so that faults would prove nothing.
        """
        with self._lock:
            case = self.folder / "healthy" / start
            if (case / "done").is_file():
                return case
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(self.data(), case / "data")
            if start != "pretrain":
                shutil.copy(self.healthy("pretrain") / "weights.pth", case)
            done = call(STARTS[start], case)
            (case / "output.txt").write_text(done.text)
            if done.code != 0:
                raise RuntimeError(f"the healthy run {start} failed:\n{done.text[-3000:]}")
            if start == "pretrain":
                (export,) = (case / "run").glob("*_backbone.pth")
                shutil.copy(export, case / "weights.pth")
            (case / "done").touch()
            return case

    def prepare(self, name: str, side: str, entry: Mapping[str, Any]) -> Path:
        """Make the folder of a case: data, weights, a healthy run if requested, and the fault."""
        case = self.folder / side / name.replace("/", "-")
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(self.data(), case / "data")
        if needs_weights(entry):
            shutil.copy(self.healthy("pretrain") / "weights.pth", case)
        if entry.get("start"):
            shutil.copytree(self.healthy(entry["start"]) / "run", case / "run")
        for step in entry.get("inject") or ():
            for injector, arguments in step.items():
                INJECTORS[injector](case, **arguments)
        return case

    def run(self, name: str, side: str, entry: Mapping[str, Any]) -> tuple[Path, Done]:
        """Prepare and run a case; its ``beside`` run is started before and ended after it."""
        case = self.prepare(name, side, entry)
        if not entry.get("beside"):
            return case, call(entry["run"], case)
        with _Beside(entry["beside"], case):
            return case, call(entry["run"], case)


def needs_weights(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry uses the exported backbone of the healthy run."""
    words = ("{weights}", "{finetune}", "{classifier}", "weights.pth")
    return any(word in str(entry) for word in words)


class _Beside:
    """A run in the background, from its second step on."""

    def __init__(self, command: str, case: Path) -> None:
        self.process = _start(command, case)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            marker = MARKER.search(line)
            if marker and int(marker[1]) >= 2:
                break
        self.reader = threading.Thread(target=self.process.stdout.read, daemon=True)
        self.reader.start()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        _end(self.process)
        self.process.wait()


def no_bad_images(case: Path, done: Done) -> bool:
    """Return whether a run used every image."""
    return done.code == 0 and not list((case / "run").rglob("bad_images.txt"))


def finished(case: Path, done: Done) -> bool:
    """Return whether a run reached its end and used all images."""
    return no_bad_images(case, done) and (case / "run" / "epoch_2.pth").is_file()


def knn_works(case: Path, done: Done) -> bool:
    """Return whether kNN separates classes of different colours, as it does with right labels."""
    values = [
        value
        for file in (case / "run").rglob("scalars.json")
        for line in file.read_text().splitlines()
        for name, value in json.loads(line).items()
        if "knn" in name and "top1" in name
    ]
    return done.code == 0 and bool(values) and min(values) > 90


def resumed_at_epoch_2(case: Path, done: Done) -> bool:
    """Return whether a run resumed at the third epoch."""
    first = MARKER.search(done.text)
    return done.code == 0 and first is not None and int(first[1]) == 13


def row_names_the_change(case: Path, done: Done) -> bool:
    """Return whether the rows hold the changed list."""
    rows = case / "rows.jsonl"
    return done.code == 0 and rows.is_file() and "train.txt" in rows.read_text()


def grey_levels_kept(case: Path, done: Done) -> bool:
    """Return whether the remote-sensing rasters were used with at least 200 of 256 grey levels."""
    path = case / "run" / "pixel_scale.json"
    if not (no_bad_images(case, done) and path.is_file()):
        return False
    (limits,) = json.loads(path.read_text())["remote_sensing"]["limits"].values()
    low, high = limits[0]
    levels: set[int] = set()
    for file in (case / "data" / "rs").glob("*.png"):
        grey = (np.asarray(Image.open(file)).astype(float) - low) / (high - low) * 255
        levels.update(np.unique(grey.round().clip(0, 255)).astype(int).tolist())
    return len(levels) >= 200


PROOFS: dict[str, Callable[[Path, Done], bool]] = {
    proof.__name__: proof
    for proof in (
        no_bad_images,
        grey_levels_kept,
        finished,
        knn_works,
        resumed_at_epoch_2,
        row_names_the_change,
    )  # fmt: skip
}


def judge(entry: Mapping[str, Any], case: Path, done: Done, ours: bool) -> dict[str, Any]:
    """Return whether, how and when a fault was noticed.

    Returns:
        ``outcome`` (``refused``, ``warned``, ``harmless``, ``crashed``, ``hung`` or ``unnoticed``),
        ``when`` (``before``, ``step`` or ``never``), ``step`` and ``message``.
    """
    output: Output = read_output(done.text.replace(str(case), ""))  # names the fault
    message = find_message(output, entry["noticed"])
    hung = done.code == -signal.SIGKILL
    if message is None:
        if entry.get("harmless") and PROOFS[entry["harmless"]](case, done):
            return dict(outcome="harmless", when="before", step=None, message="")
        last = output.messages[-1].text if output.messages else ""
        outcome = "hung" if hung else "crashed" if done.code else "unnoticed"
        return dict(outcome=outcome, when="never", step=None, message=last if done.code else "")
    outcome = "hung" if hung else "refused" if done.code else "warned"
    if ours and output.crashed:
        outcome = "crashed"  # a stack trace is not a message
    late = bool(entry.get("result")) and _has_result(case / entry["result"])
    when = "step" if message.step or late else "before"
    step = message.step or None
    return dict(outcome=outcome, when=when, step=step, message=message.text[:300])


def _has_result(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.stat().st_size > 0)
