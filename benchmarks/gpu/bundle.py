"""The bundle ``.gpu/``: wheels, images and the project for a machine without a network.

This module needs the standard library alone; building images needs Pillow.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60 * 2**20  # bytes of the whole bundle
IMAGES = 28 * 2**20  # bytes of images.tar, of at most 30 MB
SPEED_IMAGES = 8 * 2**20  # of these, the large images that speed is measured with
PYTHONS = ("3.11", "3.12")
# What gersp_mm, mmengine, mmcv and mmpretrain import, without what torchvision brings. OpenCV
# (61 MB) and matplotlib (17 MB) are left to stubs/; numba (64 MB) is optional.
OPENMMLAB = ("mmengine", "mmcv", "mmpretrain")  # versions of requirements/stacks.json
PURE = (
    "addict", "rich", "pygments", "markdown-it-py", "mdurl", "termcolor", "yapf", "platformdirs",
    "einops", "importlib-metadata", "lazy-importer", "zipp", "mat4py", "model-index", "click",
    "markdown", "ordered-set", "packaging", "tqdm", "filelock", "jinja2",
)  # fmt: skip
COMPILED = ("pyyaml", "simplejpeg", "lmdb", "markupsafe")
WITH_DEPENDENCIES = ("pydantic",)  # needs exactly one version of pydantic-core
# Of these, versions older than the bundle's do not work together with its pydantic.
GIVEN = ("torch", "torchvision", "numpy", "PIL")  # what the machine with the GPU has to have
FAMILY = {"pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "annotated_types"}
GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
LAUNCHER = '''"""Run benchmarks/gpu/run.py of the checkout around, or of project.tar.gz."""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPT = Path("benchmarks", "gpu", "run.py")

with tempfile.TemporaryDirectory() as folder:
    root = HERE.parent
    if not (root / SCRIPT).is_file():
        root = Path(folder)
        with tarfile.open(HERE / "project.tar.gz") as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
            tar.extractall(root)
    command = [sys.executable, str(root / SCRIPT), *sys.argv[1:], "--bundle", str(HERE)]
    sys.exit(subprocess.call(command))
'''


# ------------------------------------------------------------------ on the machine with the GPU
def install(bundle: Path, site: Path, stubs: Path) -> list[str]:
    """Unpack what this Python lacks into a folder, which precedes its own packages.

    Wheels are archives with the files of ``site-packages``, so no pip is needed.

    Returns:
        The names of what was unpacked.

    Raises:
        SystemExit: This Python lacks what no bundle has, or has no compiled wheels in this one.
    """
    if absent := [module for module in GIVEN if not is_present(module)]:
        sys.exit(
            f"error: {sys.executable} has no {', '.join(absent)}; use the Python that has them"
        )
    site.mkdir(parents=True, exist_ok=True)
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    installed = []
    for wheel in sorted((bundle / "wheels").glob("*.whl")):
        name, version, python, abi, _ = wheel.name.removesuffix(".whl").rsplit("-", 4)
        if "py3" not in python and python != tag and abi != "abi3":
            continue
        with zipfile.ZipFile(wheel) as archive:
            old = name in FAMILY and is_older(name, version)
            if old or not all(map(is_present, _modules(archive))):
                archive.extractall(site)
                installed.append(name)
    if not is_present("yaml") and not (site / "yaml").is_dir():
        version = ".".join(map(str, sys.version_info[:2]))
        text = (
            f"error: {bundle / 'wheels'} has no wheels for Python {version}, which lacks PyYAML; "
        )
        sys.exit(text + f"those of --prepare are for {' and '.join(PYTHONS)}")
    for stub in sorted(path for path in stubs.iterdir() if path.is_dir()):
        if stub.name != "__pycache__" and not is_present(stub.name):
            shutil.copytree(stub, site / stub.name, dirs_exist_ok=True)
            installed.append(f"stub of {stub.name}")
    return installed


def is_present(module: str) -> bool:
    """Tell whether this Python has a module."""
    return importlib.util.find_spec(module) is not None


def is_older(name: str, version: str) -> bool:
    """Tell whether an installed distribution is older than a version; False where none is."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    found, wanted = ([int(n) for n in re.findall(r"\d+", text)] for text in (installed, version))
    return found < wanted


def _modules(wheel: zipfile.ZipFile) -> set[str]:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    names = {re.sub(r"\..*", "", top) for top in tops if not top.endswith((".dist-info", ".data"))}
    return {name for name in names if name.isidentifier()}


def unpack_images(bundle: Path, target: Path) -> Path:
    """Unpack ``images.tar`` once; return the folder."""
    if not target.is_dir():
        archive = bundle / "images.tar"
        if not archive.is_file():
            sys.exit(f"error: there is no {archive}; build the bundle: {Path(__file__).parent}"
                     "/run.py --prepare")  # fmt: skip
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
            tar.extractall(target)
    return target


# ------------------------------------------------------------------------------------- beforehand
def prepare(bundle: Path, demo: Path | None, data: Path | None, parts: Sequence[str]) -> int:
    """Build the bundle out of the checkout's HEAD; return the exit code."""
    bundle.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if "wheels" in parts:
            shutil.rmtree(bundle / "wheels", ignore_errors=True)
            fetch_wheels(bundle / "wheels", Path(folder))
        if "images" in parts:
            if demo is None:
                demo = Path(folder, "demo")
                script = str(ROOT / "demo" / "prepare_demo.py")
                subprocess.run([sys.executable, script, "--out", str(demo)], check=True)
            pack(demo, data, bundle / "images.tar")
        if "project" in parts:
            archive = str(bundle / "project.tar.gz")
            _git("archive", "--format=tar.gz", "-o", archive, "HEAD")
            (bundle / "commit").write_text(_git("rev-parse", "HEAD"))
            (bundle / "run.py").write_text(LAUNCHER)
    sizes = {path.name: _size(path) for path in sorted(bundle.iterdir())}
    for name, size in sizes.items():
        print(f"{name:16} {size / 2**20:6.2f} MiB")
    total = sum(sizes.values())
    print(f"{bundle}: {total / 2**20:.1f} of at most {LIMIT / 2**20:.0f} MiB")
    return int(total > LIMIT)


def _git(*command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def fetch_wheels(target: Path, work: Path) -> None:
    """Download wheels for all Pythons; build those of mmcv and mmpretrain, which are pure.

    mmcv leaves its operators out where it finds no torch, so that an empty environment builds it.
    """
    target.mkdir()
    stacks = json.loads((ROOT / "requirements" / "stacks.json").read_text())["stacks"]
    packages = stacks["forks"]["packages"]
    pinned = {m: f"{packages[m]['names'][0]}=={packages[m]['tested']}" for m in OPENMMLAB}
    subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_FIND_LINKS")}
    environment["MMCV_WITH_OPS"] = "0"

    def pip(command: str, *options: str) -> None:
        base = [str(work / "venv" / "bin" / "python"), "-m", "pip", command, "-q"]
        subprocess.run([*base, *options], check=True, env=environment)

    built = [pinned[module] for module in ("mmcv", "mmpretrain")]
    sources = f"--no-binary={','.join(name.split('==')[0] for name in built)}"
    pip("wheel", "--no-deps", "--no-cache-dir", sources, "-w", str(target), *built)
    only = ["--only-binary=:all:", "-d", str(target)]
    pip("download", "--no-deps", *only, pinned["mmengine"], *PURE)
    systems = [f"manylinux_{version}_x86_64" for version in GLIBC]
    systems += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    for version in PYTHONS:
        other = ["--implementation", "cp", "--python-version", version]
        other += [f"--platform={system}" for system in systems]
        pip("download", "--no-deps", *only, *other, *COMPILED)
        pip("download", *only, *other, *WITH_DEPENDENCIES)
    if compiled := list(target.glob("onedl_mmcv-*linux*.whl")):
        sys.exit(
            f"error: {compiled[0].name} holds compiled operators; is torch visible to the venv?"
        )


# ------------------------------------------------------------------------------------------ images
def pack(demo: Path, data: Path | None, out: Path) -> None:
    """Pack images into a tar, laid out as a folder of data sets that the study reads.

    ``rs256/`` and ``rs500/`` are cut from the demo's airborne scenes, ``tiles64/`` and
    ``natural/CLASS/`` are the demo's tiles and photographs. The study's lists are in
    ``mini_gpu/``. They name images of ``data`` where it is given; else the demo's, with
    ``natural64/CLASS/`` cut from its photographs. Where not all images fit, lists of training
    images name a part of them again and again, so that an epoch keeps its length.
    """
    rng = random.Random(0)
    files: dict[str, bytes] = {}
    for folder in ("licenses", "natural"):
        for path in sorted(path for path in (demo / folder).rglob("*") if path.is_file()):
            files[str(path.relative_to(demo))] = path.read_bytes()
    tiles = (demo / "remote_sensing.txt").read_text().split()
    for name in rng.sample(tiles, min(256, len(tiles))):
        files[f"tiles64/{Path(name).name}"] = (demo / name).read_bytes()
    files.update(_cut_scenes(demo / "scenes" / "images", rng))
    lists = _lists_of_study(data) if data else _lists_of_demo(demo, rng, files)
    left = IMAGES - sum(len(content) + 1024 for content in files.values())
    files.update(_take_share(data or demo.parent, demo, lists, left))
    with tarfile.open(out, "w") as tar:  # JPEG files do not shrink.
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _cut_scenes(folder: Path, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    scenes = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    left, number = SPEED_IMAGES, 0
    while left > 0:
        kind, width, height = ("rs500", 500, 375) if number % 4 == 3 else ("rs256", 256, 256)
        fitting = [s for s in scenes if s.width >= width and s.height >= height]
        scene = rng.choices(fitting, [s.width * s.height for s in fitting])[0]
        x, y = rng.randint(0, scene.width - width), rng.randint(0, scene.height - height)
        content = _jpeg(scene.crop((x, y, x + width, y + height)), 80)
        yield f"{kind}/{number:05d}.jpg", content
        left, number = left - len(content), number + 1


def _jpeg(image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _lists_of_study(data: Path) -> dict[str, list[str]]:
    lists = {}
    for path in sorted((data / "mini_gpu").glob("*.txt")):
        if path.stem not in ("eurosat_finetune", "eurosat_val"):
            lists[f"mini_gpu/{path.name}"] = path.read_text().splitlines()
    if "mini_gpu/natural.txt" not in lists:
        sys.exit(f"error: there is no {data}/mini_gpu/natural.txt; run "
                 "benchmarks/mini/prepare.py --size gpu first")  # fmt: skip
    return lists


def _lists_of_demo(demo: Path, rng: random.Random, files: dict[str, bytes]) -> dict[str, list[str]]:
    """Return the study's lists for the demo's images, and add photographs of 64 px to ``files``."""
    from PIL import Image

    natural = []
    photographs = sorted((demo / "natural").rglob("*.jpg"))
    classes = sorted({path.parent.name for path in photographs})
    for path in photographs:
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        side = min(photograph.size)
        for number in range(24):
            cut = rng.randint(side // 2, side)
            x, y = (rng.randint(0, length - cut) for length in photograph.size)
            tile = photograph.resize((64, 64), Image.Resampling.BICUBIC, (x, y, x + cut, y + cut))
            name = f"natural64/{path.parent.name}/{path.stem}_{number:02d}.jpg"
            files[name] = _jpeg(tile, 90)
            natural.append(f"{name} {classes.index(path.parent.name)}")
    paths = [line.split()[0] for line in natural]
    aerial = [f"demo/{line}" for line in (demo / "remote_sensing.txt").read_text().split()]
    lists = {
        "remote_sensing": aerial, "natural": natural, "natural_paths": paths,
        "both": _repeat(paths, 16_200) + _repeat(aerial, 16_200),
    }  # fmt: skip
    found = {f"mini_gpu/{name}.txt": _repeat(lines, 16_200) for name, lines in lists.items()}
    found["mini_gpu/both.txt"] = lists["both"]
    for name in ("sites_train", "sites_test"):  # benchmarks/mini/run.py evaluates by them
        found[f"demo/{name}.txt"] = (demo / f"{name}.txt").read_text().splitlines()
    return found


def _repeat(lines: list[str], count: int) -> list[str]:
    return (lines * -(-count // len(lines)))[:count]


def _take_share(data: Path, demo: Path, lists: dict[str, list[str]], left: int) -> dict[str, bytes]:
    """Return the lists, and the images that they name as far as these fit into ``left`` bytes."""
    rng = random.Random(0)

    def image(name: str, line: str) -> str:
        """Return the path of a line's image below the data root."""
        path = line.rsplit(" ", 1)[0] if re.search(r" \d+$", line) else line
        if name.startswith("demo/"):
            return f"demo/{path}"
        return os.path.normpath(f"mini_gpu/{path}") if path.startswith("../") else path

    def source(path: str) -> Path:
        return demo / path.removeprefix("demo/") if path.startswith("demo/") else data / path

    ranked: dict[str, float] = {}  # one random number for each image, the same in every list
    for name, lines in lists.items():
        for line in lines:
            path = image(name, line)
            if path not in ranked and not path.startswith("natural64/"):
                ranked[path] = rng.random()
    left -= sum(len("\n".join(lines)) for lines in lists.values())
    contents: dict[str, bytes] = {}
    for path in sorted(ranked, key=ranked.__getitem__):
        content = source(path).read_bytes()
        left -= len(content) + 1024
        if left < 0:
            break
        contents[path] = content
    taken: dict[str, bytes] = {}
    for name, lines in lists.items():
        kept = [line for line in lines if image(name, line) in contents
                or line.startswith("natural64/")]  # fmt: skip
        pretraining = name.startswith("mini_gpu/") and not name.startswith("mini_gpu/eurosat")
        kept = _repeat(kept, len(lines)) if pretraining else kept
        taken[name] = ("\n".join(kept) + "\n").encode()
    print(f"{len(contents)} of the {len(ranked)} images of the study")
    return {**taken, **contents}
