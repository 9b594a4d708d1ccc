"""Build, complete or repair the Python environment of this checkout.

Run again it takes seconds, goes on where it was stopped, and repairs what was cut off. A torch that
works is kept, and no family of OpenMMLab is ever replaced by the other.

Examples:
  bash tools/setup_env.sh                   # pre-training and classification; compiles nothing
  bash tools/setup_env.sh --downstream      # also detection, rotated detection, segmentation
  GERSP_VENV=.venv-original bash tools/setup_env.sh --stack original --downstream

GERSP_VENV names the folder (.venv), GERSP_PYTHON the Python to build it with. pip's own settings
work: PIP_FIND_LINKS for compiled mmcv, PIP_EXTRA_INDEX_URL for PyTorch without CUDA.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import check_env
from check_env import OWN, ROOT, STACKS, TASKS, VERSION

UV = ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "CONSTRAINT")  # pip's settings that uv shares


def stop(said: str) -> SystemExit:
    """Return what ends the program with one line and exit code 1."""
    return SystemExit(f"setup_env: {said}")


class Setup:
    """One environment and what it shall hold."""

    def __init__(self, venv: Path, stack: str | None, tasks: list[str]) -> None:
        self.venv, self.python = venv, venv / "bin" / "python"
        self.note = venv / "gersp_setup.txt"  # stack, whether it was made here, fingerprint
        self.noted = self.note.read_text().split() if self.note.is_file() else []
        self.stack = stack or next(iter([*self.noted, *STACKS]))
        self.table, self.packages = STACKS[self.stack], STACKS[self.stack]["packages"]
        self.tasks = [t for t in tasks if not {*self.table["absent"]} & {*VERSION.modules(t)}]
        present = VERSION.families(self.found())
        for other in {*present} - {self.stack}:
            names = " ".join(present[other])
            raise stop(
                f"{venv} holds the {STACKS[other]['title']} of OpenMMLab ({names}). Nothing is "
                f"replaced: complete them (--stack {other}), remove them ({self.python} -m pip "
                f"uninstall -y {names}), or name another folder (GERSP_VENV=.venv-{self.stack})"
            )

    def run(self, *command: object, quiet: bool = False, **env: str) -> bool:
        """Run a command with its output on the screen, unless ``quiet``; it keeps the lock."""
        out, words = subprocess.DEVNULL if quiet else None, [str(part) for part in command]
        return not subprocess.call(
            words, stdout=out, stderr=out, env=os.environ | env, close_fds=False
        )

    def ask(self, *arguments: object) -> str:
        """Return what the environment's Python prints; empty if it cannot run."""
        try:  # not in the checkout, it imports there
            command = [str(word) for word in (self.python, "-W", "ignore", *arguments)]
            return subprocess.run(command, text=True, capture_output=True, cwd=self.venv).stdout
        except OSError:
            return ""

    def pip(self, *arguments: object, quiet: bool = False, **env: str) -> bool:
        """Install by uv where it is, else by pip; failing ends the program, unless ``quiet``."""
        tool: list = [self.python, "-m", "pip", "install", "--disable-pip-version-check"]
        if shutil.which("uv"):
            tool = ["uv", "pip", "install", "--python", self.python]
            env |= {f"UV_{k}": os.environ[f"PIP_{k}"] for k in UV if f"PIP_{k}" in os.environ}
            env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip
        if (done := self.run(*tool, *arguments, quiet=quiet, **env)) or quiet:
            return done
        raise stop(
            f"installing failed, see above: repeat it to go on there. {self.table['title']} need "
            f"Python {' or '.join(self.table['pythons'])} and torch>="
            f"{self.packages['torch']['oldest']}; for others take another --stack or GERSP_VENV"
        )

    def found(self) -> dict[str, str]:
        """Return name -> version of what the environment sees; of its folder, if Python is gone."""
        paths = self.ask("-c", "import sys; print(*sys.path, sep=chr(10))").splitlines()
        folders = paths or [str(p) for p in self.venv.glob("lib/python*/site-packages")]
        return VERSION.installed(folders)

    def look(self) -> dict:
        """Return what check_env finds in the environment."""
        words = [f"--require={task}" for task in self.tasks]
        said = self.ask(check_env.__file__, "--json", "--only-required", *words)
        return json.loads(said or '{"command": "it does not run"}')

    def fingerprint(self) -> str:
        """Changes with anything that decides what gets installed; mim's forwarders list configs."""
        files = [ROOT / "setup.py", Path(__file__), *sorted((ROOT / "requirements").iterdir())]
        parts = [*sorted(map(str, ROOT.glob("configs/**/*.py"))), *(f.read_text() for f in files)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def make(self) -> None:
        """Make the environment, or repair its Python and what was cut off."""
        if self.venv.is_dir() and os.listdir(self.venv) and not (self.venv / "bin").is_dir():
            raise stop(f"{self.venv} is no Python environment: move it, or set GERSP_VENV")
        if not self.python.exists():
            self.noted = [self.stack, "made"]
        if not self.ask("-c", "print('works')"):
            python = os.path.realpath(sys.executable)  # a link of this environment goes next
            for link in self.venv.glob("bin/python*"):  # the Python they point to may be gone
                link.unlink()
            # A torch of the Python itself is used, unless the other family is there as well.
            alone = not {*VERSION.families(VERSION.installed(sys.path))} - {self.stack}
            base = alone and self.run(python, "-c", check_env.TORCH, quiet=True)
            options = ["--system-site-packages"] * (base and sys.prefix == sys.base_prefix)
            if not self.run(python, "-m", "venv", self.venv, *options):
                raise stop(f"{self.venv} could not be made: move it, or set GERSP_VENV")
        if not self.ask("-c", "import pip._internal.cli.main; print('works')"):
            for info in self.venv.glob("lib/python*/site-packages/pip-*.dist-info"):
                shutil.rmtree(info)  # ensurepip keeps what it takes for installed
            self.run(self.python, "-m", "ensurepip", "--default-pip")
        self.note.write_text(" ".join([self.stack, *self.noted[1:2]]))  # in flux: no fingerprint
        for pin in damaged_distributions(self.venv):
            self.pip("--force-reinstall", "--no-deps", pin)

    def pins(self) -> list[str]:
        """Return requirements for torch and the libraries: what stays, and what is to come."""
        found, pins, free = self.found(), [], shutil.disk_usage(self.venv).free / 1e9
        if "torch" not in found and free < 7:  # pip would say so after minutes
            said = f"{self.venv} has {free:.1f} GB free; PyTorch with CUDA needs about 7"
            print(said, flush=True)
        wanted = {name for task in self.tasks for name in VERSION.modules(task)}
        for module in [name for name in self.packages if name in wanted]:
            row = self.packages[module]
            oldest, tested = row["oldest"], row["tested"]
            name = next((name for name in row["names"] if name in found), row["names"][0])
            # Environments made here follow the table, but for a torch that was there.
            least = tested if "made" in self.noted else oldest
            stays = name in found and VERSION.satisfies(found[name], f">={least}")
            if name == "torch" in found:  # if it is too old, pip says so before it changes anything
                pins.append(f"torch=={found['torch']},>={oldest}")
            elif name == "torchvision" and (stays or "torch" in found):
                pins.append(f"torchvision>={oldest}")  # pip keeps or finds the partner of torch
            else:
                pins.append(f"{name}=={found[name] if stays else tested}")
            wheel = ("--dry-run", "--no-deps", "--only-binary=:all:", pins[-1])
            if module == "mmcv" and name not in found and not self.pip(*wheel, quiet=True):
                pins[-1] = f"{row['names'][-1]}=={tested}"  # mmcv-lite; the fork is as small
        return pins

    def install(self, compile_ops: bool) -> None:
        """Run every step, check the result, and note that it is done."""
        self.make()
        pins, folder = self.pins(), ROOT / "requirements"
        files = dict.fromkeys(f"-r{folder}/{f}.txt" for t in self.tasks for f in TASKS[t]["files"])
        builders = ["setuptools", "wheel", "ninja"] * compile_ops
        self.pip(*pins, *self.table["limits"], *builders, *files)
        torch, vision, _, mmcv = self.look()["packages"][:4]  # in the order of version.CORE
        if "broken" in (torch["state"], vision["state"]):  # they do not fit together
            pair = [f"{name}=={self.found()[name]}" for name in ("torch", "torchvision")]
            self.pip("--force-reinstall", "--no-deps", *pair)
            mmcv = self.look()["packages"][3]
        misfit = mmcv["state"] == "broken" and re.search("_ext|ended Python", mmcv["note"])
        if misfit or (compile_ops and mmcv["note"] == check_env.OURS):
            self.replace_mmcv(mmcv["version"], compile_ops)
        if not self.pip("--only-binary=:all:", f"-r{folder}/fast.txt", *pins, quiet=True):
            print("going on without fast.txt: slower on CPUs, no packed image folders")
        for file, task in {"mim": "tests", "cam": "demo"}.items():
            if task in self.tasks:
                self.pip("-q", "--no-deps", f"-r{folder}/{file}.txt")
        self.pip("-q", "--no-deps", "--force-reinstall", "-e", ROOT)
        print(check_env.as_text(report := self.look()))
        if report["command"]:
            raise stop("the installation ran through, but the check above found gaps")
        self.note.write_text(" ".join([self.stack, *self.noted[1:2], self.fingerprint()]))

    def replace_mmcv(self, version: str, operators: bool) -> None:
        """Compile mmcv with its operators, or install it without them."""
        names, env = self.packages["mmcv"]["names"], {}
        self.run(self.python, "-m", "pip", "uninstall", "-q", "-y", *names)
        # Not the cache: it may hold a wheel of this version of the other kind. A build in isolation
        # sees no torch and leaves the operators out; mmcv-lite, the last name, has none.
        options = ["--no-deps", "--no-cache-dir", f"--no-binary={names[0]}"]
        if operators:
            options.append("--no-build-isolation")
            env = {"MMCV_WITH_OPS": "1", "CFLAGS": os.environ.get("CFLAGS", "-g0 -O2")}
            if not shutil.which("nvcc") and "CUDA_HOME" not in os.environ:
                env["CUDA_VISIBLE_DEVICES"] = ""  # no CUDA compiler: operators for the CPU
        self.pip(f"{names[0 if operators else -1]}=={version}", *options, **env)


def damaged_distributions(venv: Path) -> list[str]:
    """Return pins of what pip or uv were writing when they were cut off.

    RECORD is written last and lists every file; pip itself calls what lacks them installed.
    """
    damaged = []
    for info in venv.glob("lib/python*/site-packages/*.dist-info"):
        item = metadata.Distribution.at(info)
        names = [line.split(",")[0] for line in (item.read_text("RECORD") or "").splitlines()]
        whole = names and all((info.parent / n).exists() for n in names if n[-4:] != ".pyc")
        ours = (item.read_text("INSTALLER") or "pip").strip() in ("pip", "uv")
        if ours and not whole and not item.read_text("direct_url.json"):
            damaged.append("==".join(info.stem.rsplit("-", 1)))
            if not names:
                shutil.rmtree(info)  # pip cannot uninstall it
    return damaged


def main() -> int:
    """Install what the arguments ask for; return the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("setup_env.sh", description=__doc__, formatter_class=raw)
    titles = "; ".join(f"{name}: {table['title']}" for name, table in STACKS.items())
    parser.add_argument("--stack", choices=list(STACKS), help=f"family of OpenMMLab ({titles})")
    for option in dict.fromkeys(row["option"] for row in TASKS.values() if row["option"]):
        text = ", ".join(row["title"] for row in TASKS.values() if row["option"] == option)
        parser.add_argument(option, action="append_const", dest="options", const=option, help=text)
    text = "look for a compiled mmcv for DEVICE (cpu, cu128, ...) in its maintainers' index, too"
    parser.add_argument("--wheels", metavar="DEVICE", help=text)
    text = "compile mmcv's operators where no wheel is found (20 minutes on 2 cores)"
    parser.add_argument("--compile-ops", action="store_true", help=text)
    args = parser.parse_args()
    tasks = [task for task, row in TASKS.items() if row["option"] in ["", *(args.options or [])]]
    try:
        setup = Setup(OWN, args.stack, tasks)
        if args.wheels:
            torch = setup.found().get("torch", setup.packages["torch"]["tested"]).split(".")
            index = setup.table["wheels"].format(device=args.wheels, major=torch[0], minor=torch[1])
            os.environ["PIP_FIND_LINKS"] = f"{os.environ.get('PIP_FIND_LINKS', '')} {index}".strip()
        finished = setup.fingerprint() in setup.noted and not setup.look()["command"]
        if args.compile_ops or not finished:
            setup.install(args.compile_ops)
    except KeyboardInterrupt:
        print("setup_env: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    place = f"{os.path.relpath(setup.venv)}/bin/activate"
    print(f"ready: {', '.join(setup.tasks)}; enter it: source {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
