"""tools/check_env.py: what it sees, what it advises, and that it needs nothing installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gersp_mm.version import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "check_env.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("check_env", SCRIPT)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with nothing installed."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


def start(python: str | Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "GERSP_VENV": "/nowhere", **env},
    )


def write_package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)


def test_this_environment_can_pretrain() -> None:
    done = start(sys.executable, "--only-required")
    assert done.returncode == 0, done.stdout
    assert "pre-training, classification  usable" in done.stdout
    assert "To complete it" not in done.stdout
    assert done.stderr == ""


def test_bare_python_gets_one_command(bare_python: Path) -> None:
    done = start(bare_python)
    assert done.returncode == 1 and done.stderr == ""
    assert "OpenMMLab: maintained forks" in done.stdout
    assert "pre-training, classification  NOT usable   (lacks torch, torchvision," in done.stdout
    assert done.stdout.rstrip().endswith(
        f"To complete it:\n  GERSP_VENV={bare_python.parent.parent} bash {ROOT}/tools/setup_env.sh "
        "--downstream --demo --tests --docs"
    )


def test_outside_of_the_environment_it_says_how_to_enter(bare_python: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = start(bare_python, "--only-required", GERSP_VENV=str(tmp_path))
    assert (
        f"This Python is outside {tmp_path}; enter it: source {tmp_path}/bin/activate"
        in done.stdout
    )
    inside = start(bare_python, "--only-required", GERSP_VENV=str(bare_python.parent.parent))
    assert "activate" not in inside.stdout


def test_json_and_require(bare_python: Path) -> None:
    done = start(bare_python, "--json", "--require", "docs", "--only-required")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["executable"] == str(bare_python)
    assert report["tasks"] == {
        "docs": {
            "usable": False,
            "blocked_by": ["sphinx", "myst-parser", "furo", "sphinx-copybutton"],
        }
    }
    assert report["packages"][0] == {
        "name": "sphinx", "version": None, "state": "missing", "note": "",
        "pin": "sphinx>=8.1"}  # fmt: skip


def test_unknown_task_is_refused() -> None:
    done = start(sys.executable, "--require", "flying")
    assert done.returncode == 2
    assert "invalid choice: 'flying'" in done.stderr


def test_an_mmcv_without_operators_is_named(tmp_path: Path) -> None:
    for name in ("mmengine", "mmcv", "mmpretrain"):
        write_package(tmp_path, name, f"__version__ = '{SUPPORTED[name][1]}'")
    done = start(sys.executable, "--json", "--only-required", PYTHONPATH=str(tmp_path))
    report = json.loads(done.stdout)
    (row,) = [row for row in report["packages"] if row["name"] == "mmcv"]
    assert (row["state"], row["note"]) == ("ok", "operators of gersp_mm.ops, in torch")
    assert report["command"] == "" and report["tasks"]["pretraining"]["usable"]


def judged(module, name: str, version: str | None, stack: str = "forks", **found: str) -> dict:
    row = {"name": name, "version": version, "note": ""}
    return module.VERSION.judge(row, module.STACKS[stack], found)


def test_broken_and_crashing_packages(
    module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "mmdet", "import os; os._exit(66)")
    write_package(tmp_path, "mmseg", "import a_module_that_is_not_there")
    write_package(tmp_path, "mmrotate", "__version__ = '1.2.1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = module.probe(["mmdet", "mmseg", "mmrotate", "gersp_no_such"])
    assert rows["mmdet"]["note"] == "importing it ended Python (exit 66)"
    assert rows["gersp_no_such"]["state"] == "missing"
    assert rows["mmseg"]["state"] == "broken"  # it is there; something that it needs is not
    assert "a_module_that_is_not_there" in rows["mmseg"]["note"]
    assert rows["mmrotate"]["version"] == "1.2.1" and "state" not in rows["mmrotate"]
    assert module.VERSION.judge(rows["mmseg"], module.STACKS["forks"], {})["pin"] == (
        "onedl-mmsegmentation==1.4.2"
    )


def test_versions_are_judged_by_the_family(module) -> None:
    tested = SUPPORTED["mmengine"][1]
    assert judged(module, "mmengine", "99.1")["note"] == f"newer than {tested}, the newest tested"
    old = judged(module, "mmrotate", "0.3.4")
    assert (old["state"], old["note"], old["pin"]) == (
        "wrong", "needs onedl-mmrotate>=1.1.0", "onedl-mmrotate==1.2.1")  # fmt: skip
    assert judged(module, "mmcv", "2.1.0")["state"] == "wrong"
    assert judged(module, "mmcv", "2.1.0", "original")["state"] == "ok"
    assert judged(module, "mmcv", "1.7.0", "original")["pin"] == "mmcv-lite==2.1.0"
    # beside the same package of another name, each would overwrite the other's files
    assert judged(module, "mmcv", "1.7.0", "original", mmcv="1.7.0")["pin"] == "mmcv==2.1.0"


def write_metadata(folder: Path, **packages: str) -> None:
    for name, version in packages.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("torch", "numpy", "state"),
    [("2.1.2", "2.0.1", "wrong"), ("2.1.2", "1.26.4", "ok"), ("2.3.0", "2.0.1", "ok")],
)
def test_old_torch_needs_old_numpy(
    module, tmp_path: Path, monkeypatch, torch: str, numpy: str, state: str
) -> None:
    write_metadata(tmp_path, torch=torch, numpy=numpy)
    monkeypatch.setattr(module, "probe", lambda names: {name: {"name": name} for name in names})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    rows = {row["name"]: row for row in module.examine(["pretraining"])["packages"]}
    note = "needs numpy<2: torch before 2.3 is compiled for numpy 1" if state == "wrong" else ""
    assert (rows["numpy"]["state"], rows["numpy"]["note"]) == (state, note)


def test_the_family_that_is_installed_is_named_alone(bare_python: Path, tmp_path: Path) -> None:
    write_metadata(tmp_path, torch="2.1.2", mmengine="0.10.7", mmcv="2.1.0", mmpretrain="1.2.0")
    done = start(bare_python, "--json", PYTHONPATH=str(tmp_path))
    report = json.loads(done.stdout)
    assert report["stack"] == "original"
    assert " --stack original --downstream" in report["command"]
    rotated = [row for row in report["packages"] if row["name"] == "mmrotate"]
    assert rotated[0]["state"] == "absent" and "--stack forks" in rotated[0]["note"]
    assert "onedl" not in done.stdout


def test_what_a_family_never_had_is_no_gap_to_fill(module, monkeypatch) -> None:
    packages = module.STACKS["original"]["packages"]
    found = {row["names"][0]: row["tested"] for row in packages.values()}
    lines = [*module.VERSION.requirements("runtime"), "numpy==1.26.4", "gersp-mm==0.1.0"]
    names = [re.split(r"[<>=]+", line) for line in lines]
    everything = {name: bound for name, bound in names} | found
    monkeypatch.setattr(module.VERSION, "installed", lambda paths: everything)
    monkeypatch.setattr(module, "probe", lambda names: {name: {} for name in names})
    report = module.examine(["pretraining", "detection", "rotated"])
    assert report["tasks"]["rotated"]["blocked_by"] == ["mmrotate"]
    assert report["tasks"]["detection"]["usable"] and report["command"] == ""


def test_mixed_families_block_everything(bare_python: Path, tmp_path: Path) -> None:
    write_metadata(tmp_path, mmengine="0.10.7", onedl_mmcv="2.3.6")
    report = json.loads(start(bare_python, "--json", PYTHONPATH=str(tmp_path)).stdout)
    rows = [row for row in report["packages"] if row["state"] == "mixed"]
    assert [row["name"] for row in rows][:3] == ["mmengine", "mmcv", "mmpretrain"]
    assert "mmengine" in rows[0]["note"] and "onedl-mmcv" in rows[0]["note"]
    assert "mmengine" in report["tasks"]["pretraining"]["blocked_by"]


@pytest.mark.parametrize(
    ("version", "specifier", "met"),
    [
        ("1.6.1", ">=1.6,<2", True),
        ("2.0", ">=1.6,<2", False),
        ("9.2.0", "==9.2", True),
        ("0.17.6", "==0.17.5", False),
        ("1.10", ">=1.9", True),
        ("5.0", "", True),
        ("5.0", "!=5.0", False),
    ],
)
def test_satisfies(module, version: str, specifier: str, met: bool) -> None:
    assert module.VERSION.satisfies(version, f"name{specifier}") is met


def test_requirement_files_are_read_completely(module) -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if line and line[0] != "#"]
        assert len(module.VERSION.requirements(file.stem)) == len(lines), file.name
    assert "sphinx>=8.1" in module.VERSION.requirements("docs")
    assert module.VERSION.distribution_name("Import_Linter >=2.11") == "import-linter"


def test_of_two_distributions_the_earlier_folder_counts(module, tmp_path: Path) -> None:
    for folder, version in (("venv", "2.0"), ("base", "1.0")):
        (tmp_path / folder).mkdir()
        write_metadata(tmp_path / folder, torch=version)
    paths = [str(tmp_path / "venv"), str(tmp_path / "base")]
    assert module.VERSION.installed(paths) == {"torch": "2.0"}


def test_operators_of_ours_are_no_problem_and_the_compiled_ones_one_command(
    module, monkeypatch
) -> None:
    row = {"name": "mmcv", "version": "2.3.6", "state": "ok", "note": module.OURS, "pin": ""}
    report = module.examine([]) | {"packages": [row]}
    text = module.as_text(report)
    assert "ok      mmcv              2.3.6         operators of gersp_mm.ops, in torch" in text
    command = r"setup_env\.sh (--stack original )?--downstream --compile-ops"
    assert re.search(command, text) and "To complete it" not in text
