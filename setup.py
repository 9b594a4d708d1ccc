"""Build of gersp_mm: metadata from `requirements/`, and configs and tools inside the wheel.

`mim train gersp_mm CONFIG` looks for `<site-packages>/gersp_mm/.mim/{configs,tools}`. The package
has no such folder in version control, so the build makes it:

- wheel (also from an sdist): the files are copied into the build folder, not into the source;
- editable: `gersp_mm/.mim` in the checkout gets links to the real folders, so nothing goes stale,
  and the editable wheel carries small forwarders, as mim looks in site-packages and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import os
import runpy
import shutil
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "gersp_mm" / "version.py"))
requirements = VERSION["requirements"]
SHIPPED = (
    "configs", "tools", "demo", "requirements", "model-index.yml", "results/paper.csv",
    "results/paper.yml", "results/demo.jsonl",
)  # fmt: skip
# These build or use the environment of a checkout; from site-packages they would put one there.
CHECKOUT_ONLY = (
    "setup_env.sh", "setup_env.py", "quickstart.sh", "demo_detection.sh", "run_tests.sh",
)  # fmt: skip
SUFFIXES = {".py", ".sh", ".yml", ".md", ".txt", ".json", ".jsonl", ".csv"}


def openmmlab(*modules: str) -> list[str]:
    """Exact versions of the maintained forks, from `requirements/stacks.json`."""
    rows = (VERSION["STACKS"]["forks"]["packages"][module] for module in modules)
    return [f"{row['names'][0]}=={row['tested']}" for row in rows]


def shipped_files() -> list[Path]:
    """Files that go into `.mim`, relative to the repository, sorted."""
    found = []
    for name in SHIPPED:
        top = ROOT / name
        found += [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    return sorted(
        path.relative_to(ROOT)
        for path in found
        if path.suffix in SUFFIXES
        and "__pycache__" not in path.parts
        and path.name not in CHECKOUT_ONLY
    )


def config_files() -> list[Path]:
    """Configs that can be trained (bases left out), relative to the repository."""
    return [
        path
        for path in shipped_files()
        if path.parts[0] == "configs"
        and path.suffix == ".py"
        and not any(part.startswith("_") for part in path.parts)
    ]


class BuildPy(build_py):
    """Adds `gersp_mm/.mim` to what is built."""

    def run(self) -> None:
        """Build the package; copy the shipped files, or link them for an editable install."""
        if self.editable_mode:
            super().run()
            self.link()
            return
        package = Path(self.build_lib, "gersp_mm")
        shutil.rmtree(package, ignore_errors=True)  # files of an earlier build must not come along
        super().run()
        for path in shipped_files():
            target = package / ".mim" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target)
        for path in config_files():  # so that `mim train gersp_mm gersp_r50` works without ".py"
            alias = package / ".mim" / "aliases" / path.stem
            alias.parent.mkdir(parents=True, exist_ok=True)
            alias.write_text(f"{path.as_posix()}\n", encoding="utf-8")

    def link(self) -> None:
        """Link the shipped folders into the package of the checkout."""
        mim = ROOT / "gersp_mm" / ".mim"
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir()
        for name in SHIPPED:
            link = mim / name
            try:
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(os.path.relpath(ROOT / name, link.parent))
            except OSError:  # no links on this file system: gersp_mm.resources finds the checkout
                return


class EditableWheel(editable_wheel):
    """Adds forwarders for mim to the editable wheel, a zip file like any other."""

    def run(self) -> None:
        """Build the editable wheel, then add the forwarders to it."""
        before = set(Path(self.dist_dir or ".").glob("*.whl"))
        super().run()
        for wheel in set(Path(self.dist_dir).glob("*.whl")) - before:
            self.add_forwarders(wheel)

    def add_forwarders(self, wheel: Path) -> None:
        """Rewrite ``wheel`` with one forwarder per config and script, and their record."""
        extra = {}
        for path in config_files():
            extra[path.as_posix()] = f"_base_ = [{(ROOT / path).as_posix()!r}]\n"
            extra[f"aliases/{path.stem}"] = f"{path.as_posix()}\n"
        for path in shipped_files():
            if path.parent == Path("tools") and path.suffix == ".py":
                extra[path.as_posix()] = (
                    "import runpy\n\n"
                    f'runpy.run_path({(ROOT / path).as_posix()!r}, run_name="__main__")\n'
                )
        partial = wheel.with_suffix(".partial")
        with (
            zipfile.ZipFile(wheel) as source,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for item in source.infolist():
                content = source.read(item)
                if item.filename.endswith(".dist-info/RECORD"):
                    record, rows = item.filename, content.decode()
                    continue
                target.writestr(item, content)
            for name, text in extra.items():
                digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
                rows += (
                    f"gersp_mm/.mim/{name},sha256={digest.rstrip(b'=').decode()},"
                    f"{len(text.encode())}\n"
                )
                target.writestr(f"gersp_mm/.mim/{name}", text)
            target.writestr(record, rows)
        os.replace(partial, wheel)


readme = ROOT / "README.md"
setup(
    name="gersp_mm",
    version=VERSION["__version__"],
    description="GeRSP: generic knowledge boosted pre-training for remote sensing images, "
    "as an MMEngine plugin",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The gersp_mm contributors",
    url="https://arxiv.org/abs/2401.04614",
    project_urls={
        "Paper": "https://doi.org/10.1109/TGRS.2024.3354031",
        "Preprint": "https://arxiv.org/abs/2401.04614",
    },
    license_files=["LICENSE"],
    platforms=["any"],
    keywords="remote sensing, self-supervised learning, pre-training, OpenMMLab",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Natural Language :: English",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: GIS",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",  # as the maintained forks of the OpenMMLab libraries
    packages=find_packages(include=["gersp_mm", "gersp_mm.*"]),
    # Spelt out so that an editable install is a plain path entry: an import hook would lose to the
    # forwarders' folder in site-packages.
    package_dir={"": "."},
    include_package_data=False,
    package_data={"gersp_mm": ["py.typed", "*/templates/*.j2"]},
    entry_points={"console_scripts": ["gersp = gersp_mm.commands.main:cli"]},
    install_requires=requirements("runtime"),
    extras_require={
        # No hard dependencies: "mmengine or onedl-mmengine" cannot be written down for pip, and
        # both names installed together overwrite each other's files.
        "openmmlab": openmmlab("mmengine", "mmcv", "mmpretrain"),
        "downstream": openmmlab("mmengine", "mmcv", "mmpretrain", "mmdet", "mmrotate", "mmseg"),
        "demo": requirements("demo"),
        "tests": requirements("tests"),
        "docs": requirements("docs"),
        "fast": requirements("fast"),
        "raster": requirements("raster"),
        "hub": requirements("hub"),
        "trackers": requirements("trackers"),
    },
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
    zip_safe=False,
)
