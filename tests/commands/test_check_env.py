"""tools/check_env.py: what it sees, what it advises, and that it needs nothing installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gersp_mm.version import SUPPORTED, version_key

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
    assert "To mend it" not in done.stdout
    assert done.stderr == ""


def test_bare_python_gets_the_commands(bare_python: Path) -> None:
    done = start(bare_python)
    assert done.returncode == 1 and done.stderr == ""
    assert "pre-training, classification  NOT usable   (torch, torchvision," in done.stdout
    commands = [line.strip() for line in done.stdout.splitlines() if " -m pip install" in line]
    (plain,) = [
        line for line in commands if line.startswith(f'{bare_python} -m pip install "torch')
    ]
    assert f'"torch=={SUPPORTED["torch"][1]}"' in plain
    assert f'"onedl-mmpretrain=={SUPPORTED["mmpretrain"][1]}"' in plain
    assert '"pillow"' in plain
    (operators,) = [line for line in commands if "MMCV_WITH_OPS=1" in line]
    for part in ("CFLAGS='-g0 -O2'", '"setuptools>=80,<82"', "--no-build-isolation",
                 "--force-reinstall", f'"onedl-mmcv=={SUPPORTED["mmcv"][1]}"'):  # fmt: skip
        assert part in operators
    assert f'{bare_python} -m pip install --no-deps -e "{ROOT}"' in commands


def test_advice_inside_the_own_environment_is_setup_env(bare_python: Path) -> None:
    venv = bare_python.parent.parent
    done = start(bare_python, "--json", GERSP_VENV=str(venv))
    problems = json.loads(done.stdout)["problems"]
    assert problems["torch"]["fix"].endswith("tools/setup_env.sh")
    assert problems["mmdet"]["fix"].endswith("tools/setup_env.sh --downstream")
    assert problems["mmcv._ext"]["fix"].endswith("tools/setup_env.sh --downstream")
    assert problems["pytest"]["fix"].endswith("tools/setup_env.sh --tests")


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
        "name": "sphinx", "version": None, "state": "missing", "note": ""}  # fmt: skip


def test_unknown_task_is_refused() -> None:
    done = start(sys.executable, "--require", "flying")
    assert done.returncode == 2
    assert "invalid choice: 'flying'" in done.stderr


def test_mmcv_without_operators_blocks_only_what_needs_them(tmp_path: Path) -> None:
    write_package(tmp_path, "mmcv", f"__version__ = '{SUPPORTED['mmcv'][1]}'")
    for name in ("mmengine", "mmpretrain", "mmdet"):
        write_package(tmp_path, name, f"__version__ = '{SUPPORTED[name][1]}'")
    done = start(
        sys.executable, "--json", "--only-required", "--require", "pretraining", "--require",
        "detection", PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["tasks"]["pretraining"] == {"usable": True, "blocked_by": []}
    assert report["tasks"]["detection"] == {"usable": False, "blocked_by": ["mmcv._ext"]}
    assert done.returncode == 1
    assert "MMCV_WITH_OPS=1" in report["problems"]["mmcv._ext"]["fix"]


def test_broken_old_new_and_crashing_packages(
    module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "mmdet", "import os; os._exit(66)")
    write_package(tmp_path, "mmseg", "import a_module_that_is_not_there")
    write_package(tmp_path, "mmrotate", "__version__ = '0.3.4'")
    write_package(tmp_path, "mmengine", "__version__ = '99.1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = module.probe(["mmengine", "mmdet", "mmseg", "mmrotate", "gersp_no_such"])
    assert rows["mmdet"]["error"] == "importing it ended Python (exit 66)"
    assert rows["gersp_no_such"]["absent"]
    assert not rows["mmseg"]["absent"]  # it is there; something that it needs is not
    report = module.Report()
    report.by_setup = False
    for name in ("mmengine", "mmdet", "mmseg", "mmrotate"):
        report.imported(name, rows[name])
    states = {row["name"]: (row["state"], row["note"]) for row in report.rows}
    tested = SUPPORTED["mmengine"][1]
    assert states["mmengine"] == ("ok", f"newer than {tested}, the newest tested")
    assert states["mmrotate"] == ("old", "needs 1.0.0rc1 or newer")
    assert states["mmseg"][0] == "broken" and "a_module_that_is_not_there" in states["mmseg"][1]
    assert set(report.problems) == {"mmdet", "mmseg", "mmrotate"}
    assert "--force-reinstall" in report.problems["mmdet"]["fix"]


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
    assert module.satisfies(version, specifier, version_key) is met


def test_requirement_files_are_read_completely(module) -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if line and line[0] != "#"]
        assert len(module.read_requirements(file.stem)) == len(lines), file.name
    assert ("sphinx", ">=8.1") in module.read_requirements("docs")
