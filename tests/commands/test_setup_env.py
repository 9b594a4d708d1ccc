"""tools/setup_env.sh: what it keeps, what it refuses to mix, repairs, and its one-line errors."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "setup_env.sh"
ORIGINAL = {"torch": "2.1.2", "torchvision": "0.16.2", "numpy": "1.26.4", "mmengine": "0.10.7",
            "mmcv": "2.1.0", "mmpretrain": "1.2.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2",
            }  # fmt: skip
FORKS = {"torch": "2.11.0", "torchvision": "0.26.0", "onedl-mmengine": "0.10.12",
         "onedl-mmcv": "2.3.6", "onedl-mmpretrain": "1.3.6"}  # fmt: skip


def kept(torch: str = "2.11.0") -> dict[str, str]:
    """The requirements of a torch that stays."""
    return {"torch": f"torch=={torch},>=2.3", "torchvision": "torchvision>=0.18"}


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    sys.path.remove(str(ROOT / "tools"))
    return loaded


def inside(module, monkeypatch, folder: Path, packages: dict[str, str], note: str = "") -> Path:
    """Let the installer run in an environment of packages as pip lists them."""
    environment(folder, packages, note)
    monkeypatch.setattr(module, "OWN", folder)
    monkeypatch.setattr(module, "PYTHON", folder / "bin" / "python")
    monkeypatch.setattr(module, "NOTE", folder / "gersp_setup.txt")
    monkeypatch.setattr(module.sys, "path", [str(folder / "lib" / "python3.11" / "site-packages")])
    return folder


def start(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "GERSP_PYTHON": sys.executable, **env},
    )


def environment(folder: Path, packages: dict[str, str], note: str = "") -> Path:
    """A folder of packages as pip lists them; there is nothing in them."""
    site = folder / "lib" / "python3.11" / "site-packages"
    for name, version in packages.items():
        write_distribution(site, name, (f"{name}/a.py",), version)
    if note:
        (folder / "gersp_setup.txt").write_text(note)
    return folder


def site_packages(venv: Path) -> Path:
    (site,) = venv.glob("lib/python3.*/site-packages")
    return site


def write_distribution(site: Path, name: str, files: tuple[str, ...], version: str = "1.0") -> Path:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text("")
    listed = [*files, f"{name}/__pycache__/a.cpython-311.pyc"]  # byte code may come and go
    (info / "RECORD").write_text("".join(f"{file},sha256=x,0\n" for file in listed))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    return info


@pytest.mark.parametrize("script", ["setup_env.sh", "run_tests.sh", "dist_train.sh"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "tools" / script)], check=True)


def test_help_lists_options_and_examples() -> None:
    done = start("--help")
    assert done.returncode == 0
    for word in ("--downstream", "--tests", "--demo", "--docs", "--stack {forks,original}",
                 "--compile-ops", "GERSP_VENV", "Examples:"):  # fmt: skip
        assert word in done.stdout
    usage = subprocess.run(
        ["bash", str(ROOT / "tools" / "run_tests.sh"), "--help"], capture_output=True, text=True
    )
    assert 'bash tools/run_tests.sh -m "not slow"' in usage.stdout


def test_no_python_is_one_line(tmp_path: Path) -> None:
    done = start(GERSP_PYTHON="/nowhere/python3", GERSP_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup_env: no Python >= 3.10 with the venv module found")
    assert "GERSP_PYTHON=/path/to/python" in line


def test_a_folder_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = start(GERSP_VENV=str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} is no Python environment" in done.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"


def damage_pip(venv: Path) -> None:
    """What a pip that was cut off leaves: a library that is listed and gone."""
    site = site_packages(venv)
    write_distribution(site, "pip", ("pip/__init__.py", "pip/__main__.py"), "99.0")
    (site / "pip" / "__main__.py").unlink()


def damage_python(venv: Path) -> None:
    """A Python that was removed, and a link that the environment still runs by."""
    (venv / "bin" / "python3.x").symlink_to((venv / "bin" / "python").resolve())
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "starter", "next_pin"),
    [(damage_pip, "python", "pip==99.0"), (damage_python, "python3.x", "torch==2.11.0")],
)
def test_without_network_an_activated_environment_gets_its_python_and_pip_back(
    tmp_path: Path, damage, starter: str, next_pin: str
) -> None:
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    damage(venv)
    done = start(
        GERSP_VENV=str(venv), GERSP_PYTHON=str(venv / "bin" / starter),
        PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=os.devnull, PIP_NO_CACHE_DIR="1", PIP_RETRIES="0",
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("setup_env: installing failed, see above: repeat it to go on there")
    assert f"ERROR: No matching distribution found for {next_pin}" in done.stderr
    assert not python.resolve().is_relative_to(venv)
    pip = subprocess.run([str(python), "-m", "pip", "--version"], text=True, capture_output=True)
    assert str(site_packages(venv)) in pip.stdout and "99.0" not in pip.stdout


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "precious.txt").write_text("")  # it stops there, once it has the lock
    with open(tmp_path / "venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["bash", str(SCRIPT)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "GERSP_PYTHON": sys.executable, "GERSP_VENV": str(venv)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == f"another run is working on {venv}, waiting for it\n"
        time.sleep(0.3)
        assert process.poll() is None
    assert "is no Python environment" in process.communicate(timeout=60)[1]


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_waits_for_nobody_and_leaves_no_lock(tmp_path: Path, option: str) -> None:
    with open(tmp_path / "venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = start(option, GERSP_VENV=str(tmp_path / "venv"))
    assert done.returncode == 0 and done.stdout.startswith("usage: setup_env.sh")
    start(option, GERSP_VENV=str(tmp_path / "new" / "venv"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("there", "free", "said"),
    [
        ({}, 1.5e9, "{venv} has 1.5 GB free; PyTorch with CUDA needs about 7\n"),
        ({}, 8e9, ""),
        ({"torch": "2.11.0"}, 1.5e9, ""),  # the large part is there
    ],
)
def test_a_small_disk_is_named_before_pip_starts(
    module, tmp_path, monkeypatch, capsys, there, free, said
) -> None:
    inside(module, monkeypatch, tmp_path, there)
    setup = module.Setup("forks", ["pretraining"], [])
    usage = module.shutil._ntuple_diskusage(10e9, 10e9 - free, free)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    setup.pins()
    assert capsys.readouterr().out == said.format(venv=tmp_path)


def test_damaged_distributions(module, tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    write_distribution(site, "whole", ("whole/a.py", "whole/b.py"))
    write_distribution(site, "gone", ("gone/a.py", "gone/b.py"))
    (site / "gone" / "b.py").unlink()
    cut = write_distribution(site, "cut", ("cut/a.py",), "2.1+cpu")
    (cut / "RECORD").unlink()
    other = write_distribution(site, "of_conda", ())  # neither pip's nor uv's: not ours to repair
    (other / "RECORD").unlink()
    (other / "INSTALLER").write_text("conda")
    checkout = write_distribution(site, "checkout", ("x.pth",))
    (checkout / "direct_url.json").write_text("{}")
    (site / "x.pth").unlink()
    assert set(module.damaged_distributions(site)) == {"gone==1.0", "cut==2.1+cpu"}
    assert not cut.exists() and other.exists()


@pytest.mark.parametrize(
    ("there", "note", "asked", "stack"),
    [
        ({}, "", None, "forks"),
        ({}, "", "original", "original"),
        ({"torch": "2.14.1", "torchvision": "0.29.1"}, "", None, "forks"),
        (FORKS, "", None, "forks"),
        (ORIGINAL, "", "original", "original"),
        (ORIGINAL, "original abc", None, "original"),  # made here, and run again
    ],
)
def test_the_family_that_is_there_goes_on(
    module, tmp_path, monkeypatch, there, note, asked, stack
) -> None:
    inside(module, monkeypatch, tmp_path, there, note)
    assert run_main(module, monkeypatch, *(["--stack", asked] if asked else [])).stack == stack


@pytest.mark.parametrize(
    ("there", "asked", "said"),
    [
        (ORIGINAL, None, ["holds the original releases of OpenMMLab (mmengine mmcv mmpretrain "
                          "mmdet mmsegmentation). Nothing is replaced", "--stack original",
                          "GERSP_VENV=.venv-forks)"]),
        (FORKS, "original", ["holds the maintained forks", "--stack forks"]),
        ({**FORKS, "mmcv-lite": "2.1.0"}, None,
         ["original releases of OpenMMLab (mmcv-lite). Nothing is replaced",
          "pip uninstall -y mmcv-lite)"]),
    ],
)  # fmt: skip
def test_families_are_never_mixed(module, tmp_path, monkeypatch, there, asked, said) -> None:
    venv = inside(module, monkeypatch, tmp_path, there)
    before = sorted(venv.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run_main(module, monkeypatch, *(["--stack", asked] if asked else []))
    for words in said:
        assert words in str(caught.value)
    assert sorted(venv.rglob("*")) == before


@pytest.mark.parametrize(
    ("there", "note", "stack", "wheel", "pins"),
    [
        # on a bare machine, with and without a compiled wheel
        ({}, "", "forks", False, FORKS),
        ({}, "", "original", True, {k: v for k, v in ORIGINAL.items() if k not in
                                    ("numpy", "mmdet", "mmsegmentation")}),
        ({}, "", "original", False,
         {"torch": "2.1.2", "torchvision": "0.16.2", "mmengine": "0.10.7", "mmcv-lite": "2.1.0",
          "mmpretrain": "1.2.0"}),
        # what works is kept; pip keeps or finds the torchvision that fits the torch
        ({"torch": "2.14.1"}, "", "forks", False, {**FORKS, **kept("2.14.1")}),
        ({"torch": "2.14.1", "torchvision": "0.26.0"}, "forks made", "forks", False,
         {**FORKS, **kept("2.14.1")}),
        ({**FORKS, "onedl-mmcv": "2.3.5"}, "", "forks", False,
         {**FORKS, **kept(), "onedl-mmcv": "2.3.5"}),
        # an environment made here follows the table
        ({**FORKS, "onedl-mmcv": "2.3.5"}, "forks made", "forks", False, {**FORKS, **kept()}),
        # too old; where it is torch, pip refuses before it changes anything
        ({**FORKS, "onedl-mmengine": "0.10.7"}, "", "forks", False, {**FORKS, **kept()}),
        ({"torch": "2.1.2"}, "", "forks", False, {**FORKS, **kept("2.1.2")}),
    ],
)  # fmt: skip
def test_pins(module, tmp_path, monkeypatch, there, note, stack, wheel, pins) -> None:
    inside(module, monkeypatch, tmp_path, there)
    setup = module.Setup(stack, ["pretraining"], note.split())
    asked = []
    monkeypatch.setattr(setup, "pip", lambda *words, quiet: asked.append(words) or wheel)
    assert setup.pins() == [
        version if version.startswith(name) else f"{name}=={version}"
        for name, version in pins.items()
    ]
    assert len(asked) == (stack == "original")  # a package of the forks has no twin


def test_rotated_detection_is_left_out_where_the_family_has_none(
    module, tmp_path, monkeypatch
) -> None:
    inside(module, monkeypatch, tmp_path, {})
    setup = module.Setup("original", ["pretraining", "detection", "rotated"], [])
    assert setup.tasks == ["pretraining", "detection"]


class Recorder:
    """Stands in for everything that a Setup starts."""

    torch = "ok"
    looked = 0

    def __init__(self, module, folder: Path, monkeypatch, stack: str, tasks: list[str]) -> None:
        inside(module, monkeypatch, folder, {})
        self.setup = module.Setup(stack, tasks, [])
        environment(folder, {"torch": "2.11.0", "torchvision": "0.26.0"})
        self.started: list[tuple[list[str], dict[str, str]]] = []
        self.mmcv = {
            "state": "ok",
            "version": {"forks": "2.3.6", "original": "2.1.0"}[stack],
            "note": module.OURS,
        }
        monkeypatch.setattr(module, "examine", self.examine)
        monkeypatch.setattr(module, "run", self.run)
        monkeypatch.setattr(module, "as_text", lambda report: "")
        monkeypatch.delenv("CFLAGS", raising=False)
        monkeypatch.setattr(module.shutil, "which", lambda name: None)

    def examine(self, tasks: list[str]) -> dict:
        self.looked += 1
        others = [{"state": self.torch}] * 3
        return {"command": "", "packages": [*others, self.mmcv]}

    def run(self, *command: object, quiet: bool = False, **env: str) -> bool:
        self.started.append(([str(part) for part in command], env))
        return "--only-binary=:all:" not in command  # no wheels


def test_steps_of_an_installation(module, tmp_path, monkeypatch) -> None:
    recorder = Recorder(module, tmp_path, monkeypatch, "forks", ["pretraining", "demo"])
    recorder.setup.install([], compile_ops=False)
    installs = [words for words, _ in recorder.started if "install" in words]
    first, fast, cam, package = installs
    files = [f"-r{ROOT / 'requirements' / name}.txt" for name in ("runtime", "demo")]
    for word in ("torch==2.11.0,>=2.3", "onedl-mmcv==2.3.6", *files):
        assert word in first
    assert "torch==2.11.0,>=2.3" in fast and "--only-binary=:all:" in fast
    # grad-cam asks for another OpenCV, whose files overwrite those of mmcv's
    assert cam[-1].endswith("cam.txt") and "--no-deps" in cam
    assert package[-2:] == ["-e", str(ROOT)] and "--no-deps" in package
    assert not [words for words, _ in recorder.started if "--no-binary=onedl-mmcv" in words]


def test_operators_are_compiled_on_request_alone(module, tmp_path, monkeypatch) -> None:
    recorder = Recorder(module, tmp_path, monkeypatch, "original", ["pretraining"])
    recorder.setup.install([], compile_ops=True)
    (build,) = [s for s in recorder.started if "--no-binary=mmcv" in s[0]]
    assert "mmcv==2.1.0" in build[0] and "--no-build-isolation" in build[0]
    assert "--no-cache-dir" in build[0]
    assert build[1] == {"MMCV_WITH_OPS": "1", "CFLAGS": "-g0 -O2", "CUDA_VISIBLE_DEVICES": ""}
    assert any(words[-2:] == ["mmcv", "mmcv-lite"] and "uninstall" in words
               for words, _ in recorder.started)  # fmt: skip


@pytest.mark.parametrize(
    ("stack", "pin"), [("forks", "onedl-mmcv==2.3.6"), ("original", "mmcv-lite==2.1.0")]
)
def test_operators_that_do_not_load_are_left_out(module, tmp_path, monkeypatch, stack, pin) -> None:
    recorder = Recorder(module, tmp_path, monkeypatch, stack, ["pretraining"])
    note = "ImportError: /x/mmcv/_ext.so: undefined symbol"  # made for another torch
    recorder.mmcv.update(state="broken", note=note)
    recorder.setup.install([], compile_ops=False)
    (again,) = [words for words, _ in recorder.started if any("--no-binary" in w for w in words)]
    assert pin in again and "--no-build-isolation" not in again


def test_a_torch_and_a_torchvision_that_do_not_fit_are_repaired(
    module, tmp_path, monkeypatch
) -> None:
    recorder = Recorder(module, tmp_path, monkeypatch, "forks", ["pretraining"])
    recorder.torch = "broken"
    recorder.setup.install([], compile_ops=False)
    (again,) = [words for words, _ in recorder.started if words[-2] == "torch==2.11.0"]
    assert recorder.looked == 3  # before and after it, and at the end
    assert again[-4:] == ["--force-reinstall", "--no-deps", "torch==2.11.0", "torchvision==0.26.0"]


@pytest.mark.parametrize("note", ["ImportError: libGL.so.1: no such file", ""])
def test_compiled_operators_stay_whatever_else_is_wrong(module, tmp_path, monkeypatch, note):
    recorder = Recorder(module, tmp_path, monkeypatch, "forks", ["pretraining"])
    recorder.mmcv.update(state="broken" if note else "ok", note=note)
    recorder.setup.install([], compile_ops=not note)
    assert not [words for words, _ in recorder.started if "uninstall" in words]


def run_main(module, monkeypatch, *arguments: str, gaps: str = ""):
    """Run the installer by the environment's own Python; return what it would install."""
    installed = []
    monkeypatch.setattr(module.sys, "argv", ["setup_env.sh", *arguments])
    monkeypatch.setenv("GERSP_INSIDE", "1")
    monkeypatch.setattr(module, "make", lambda stack: None)
    monkeypatch.setattr(module, "examine", lambda tasks: {"command": gaps})
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: sys.path[0])
    monkeypatch.setattr(module.Setup, "install", lambda self, *rest: installed.append(self))
    module.main()
    return installed[0] if installed else None


def test_a_finished_environment_is_left_alone(module, tmp_path, monkeypatch, capsys) -> None:
    inside(module, monkeypatch, tmp_path, FORKS, f"forks {module.fingerprint()}")
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    write_distribution(site, "pydantic", ("pydantic/a.py",))
    assert run_main(module, monkeypatch, "--downstream") is None
    assert "ready: pretraining, detection, rotated, segmentation; enter" in capsys.readouterr().out
    assert run_main(module, monkeypatch, gaps="something is lacking") is not None
    (site / "pydantic" / "a.py").unlink()  # no import of the check notices this
    assert run_main(module, monkeypatch, "--downstream") is not None


def test_uv_takes_the_settings_of_pip(module, tmp_path, monkeypatch) -> None:
    recorder = Recorder(module, tmp_path, monkeypatch, "forks", ["pretraining"])
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a https://b")
    recorder.setup.pip("numpy")
    ((words, env),) = recorder.started
    assert words == ["uv", "pip", "install", "--python", str(tmp_path / "bin" / "python"), "numpy"]
    assert env["UV_FIND_LINKS"] == "/wheels,/more"
    assert env["UV_EXTRA_INDEX_URL"] == "https://a https://b"


def test_what_failed_is_said_in_one_line(module, tmp_path, monkeypatch) -> None:
    recorder = Recorder(module, tmp_path, monkeypatch, "forks", ["pretraining"])
    monkeypatch.setattr(module, "run", lambda *command, **options: False)
    with pytest.raises(
        SystemExit, match=r"maintained forks need Python 3\.11 or .* and torch>=2\.3; for others"
    ):
        recorder.setup.pip("numpy")


@pytest.mark.parametrize(
    ("stack", "torch", "index"),
    [
        ("forks", "2.10.0", "https://mmwheels.onedl.ai/cpu-torch2100/simple/onedl-mmcv/index.html"),
        ("original", "2.1.2+cpu",
         "https://download.openmmlab.com/mmcv/dist/cpu/torch2.1.0/index.html"),
    ],
)  # fmt: skip
def test_the_index_of_the_maintainers_is_an_option(
    module, tmp_path, monkeypatch, stack, torch, index
) -> None:
    inside(module, monkeypatch, tmp_path, {"torch": torch})
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    run_main(module, monkeypatch, "--wheels", "cpu", "--stack", stack)
    assert os.environ["PIP_FIND_LINKS"].split() == ["/wheels", index]
