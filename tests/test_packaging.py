"""Wheel, sdist and editable install: what they hold, and that `mim train` works from them."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from gersp_mm import resources
from gersp_mm.version import __version__
from tests.support.server import Server, serving

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ("configs", "tools", "demo", "docs", "requirements", "results", "gersp_mm")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "CHANGELOG.md", "CITATION.cff",
         "model-index.yml", "README.md")  # fmt: skip
CONFIGS = resources.list_configs()


def copy_source(target: Path) -> Path:
    """The files a build reads, without the repository's own build products."""
    target.mkdir()
    junk = shutil.ignore_patterns("__pycache__", "*.pyc", ".mim")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=junk)
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    return target


def run(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def build(source: Path, hook: str, target: Path) -> Path:
    """Call one hook of the build backend; returns the file it made."""
    target.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as b; print(b.{hook}({str(target)!r}))"
    return target / run(sys.executable, "-W", "ignore", "-c", code, cwd=source).split()[-1]


def make_venv(folder: Path) -> Path:
    """An environment with nothing of its own, which also sees this one's libraries."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin" / "python"


def install(python: Path, wheel: Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--force-reinstall", "--disable-pip-version-check", wheel)  # fmt: skip


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as wheel:
        return {name for name in wheel.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """source tree, wheel, sdist, and the wheel made from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    source = copy_source(folder / "source")
    stale = source / "build" / "lib" / "gersp_mm" / ".mim" / "configs"
    stale.mkdir(parents=True)
    (stale / "of_an_earlier_build.py").write_text("")
    (source / "configs" / "__pycache__").mkdir()
    (source / "configs" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"")
    (source / "demo").mkdir(exist_ok=True)
    (source / "demo" / "downloaded.jpg").write_bytes(b"")
    wheel = build(source, "build_wheel", folder / "wheel")
    sdist = build(source, "build_sdist", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return {
        "source": source,
        "wheel": wheel,
        "sdist": sdist,
        "again": build(unpacked, "build_wheel", folder / "again"),
    }


def test_wheel_holds_configs_tools_and_index(built: dict[str, Path]) -> None:
    inside = names(built["wheel"])
    mim = "gersp_mm/.mim"
    assert {f"{mim}/configs/{config}" for config in CONFIGS} <= inside
    for name in ("tools/train.py", "tools/test.py", "tools/check_env.py", "tools/dist_train.sh",
                 "demo/prepare_demo.py", "requirements/stacks.json", "model-index.yml",
                 "configs/pretrain/metafile.yml", "results/paper.csv",
                 "results/demo.jsonl"):  # fmt: skip
        assert f"{mim}/{name}" in inside, name
    for name in ("setup_env.sh", "setup_env.py", "quickstart.sh", "run_tests.sh"):
        assert f"{mim}/tools/{name}" not in inside, name
    assert {f"{mim}/aliases/{Path(config).stem}" for config in CONFIGS} <= inside
    assert "gersp_mm/py.typed" in inside
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"gersp_mm", f"gersp_mm-{__version__}.dist-info"}
    assert not [name for name in inside if "__pycache__" in name or name.endswith(".jpg")]
    assert not [name for name in inside if "of_an_earlier_build" in name]


def test_wheel_from_sdist_is_the_same(built: dict[str, Path]) -> None:
    assert names(built["again"]) == names(built["wheel"])
    with tarfile.open(built["sdist"]) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert not [name for name in inside if "/.mim" in name]
    for folder in ("docs", "results"):  # what README and pages link to
        files = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True
        ).stdout.split()
        assert set(files) <= inside


def test_building_leaves_the_package_folder_alone(built: dict[str, Path]) -> None:
    assert not (built["source"] / "gersp_mm" / ".mim").exists()


def test_metadata(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        metadata = message_from_bytes(wheel.read(f"gersp_mm-{__version__}.dist-info/METADATA"))
    required = metadata.get_all("Requires-Dist") or []
    hard = {item for item in required if "extra ==" not in item}
    assert {"torch>=2.1", "torchvision>=0.16"} <= hard
    # pip cannot express "mmcv or onedl-mmcv", so neither may be a hard requirement
    assert not [item for item in hard if "mm" in item]
    assert any(item.startswith("onedl-mmcv==") and "openmmlab" in item for item in required)
    assert set(metadata.get_all("Provides-Extra") or []) == {
        "openmmlab", "downstream", "demo", "tests", "docs", "fast", "raster",
        "hub", "trackers"}  # fmt: skip
    assert metadata["Name"] == "gersp_mm"


@pytest.fixture(scope="module")
def wheel_python(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = make_venv(tmp_path_factory.mktemp("installed") / "venv")
    install(python, built["wheel"])
    return python


SHOW = (
    "from gersp_mm import resources as r\n"
    "print(r.resource_root()); print(*r.list_configs()); print(r.resource('tools', 'train.py'))"
)


def test_resources_of_an_installed_wheel(wheel_python: Path, tmp_path: Path) -> None:
    root, configs, train = run(wheel_python, "-c", SHOW, cwd=tmp_path).splitlines()
    assert root.endswith("/site-packages/gersp_mm/.mim")
    assert configs.split() == CONFIGS
    assert train == f"{root}/tools/train.py"
    script = Path(root, "tools", "dist_train.sh")
    assert script.stat().st_mode & 0o111 == (ROOT / "tools/dist_train.sh").stat().st_mode & 0o111


@pytest.fixture(scope="module")
def wheel(wheel_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(wheel_python, tmp_path_factory.mktemp("wheel") / "server") as server:
        yield server


def test_check_env_of_an_installed_wheel(wheel: Server, wheel_python: Path, tmp_path: Path) -> None:
    (root,) = wheel_python.parents[1].glob("lib/python*/site-packages/gersp_mm/.mim")
    text = wheel.run(root / "tools/check_env.py", "--only-required", cwd=tmp_path)
    assert "pre-training, classification  usable" in text


@pytest.mark.parametrize("name", ["quickstart", "demo_detection"])
def test_help_of_the_wheel_names_no_script_of_a_checkout(
    name: str, wheel_python: Path, tmp_path: Path
) -> None:
    text = run(wheel_python.with_name("gersp"), name, "--help", cwd=tmp_path)
    assert text.startswith(f"usage: gersp {name} ")
    assert f"  gersp {name} --seed" in text and "bash tools/" not in text


def test_the_wheel_draws_pairs_and_benchmarks(
    wheel: Server, wheel_python: Path, pair_data: Path, tmp_path: Path
) -> None:
    def gersp(*words: str | Path) -> str:
        return wheel.run(wheel_python.with_name("gersp"), *words, cwd=tmp_path)

    words = ["pretrain", "--images", pair_data / "rs", "--natural", pair_data / "natural"]
    gersp(*words, "--arch", "resnet18", "--dry-run", "--out", "run")
    gersp("show", "pairs", "run/resnet18.py", "--out", "pairs.png")
    assert (tmp_path / "pairs.png").stat().st_size > 1000
    for path in (pair_data / "natural").rglob("*.jpg"):
        part = tmp_path / ("train" if int(path.stem) < 4 else "test") / path.parent.name
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, part)
    (tmp_path / "plan.yml").write_text(
        "checkpoints: {random: null}\narch: resnet18\nseeds: [0]\nwork_dir: bench\ndatasets:\n"
        "  mine: {train: train, test: test, size: 32}\n"
        "tasks: [{protocol: knn, data: mine, k: 1, temperature: 0.07}]\n"
    )
    text = gersp("benchmark", "plan.yml")
    assert "next: gersp table bench/results.jsonl" in text
    assert (tmp_path / "bench" / "results.jsonl").read_text().count('"value":') == 1


# Blocks of pages that the wheel alone can run, from any folder.
WHEEL = re.compile(r"^<!-- wheel: ([\w-]+) -->\n```\w+\n(.*?)^```", re.M | re.S)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {name: text for page in PAGES for name, text in WHEEL.findall(page.read_text("utf-8"))}
WEIGHTS = ("weights", "weights-for-a-backbone", "weights-for-a-config")


def run_block(python: Path, name: str, more: str, folder: Path) -> str:
    """Run a block of shell commands with the wheel's Python as ``python``."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return run("bash", "-euc", BLOCKS[name].rstrip() + more, cwd=folder, PATH=path)


def test_all_blocks_for_the_wheel_are_run_below() -> None:
    assert set(BLOCKS) == {*WEIGHTS, "demo-images", "a-tool", "config-by-name"}


def test_the_wheel_lists_demo_images(wheel_python: Path, pair_data: Path, tmp_path: Path) -> None:
    own = f" --remote-sensing {pair_data / 'rs'} --natural {pair_data / 'natural'}"
    run_block(wheel_python, "demo-images", own, tmp_path)
    assert (tmp_path / "data/demo/manifest.json").is_file()


def test_the_wheel_has_the_tools(wheel_python: Path, tmp_path: Path) -> None:
    assert "--cfg-options" in run_block(wheel_python, "a-tool", "", tmp_path)


def test_the_wheel_finds_configs(
    wheel_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training itself, by the hosts' own tools, is that of other tests."""
    monkeypatch.setitem(BLOCKS, "config-by-name", BLOCKS["config-by-name"].replace("mim", "echo"))
    lines = run_block(wheel_python, "config-by-name", "", tmp_path).splitlines()
    configs = [Path(line.split()[2]) for line in lines]
    assert len(configs) == 2 and all(path.is_file() for path in configs)
    assert all(path.is_relative_to(wheel_python.parents[1]) for path in configs)


LOAD = """
import sys
from pathlib import Path
from mmpretrain.models.backbones import ResNet
from mmengine.registry import MODELS
from gersp_mm.backbones import export_backbone
found = {}
exec(Path(sys.argv[1]).read_text(), found)
init_cfg = found.get("init_cfg") or found.get("backbone", {}).get("init_cfg")
init_cfg = init_cfg or found["model"]["backbone"]["init_cfg"]
weights = {f"backbone.{name}": tensor for name, tensor in ResNet(50).state_dict().items()}
file = Path(init_cfg["checkpoint"])
file.parent.mkdir(parents=True, exist_ok=True)
export_backbone(weights, file, "ResNet-50", "GeRSP", [0, 0, 0], [1, 1, 1])
loaded = MODELS.build(dict(type="mmpretrain.ResNet", depth=50, init_cfg=init_cfg))
loaded.init_weights()
assert all(tensor.equal(weights[f"backbone.{n}"]) for n, tensor in loaded.state_dict().items())
for hook in found.get("default_hooks", {}).values():
    from mmengine.registry import HOOKS
    HOOKS.build(hook)
print("loaded")
"""


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_load_with_the_wheel(name: str, wheel: Server, tmp_path: Path) -> None:
    script, block = tmp_path / "load.py", tmp_path / "block.py"
    script.write_text(LOAD)
    block.write_text(BLOCKS[name])
    assert wheel.run(script, block, cwd=tmp_path).split()[-1:] == ["loaded"]


@pytest.fixture(scope="module")
def editable(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkout, python of an environment where it is installed editable)."""
    folder = tmp_path_factory.mktemp("editable")
    source = copy_source(folder / "checkout")
    wheel = build(source, "build_editable", folder / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        record = f"gersp_mm-{__version__}.dist-info/RECORD"
        rows = {row[0] for row in csv.reader(archive.read(record).decode().splitlines())}
        assert rows == set(archive.namelist())
    python = make_venv(folder / "venv")
    install(python, wheel)
    return source, python


def test_editable_install_links_and_follows_the_checkout(
    editable: tuple[Path, Path], tmp_path: Path
) -> None:
    source, python = editable
    root, configs, _ = run(python, "-c", SHOW, cwd=tmp_path).splitlines()
    assert Path(root) == source
    assert configs.split() == CONFIGS
    mim = source / "gersp_mm" / ".mim"
    assert (mim / "configs").resolve() == source / "configs"
    assert (mim / "tools" / "train.py").samefile(source / "tools" / "train.py")
    assert os.readlink(mim / "configs") == "../../configs"  # survives moving the checkout
    assert "gersp_mm/.mim/" in (ROOT / ".gitignore").read_text().splitlines()


MIM_TRAIN = ("-W", "ignore", "-m", "mim", "train", "gersp_mm", "gersp_r18_demo",
             "--launcher", "none")  # fmt: skip


def test_mim_finds_config_and_tool_of_an_editable_install(
    editable: tuple[Path, Path], tmp_path: Path
) -> None:
    command = [editable[1], *MIM_TRAIN, "--no-such-option"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "train.py: error: unrecognized arguments: --no-such-option" in done.stderr


@pytest.mark.slow
def test_mim_train_by_name(wheel_python: Path, pair_data: Path, tmp_path: Path) -> None:
    assert (CONFIGS_ROOT / "gersp_r18_demo.py").is_file()
    output = run(
        wheel_python, *MIM_TRAIN, "--work-dir", tmp_path / "run", "--cfg-options",
        "train_dataloader.batch_size=4", "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False", "model.queue_len=32",
        "train_cfg.max_epochs=1", "train_dataloader.dataset.remote_sensing.indices=8",
        f"train_dataloader.dataset.remote_sensing.data_root={pair_data / 'rs'}",
        "train_dataloader.dataset.remote_sensing.ann_file=",
        f"train_dataloader.dataset.natural.data_root={pair_data / 'natural'}",
        "train_dataloader.dataset.natural.ann_file=", "default_hooks.knn_eval=None",
        cwd=tmp_path, OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert "Training finished successfully" in output
    assert list((tmp_path / "run").glob("*_backbone.pth")), output[-2000:]


CONFIGS_ROOT = ROOT / "configs" / "pretrain"


def test_config_names_are_unique() -> None:
    stems = [Path(config).stem for config in CONFIGS]
    assert len(stems) == len(set(stems))  # else `mim train` refuses, and finds none by name


def test_model_index_names_real_configs() -> None:
    metafiles = yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
    collections, models = set(), []
    for metafile in metafiles:
        content = yaml.safe_load((ROOT / metafile).read_text())
        collections |= {item["Name"] for item in content.get("Collections", [])}
        models += content["Models"]
    assert len({model["Name"] for model in models}) == len(models)
    for model in models:
        assert (ROOT / model["Config"]).is_file(), model["Name"]
        assert Path(model["Config"]).stem == model["Name"]
        assert model["In Collection"] in collections
        assert model["Weights"] is None or model["Weights"].startswith("https://")
    assert "gersp_r50" in {model["Name"] for model in models}


def test_openmim_reads_the_model_index() -> None:
    from modelindex.load_model_index import load

    index = load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    assert {"gersp_r50", "gersp_r18_demo"} <= {model.name for model in index.models}


@pytest.mark.parametrize(
    "name",
    ["gersp_r50", "gersp_r50.py", "pretrain/gersp_r50", "pretrain/gersp_r50.py",
     "configs/pretrain/gersp_r50.py", CONFIGS_ROOT / "gersp_r50"],
)  # fmt: skip
def test_find_config(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resources.find_config(name) == CONFIGS_ROOT / "gersp_r50.py"


def test_find_config_prefers_a_file_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gersp_r50.py").write_text("")
    assert resources.find_config("gersp_r50.py").resolve() == tmp_path / "gersp_r50.py"
    (tmp_path / "alias").mkdir()
    (tmp_path / "alias" / "gersp_r18_demo").write_text("")  # as `mim` hands it over
    assert resources.find_config(tmp_path / "alias" / "gersp_r18_demo") == (
        CONFIGS_ROOT / "gersp_r18_demo.py"
    )


def test_find_config_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config gersp_r5O.*did you mean .*gersp_r50"):
        resources.find_config("gersp_r5O")
    with pytest.raises(FileNotFoundError, match=r"no config elsewhere/gersp_r50\.py"):
        resources.find_config("elsewhere/gersp_r50.py")
    monkeypatch.setattr(resources, "list_configs", lambda: ["a/same.py", "b/same.py"])
    with pytest.raises(ValueError, match=r"several configs have the name same\.py: a/same\.py, b/"):
        resources.find_config("same")


def test_incomplete_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "gersp_mm")
    with pytest.raises(FileNotFoundError, match="installation is incomplete"):
        resources.resource_root()
