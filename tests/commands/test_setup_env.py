"""tools/setup_env.sh: repairs, its lock, the choice of an mmcv, and its one-line errors."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "setup_env.sh"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def start(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "GERSP_PYTHON": sys.executable, **env},
    )


@pytest.mark.parametrize("script", ["setup_env.sh", "run_tests.sh", "dist_train.sh"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "tools" / script)], check=True)


def test_help_lists_options_and_examples() -> None:
    done = start("--help")
    assert done.returncode == 0
    for word in ("--downstream", "--tests", "--demo", "--docs", "GERSP_VENV", "Examples:"):
        assert word in done.stdout
    usage = subprocess.run(
        ["bash", str(ROOT / "tools" / "run_tests.sh"), "--help"], capture_output=True, text=True
    )
    assert 'bash tools/run_tests.sh -m "not slow"' in usage.stdout


def test_no_python_is_one_line() -> None:
    done = start(GERSP_PYTHON="/nowhere/python3")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup_env: no Python >= 3.10 with the venv module found")
    assert "GERSP_PYTHON=/path/to/python" in line


def test_a_folder_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = start(GERSP_VENV=str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} exists and is no Python environment" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.slow
def test_without_network_broken_environment_gives_one_line(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/nowhere/python3")  # its Python was removed
    done = start(
        GERSP_VENV=str(venv),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_CACHE_DIR="1",
        PIP_RETRIES="0",
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the package index could not be reached" in line
    assert "build tools" in line and str(tmp_path / "venv.log") in line
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "--version"], check=True)


def write_distribution(site: Path, name: str, files: tuple[str, ...]) -> Path:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text("")
    listed = [*files, f"{name}/__pycache__/a.cpython-311.pyc"]  # byte code may come and go
    (info / "RECORD").write_text("".join(f"{file},sha256=x,0\n" for file in listed))
    (info / "METADATA").write_text("")
    (info / "INSTALLER").write_text("pip\n")
    return info


def test_damaged_distributions(module, tmp_path: Path) -> None:
    write_distribution(tmp_path, "whole", ("whole/a.py", "whole/b.py"))
    gone = write_distribution(tmp_path, "gone", ("gone/a.py", "gone/b.py"))
    (tmp_path / "gone" / "b.py").unlink()
    cut = write_distribution(tmp_path, "cut", ("cut/a.py",))
    (cut / "RECORD").unlink()
    unfinished = write_distribution(tmp_path, "unfinished", ("unfinished/a.py",))
    (unfinished / "INSTALLER").unlink()
    left = tmp_path / "~orch"
    left.mkdir()
    assert set(module.damaged_distributions(tmp_path)) == {gone, cut, unfinished, left}


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "WARNING: Retrying ... NewConnectionError\nERROR: No matching distribution found for x",
            "the package index could not be reached",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Collecting x\nERROR: x has a problem\nnotice: hm", "ERROR: x has a problem"),
        ("nothing useful", "the command ended with status 7"),
    ],
)
def test_diagnose(module, log: str, said: str) -> None:
    assert module.diagnose(log.splitlines(), 7).startswith(said)


def test_failed_step_names_itself_and_the_log(module, tmp_path: Path) -> None:
    setup = module.Setup(tmp_path / "venv", downstream=False, extras=[])
    setup.step = "step 2/5 (build tools)"
    code = "print('ERROR: no such package'); raise SystemExit(3)"
    with pytest.raises(module.SetupError) as caught:
        setup.run([sys.executable, "-c", code])
    log = tmp_path / "venv.log"
    assert str(caught.value) == (
        f"step 2/5 (build tools) failed: ERROR: no such package   [log: {log}]"
    )
    assert "ERROR: no such package" in log.read_text()


def test_sign_of_life_during_a_silent_command(
    module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    setup = module.Setup(tmp_path / "venv", downstream=False, extras=[])
    code = "import time; print('Downloading big.whl', flush=True); time.sleep(2.5)"
    assert setup.run([sys.executable, "-c", code]) == ["Downloading big.whl"]
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) >= 1
    assert all(line.strip().endswith("s  Downloading big.whl") for line in shown)


def test_stamp_counts_only_for_the_same_requirements(
    module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = module.Setup(tmp_path, downstream=True, extras=["demo"])
    assert setup.tasks() == ["pretraining", "detection", "rotated", "segmentation", "demo"]
    assert setup.stamped() == set()
    stamp = {"fingerprint": setup.fingerprint(), "tasks": ["pretraining"]}
    (tmp_path / module.STAMP).write_text(json.dumps(stamp))
    assert setup.stamped() == {"pretraining"}
    assert not setup.ready()  # detection is not installed yet
    (tmp_path / module.STAMP).write_text("{half a fi")
    assert setup.stamped() == set()
    (tmp_path / module.STAMP).write_text(json.dumps(stamp))
    monkeypatch.setattr(module.platform, "python_version", lambda: "3.99.0")
    assert setup.stamped() == set()


def test_second_run_waits_for_the_first(
    module, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    order = []

    def first() -> None:
        with module.exclusive(tmp_path / "venv"):
            order.append("first in")
            time.sleep(1.5)
            order.append("first out")

    thread = threading.Thread(target=first)
    thread.start()
    while not order:
        time.sleep(0.01)
    with module.exclusive(tmp_path / "venv"):
        order.append("second in")
    thread.join()
    assert order == ["first in", "first out", "second in"]
    assert f"another run is working on {tmp_path / 'venv'}, waiting" in capsys.readouterr().out


def test_killed_run_leaves_the_lock_to_its_command(module, tmp_path: Path) -> None:
    """An orphaned pip must be over before the next run starts."""
    child = (
        f"import time; open({str(tmp_path / 'started')!r}, 'w').close(); time.sleep(3); "
        f"open({str(tmp_path / 'ended')!r}, 'w').close()"
    )
    holder = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "from pathlib import Path\n"
        "import setup_env\n"
        f"venv = Path({str(tmp_path / 'venv')!r})\n"
        "with setup_env.exclusive(venv) as lock:\n"
        f"    setup_env.Setup(venv, False, [], lock).run([sys.executable, '-c', {child!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", holder])
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    with module.exclusive(tmp_path / "venv"):
        assert (tmp_path / "ended").exists()


class FakeMMCV:
    """Stands in for pip: writes wheels, and says whether the installed one has operators."""

    def __init__(self, module, tmp_path: Path, monkeypatch, output: list[str], works: list[bool]):
        self.setup = module.Setup(tmp_path / "venv", downstream=True, extras=[])
        self.folder = tmp_path / "wheels"
        self.built: list[list[str]] = []
        self.installed: list[str] = []
        answers = iter([False, *works])
        monkeypatch.setattr(self.setup, "has_ops", lambda: next(answers))
        monkeypatch.setattr(self.setup, "wheel_folder", lambda: self.folder)

        def run(command: list, env: dict) -> list[str]:
            self.built.append([str(part) for part in command])
            self.env = env
            (self.folder / f"onedl_mmcv-{len(self.built)}.whl").write_text("")
            return output if len(self.built) == 1 else ["Building wheel for onedl-mmcv"]

        monkeypatch.setattr(self.setup, "run", run)
        monkeypatch.setattr(
            self.setup, "pip", lambda *arguments: self.installed.append(arguments[-1].name)
        )


def test_prebuilt_mmcv_replaces_one_without_operators(module, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/links")
    monkeypatch.delenv("MAX_JOBS", raising=False)
    fake = FakeMMCV(module, tmp_path, monkeypatch, ["Saved onedl_mmcv.whl"], [True])
    fake.setup.install_ops()
    assert fake.installed == ["onedl_mmcv-1.whl"]
    (command,) = fake.built
    assert "--no-build-isolation" in command and "--no-cache-dir" in command
    assert "onedl-mmcv==2.3.6" in command
    assert fake.env["MMCV_WITH_OPS"] == "1" and fake.env["CFLAGS"] == "-g0 -O2"
    assert fake.env["MAX_JOBS"] == str(os.cpu_count())
    assert fake.env["PIP_FIND_LINKS"] == f"/some/links {fake.folder}"


def test_prebuilt_mmcv_of_another_torch_is_compiled_anew(module, tmp_path, monkeypatch) -> None:
    fake = FakeMMCV(module, tmp_path, monkeypatch, ["Saved onedl_mmcv.whl"], [False, True])
    fake.setup.install_ops()
    assert "--no-binary=onedl-mmcv" not in fake.built[0]
    assert "--no-binary=onedl-mmcv" in fake.built[1]
    assert [path.name for path in fake.folder.glob("*.whl")] == ["onedl_mmcv-2.whl"]


def test_compiled_mmcv_that_does_not_load_is_an_error(module, tmp_path, monkeypatch) -> None:
    fake = FakeMMCV(module, tmp_path, monkeypatch, ["Building wheel for onedl-mmcv"], [False])
    with pytest.raises(module.SetupError, match="operators do not load; see: "):
        fake.setup.install_ops()
    assert len(fake.built) == 1  # compiling for 20 minutes once more would change nothing
    assert not list(fake.folder.glob("*.whl"))


def test_steps_follow_the_options(module, tmp_path: Path) -> None:
    def names(**options) -> list[str]:
        return [name for name, _ in module.Setup(tmp_path, **options).plan()]

    core = names(downstream=False, extras=[])
    assert core[0] == "environment" and core[-1] == "gersp_mm" and len(core) == 5
    full = names(downstream=True, extras=["demo", "tests"])
    assert [name for name in full if name not in core] == [
        "compiled operators of mmcv",
        "mmdet, mmrotate, mmsegmentation",
        "demo and tests",
    ]
