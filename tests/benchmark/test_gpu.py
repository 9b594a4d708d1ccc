"""benchmarks/gpu: its rehearsal on a CPU, faults that it has to notice, and its bundle."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.forked import SUBPROCESS
from tests.support.smoke import ROOT, forget_runs, write_images

FOLDER = ROOT / "benchmarks" / "gpu"
FIRST_PART = (
    "environment", "fp64_training", "fp32_training", "queue_and_loss", "colour", "crop",
    "preprocessor", "no_sync", "amp", "streams", "resume_and_export", "deterministic",
)  # fmt: skip
OTHERS = ("batch_sweep", "fed", "where_time_goes", "kept_images", "plan")


@pytest.fixture(autouse=True)
def folders_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "speed"))
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> Any:
    return importlib.import_module(name)


def load_run() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in the layout of demo/prepare_demo.py."""
    folder = tmp_path_factory.mktemp("gpu") / "demo"
    write_images(folder / "remote_sensing" / "site", 8, size=(64, 64))
    names = [f"remote_sensing/site/{number:03d}.jpg" for number in range(8)]
    (folder / "remote_sensing.txt").write_text("\n".join(names) + "\n")
    for label, count in ((22, 1), (99, 2)):
        write_images(folder / "natural" / f"{label:04d}", count, seed=label, size=(90, 120))
    for part in ("train", "test"):
        write_images(folder / "sites" / part / "a", 4, seed=7, size=(64, 64))
        lines = [f"sites/{part}/a/{number:03d}.jpg 0\n" for number in range(4)]
        (folder / f"sites_{part}.txt").write_text("".join(lines))
    (folder / "scenes" / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (25, 32, 3), np.uint8)
    scene = Image.fromarray(pixels).resize((640, 500), Image.Resampling.BICUBIC)
    scene.save(folder / "scenes" / "images" / "scene.png")
    (folder / "licenses").mkdir()
    (folder / "licenses" / "LICENSE").write_text("free\n")
    return folder


@pytest.fixture(scope="module")
def packed(demo: Path) -> Path:
    """A bundle of images alone: all other packages are installed."""
    spec = importlib.util.spec_from_file_location("gpu_bundle", FOLDER / "bundle.py")
    bundle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bundle)
    bundle.SPEED_IMAGES = 100_000
    folder = demo.parent / "bundle"
    folder.mkdir()
    bundle.pack(demo, None, folder / "images.tar")
    return folder


@pytest.fixture
def rehearse(packed, tmp_path, monkeypatch) -> Callable[..., int]:
    """Call the command at its tiny size; its children are forks. It returns the exit code."""
    run = load_run()
    monkeypatch.setattr(run, "subprocess", SUBPROCESS)
    words = ("--rehearse", "--out", tmp_path, "--bundle", packed)
    return lambda *options: run.main(list(map(str, (*words, *options))))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------- rehearsal
@pytest.mark.slow
def test_every_measurement_of_the_first_part_passes_on_a_cpu(rehearse, tmp_path, capsys):
    names = [*FIRST_PART, *OTHERS]
    code = rehearse("--parts", 1, 2, 3, "--only", *names)
    rows = rows_of(tmp_path)
    wrong = [row for row in rows if row["status"] not in ("ok", "done", "skipped")]
    assert code == 0 and not wrong, (wrong, capsys.readouterr().out[-2000:])
    assert [row["name"] for row in rows if row["status"] == "done"] == names
    skipped = [row["why"] for row in rows if row["status"] == "skipped"]
    assert all(why.startswith("this version has no gersp plan") for why in skipped)
    for row in rows[1:]:
        assert re.fullmatch(r"\d+ cores of .+", row["hardware"])
        assert row["versions"]["torch"] == torch.__version__
    checked = {(row["name"], row["what"]): row["values"] for row in rows if "bounds" in row}
    # A CPU compared with itself takes the same steps, and resumes exactly.
    assert set(checked["fp64_training", "symmetric"].values()) == {0}
    assert checked["resume_and_export", "exported backbone"]["wrong_tensors"] == 0
    changes = checked["resume_and_export", "shares of what the second epoch changed"]
    assert changes["resumed"] == 0 and changes["equal_tensors_of_resumed"] == 1
    assert 0 < checked["amp", "bf16 against fp32, first step"]["gradient_angle"] < 1
    runs = {row["what"]: row["iterations"] for row in rows if "iterations" in row}
    assert runs == {f"{what}, error": 6 for what in ("fp32", "bf16", "fp32, images kept")}
    speeds = [row for row in rows if row["name"] == "batch_sweep" and "pairs_per_s" in row]
    assert [row["batch"] for row in speeds] == [2, 4]
    assert all(row["pairs_per_s"] > 0 and row["tflops"] > 0 for row in speeds)
    assert (tmp_path / "summary.txt").read_text().count("\n") == len(rows)


FAULTS = """
from measuring import measurement

@measurement(part=1, limit=30)
def wrong(ctx):
    ctx.check("a value", dict(error=2.0), dict(error=1.0))
    ctx.check("no number", dict(error=float("nan")), dict(error=1.0))

@measurement(part=1, limit=30)
def raising(ctx):
    raise ValueError("a planted error")

@measurement(part=1, limit=30)
def last(ctx):
    ctx.check("a value", dict(error=0.5), dict(error=1.0))
"""


def test_faults_are_recorded_and_the_next_measurement_runs(rehearse, tmp_path, capsys):
    file = tmp_path / "faults.py"
    file.write_text(FAULTS)
    assert rehearse("--parts", 1, "--measurements", file) == 1
    found = [(row["name"], row["status"]) for row in rows_of(tmp_path)]
    assert found == [
        ("start", "ok"), ("wrong", "fail"), ("wrong", "fail"), ("wrong", "done"),
        ("raising", "error"), ("last", "ok"), ("last", "done"),
    ]  # fmt: skip
    error = next(row for row in rows_of(tmp_path) if row["name"] == "raising")
    assert error["error"] == "ValueError: a planted error"
    end = capsys.readouterr().out.split("not ok:")[1].split("\n")
    assert [line.split()[2] for line in end if line] == ["wrong", "wrong", "raising"]


def test_measurements_are_chosen_by_name_and_part():
    run = load_run()
    args = run.parse_args(["--only", "amp", "no_sync"])
    assert [entry.name for entry in run.load_measurements(args, [1])] == ["no_sync", "amp"]
    args.only = ["no_sink"]
    text = "error: --only no_sink: the measurements are environment, fp64_training,"
    with pytest.raises(SystemExit, match=text):
        run.load_measurements(args, [1])


# ----------------------------------------------------------------------------------- the supervisor
CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from gpu_run_copy import CONTEXT_LOST, NO_TIME, Progress, Results
progress, results = Progress(Path({scratch!r})), Results(Path({scratch!r}))
for name in ("crash", "hang", "context", "long"):
    if name in progress.finished():
        continue
    hangs = name == "hang"
    progress.begin(1, name, time.time() + (0.1 if hangs else 60), "its limit" if hangs else NO_TIME)
    if name == "crash":
        os._exit(3)
    if name == "context":
        results.add(1, name, "error", error="an illegal memory access")
        progress.finish(name)
        os._exit(CONTEXT_LOST)
    time.sleep(600)
"""


def test_a_crash_a_hang_a_lost_context_and_the_end_of_the_time(tmp_path, monkeypatch):
    run = load_run()
    (tmp_path / "gpu_run_copy.py").write_text((FOLDER / "run.py").read_text())
    program = CHILD.format(folder=str(tmp_path), scratch=str(tmp_path))
    results, progress = run.Results(tmp_path), run.Progress(tmp_path)
    monkeypatch.setattr(run, "GRACE", 0.1)
    begin, calls = time.time(), 1
    command = [sys.executable, "-c", program]
    while run.run_child(command, dict(os.environ), begin + 4, results, progress):
        calls += 1
    assert calls == 4 and time.time() - begin < 30
    found = [(row["name"], row["status"]) for row in results.rows()]
    assert found == [
        ("crash", "error"), ("hang", "timeout"), ("context", "error"), ("long", "unfinished"),
    ]  # fmt: skip
    assert results.rows()[0]["error"] == "the process ended with 3"


def test_half_a_line_of_a_killed_child_hides_no_other_line(tmp_path):
    results = load_run().Results(tmp_path)
    results.add(1, "one", "ok", value=1)
    with open(results.path, "a") as file:
        file.write('{"part": 1, "na')
    results.add(1, "two", "ok")
    results.add(1, "three", "ok")
    assert [row["name"] for row in results.rows()] == ["one", "two", "three"]


def test_children_end_with_the_supervisor():
    run = load_run()
    with pytest.raises(KeyboardInterrupt), run.killed_with_us(["sleep", "600"]) as child:
        raise KeyboardInterrupt
    assert child.returncode == -signal.SIGKILL


def test_time_is_divided_and_what_is_left_goes_on():
    run = load_run()
    assert run.part_ends([2], 100.0, 60) == {2: 160.0}
    ends = run.part_ends([4, 1, 2, 3], 0.0, 600)
    assert list(ends) == [1, 2, 3, 4] and ends[4] == pytest.approx(600)
    assert ends[1] == pytest.approx(210) and ends[2] == pytest.approx(480)


# ------------------------------------------------------------------------------- faults of a device
@pytest.fixture
def context(packed, tmp_path):
    results = load_run().Results(tmp_path)
    yield load("measuring").Context(results, packed, tmp_path, rehearsal=True)
    forget_runs()


def statuses(context: Any, name: str) -> list[tuple[str, str]]:
    """Run a measurement in this process; return the lines of its checks."""
    correctness, measuring = load("correctness"), load("measuring")
    entry = measuring.Measurement(1, name, 60, getattr(correctness, name))
    context.begin(entry, time.time() + 60)
    measuring.reset(context)
    entry.function(context)
    return [(row["what"], row["status"]) for row in context.results.rows()]


def test_a_queue_that_is_written_wrongly_on_the_device_fails(context, monkeypatch):
    correctness, calls = load("correctness"), []
    enqueue = correctness.enqueue

    def every_second_time(queue, pointer, keys):
        calls.append(1)
        enqueue(queue, pointer, keys if len(calls) % 2 else keys.flip(0))

    monkeypatch.setattr(correctness, "enqueue", every_second_time)
    found = dict(statuses(context, "queue_and_loss"))
    assert [what for what, status in found.items() if status == "fail"] == [
        "7 keys into 20", "20 keys into 20", "47 keys into 20", "256 keys into 65536",
    ]  # fmt: skip
    assert found["InfoNCE in fp32, TF32 False"] == "ok"


@pytest.mark.parametrize("name, function", [("colour", "recolour_batch"), ("crop", "crop_batch")])
def test_views_that_are_three_levels_off_fail(context, monkeypatch, name, function):
    """The first call of ``crop`` is the CPU's; calls of ``colour`` alternate."""
    correctness, calls = load("correctness"), []
    right = getattr(correctness, function)

    def brighter(*args):
        calls.append(1)
        wrong = len(calls) > 1 if name == "crop" else len(calls) % 2
        return right(*args).clamp(max=252) + (3 if wrong else 0)

    monkeypatch.setattr(correctness, function, brighter)
    assert {status for _, status in statuses(context, name)} == {"fail"}


# --------------------------------------------------------------------------------------- the bundle
def write_wheel(folder: Path, name: str, tag: str, version: str = "1.0", **files: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "")
        for file, text in files.items():
            archive.writestr(file.replace("__", "/") + ".py", text)


def test_only_what_is_missing_for_this_python_is_unpacked(tmp_path):
    bundle, wheels, stubs = load("bundle"), tmp_path / "wheels", tmp_path / "stubs"
    wheels.mkdir()
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    write_wheel(wheels, "gpu_pure", "py3-none-any", gpu_pure__part="value = 1")
    write_wheel(wheels, "gpu_two", "py2.py3-none-any", gpu_two="value = 2")
    write_wheel(wheels, "gpu_compiled", f"{python}-{python}-manylinux_2_17_x86_64", gpu_c="")
    write_wheel(wheels, "gpu_other", "cp27-cp27-manylinux_2_17_x86_64", gpu_other="")
    write_wheel(wheels, "numpy", "py3-none-any", "99.0", numpy__part="")
    write_wheel(wheels, "pydantic", "py3-none-any", "1.9", pydantic__part="")
    write_wheel(wheels, "typing_extensions", "py3-none-any", "99.0", typing_extensions="")
    for name in ("torch", "gpu_stub"):
        (stubs / name).mkdir(parents=True)
        (stubs / name / "__init__.py").write_text("")
    found = bundle.install(tmp_path, tmp_path / "site", stubs)
    assert found == [
        "gpu_compiled", "gpu_pure", "gpu_two", "typing_extensions", "stub of gpu_stub",
    ]  # fmt: skip
    there = {path.name for path in (tmp_path / "site").iterdir() if "dist-info" not in path.name}
    assert there == {
        "gpu_c.py", "gpu_pure", "gpu_two.py", "typing_extensions.py", "gpu_stub",
    }  # fmt: skip


@pytest.mark.parametrize(
    "absent, message",
    [
        ({"torchvision", "numpy"}, r"python\S* has no torchvision, numpy; use the Python that has"),
        ({"yaml"}, r"has no wheels for Python 3\.\d+, which lacks PyYAML; .* for 3.11 and 3.12$"),
    ],
)
def test_a_python_that_the_bundle_does_not_serve_is_one_line(
    tmp_path, monkeypatch, absent, message
):
    bundle = load("bundle")
    present = bundle.is_present
    monkeypatch.setattr(bundle, "is_present", lambda name: name not in absent and present(name))
    for name in ("wheels", "stubs"):
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match=message):
        bundle.install(tmp_path, tmp_path / "site", tmp_path / "stubs")


def test_workers_fit_into_shared_memory(monkeypatch):
    measuring = load("measuring")
    batch = 256 * 3 * 3 * 224**2  # bytes of three views

    def shared(free: int) -> None:
        of = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
        monkeypatch.setattr(measuring.os, "statvfs", lambda path: of)

    shared(64 * 2**30)
    assert measuring.workers_that_fit(15, 256, 224) == 15
    shared(10 * batch)  # Each worker has three batches there, and a tenth stays free.
    assert measuring.workers_that_fit(15, 256, 224) == 3
    shared(64 * 2**20)
    assert measuring.workers_that_fit(15, 256, 224) == 0
    assert measuring.workers_that_fit(2, 32, 64) == 2


def test_the_studys_lists_keep_their_length_and_name_images_that_are_packed(packed):
    with tarfile.open(packed / "images.tar") as tar:
        names = set(tar.getnames())
        lists = {
            Path(name).stem: tar.extractfile(name).read().decode().splitlines()
            for name in names
            if name.startswith("mini_gpu/")
        }
    assert {name: len(lines) for name, lines in lists.items()} == dict(
        remote_sensing=16_200, natural=16_200, natural_paths=16_200, both=32_400
    )
    for lines in lists.values():
        assert {line.split()[0] for line in lines} <= names
    assert (
        len(set(lists["natural"])) == len(set(lists["natural_paths"])) == 72
        and len(set(lists["remote_sensing"])) == 8
    )
    assert {"demo/sites_train.txt", "demo/sites/test/a/003.jpg", "licenses/LICENSE"} <= names


def test_a_part_of_the_studys_images_is_the_same_in_every_list(tmp_path, demo, monkeypatch):
    bundle = load("bundle")
    data = tmp_path / "data"
    write_images(data / "eurosat", 40, size=(64, 64))
    lines = [f"eurosat/{number:03d}.jpg" for number in range(40)]
    (data / "mini_gpu").mkdir()
    for name, content in dict(
        remote_sensing=lines[:20],
        natural=[f"{line} {n % 3}" for n, line in enumerate(lines[20:30])],
        both=lines[:30],
        eurosat_train=[f"../{line} 1" for line in lines[30:]],
    ).items():
        (data / "mini_gpu" / f"{name}.txt").write_text("\n".join(content) + "\n")
    monkeypatch.setattr(bundle, "SPEED_IMAGES", 1)
    monkeypatch.setattr(bundle, "IMAGES", 150_000)
    bundle.pack(demo, data, tmp_path / "images.tar")
    assert (tmp_path / "images.tar").stat().st_size <= 160_000
    with tarfile.open(tmp_path / "images.tar") as tar:
        names = set(tar.getnames())
        taken = {Path(n).stem: tar.extractfile(n).read().decode().split("\n")[:-1]
                 for n in names if n.startswith("mini_gpu/")}  # fmt: skip
    packed_images = {name for name in names if name.startswith("eurosat/")}
    assert 0 < len(packed_images) < 40
    assert len(taken["remote_sensing"]) == 20 and len(taken["both"]) == 30
    for name, start_, end in (("remote_sensing", 0, 20), ("natural", 20, 30), ("both", 0, 30)):
        expected = packed_images & set(lines[start_:end])
        assert {line.split()[0] for line in taken[name]} == expected
    assert {line[3:-2] for line in taken["eurosat_train"]} == packed_images & set(lines[30:])
