"""Build, complete or repair the Python environment of this checkout.

Started by tools/setup_env.sh; standard library only. The environment is the folder .venv of the
checkout, or the one that GERSP_VENV names. When everything is there already, this only looks (a few
seconds). Run again, it goes on where it was stopped, and repairs what was cut off. A torch that
works is kept, and no family of OpenMMLab is ever replaced by the other.

Examples:
  bash tools/setup_env.sh                   # pre-training and classification; compiles nothing
  bash tools/setup_env.sh --downstream      # also detection, rotated detection, segmentation
  bash tools/setup_env.sh --tests --demo    # also what the tests and the quickstart need
  GERSP_VENV=.venv-original bash tools/setup_env.sh --stack original --downstream

environment:
  GERSP_VENV       folder of the environment (default: .venv in the checkout)
  GERSP_PYTHON     the Python to build it with (default: the first of 3.11, 3.12, 3.10, 3.13)
  PIP_*            pip's own settings. PIP_FIND_LINKS may name a folder or an index with compiled
                   mmcv wheels; PIP_EXTRA_INDEX_URL may name PyTorch's CPU-only index, which saves
                   gigabytes on a machine without a GPU
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from check_env import ROOT, STACKS, TASKS, families, installed, key, own

# Settings of pip that uv knows by other names.
UV_NAMES = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX",
            "PIP_FIND_LINKS": "UV_FIND_LINKS", "PIP_CONSTRAINT": "UV_CONSTRAINT"}  # fmt: skip
PYTHON = "import sys, pip._internal.cli.main; print('%d.%d' % sys.version_info[:2])"
TORCH = "import torch; torch.ones(1).numpy(); print(torch.__version__)"
PAIR = TORCH + "; import torchvision as t; t.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
OPERATORS = "import torch, mmcv._ext; print('yes')"
ABSENT = "try: import torch, mmcv._ext\nexcept ModuleNotFoundError as e: print(e.name[:9])"


class SetupError(Exception):
    """Ends the program with one line."""


class Setup:
    """One environment and what it shall hold."""

    def __init__(self, venv: Path, stack: str | None, tasks: list[str]) -> None:
        self.venv, self.python = venv, venv / "bin" / "python"
        self.note = venv / "gersp_setup.txt"  # stack, fingerprint, and whether it was made here
        self.noted = self.note.read_text().split() if self.note.is_file() else []
        self.made = "made" in self.noted or (venv / "gersp_setup.json").is_file()  # of earlier ones
        self.stack = self.choose(stack)
        self.table, self.packages = STACKS[self.stack], STACKS[self.stack]["packages"]
        self.tasks = [t for t in tasks if not set(TASKS[t][1]) & set(self.table.get("absent", {}))]

    def run(self, *command: object, quiet: bool = False, **env: str) -> bool:
        """Run a command with its output on the screen, unless ``quiet``; it keeps the lock."""
        out = subprocess.DEVNULL if quiet else None
        words, env = [str(part) for part in command], {**os.environ, **env}
        return not subprocess.call(words, stdout=out, stderr=out, env=env, close_fds=False)

    def ask(self, code: str) -> str:
        """Return the output of a line of Python in the environment; empty if it fails."""
        if not self.python.exists():
            return ""
        command = [self.python, "-W", "ignore", "-c", code]  # not in the checkout, it imports there
        done = subprocess.run(command, text=True, capture_output=True, cwd=self.venv)
        return done.stdout.strip() if done.returncode == 0 else ""

    def pip(self, *arguments: object, quiet: bool = False, **env: str) -> bool:
        """Install by uv where it is, else by pip; SetupError if it fails, unless ``quiet``."""
        tool: list = [self.python, "-m", "pip", "install", "--disable-pip-version-check"]
        if shutil.which("uv"):
            tool = ["uv", "pip", "install", "--python", self.python]
            env |= {new: os.environ[old] for old, new in UV_NAMES.items() if old in os.environ}
            env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip
        done = self.run(*tool, *arguments, quiet=quiet, **env)
        if not done and not quiet:
            full = shutil.disk_usage(self.venv).free < 1 << 30
            why = "the disk is full" if full else "its message stands above"
            raise SetupError(f"installing failed, {why}; the same command goes on from there")
        return done

    def found(self) -> dict[str, str]:
        """Return name -> version of what the environment sees; of its folder, if Python is gone."""
        code = f"import json, sys; sys.path.append({str(ROOT / 'tools')!r}); import check_env as c"
        if seen := self.ask(code + "; print(json.dumps(c.installed()))"):
            return json.loads(seen)
        return installed([str(path) for path in self.venv.glob("lib/python*/site-packages")])

    def choose(self, wanted: str | None) -> str:
        """Return the stack to install; stop where another one is there."""
        present = families(self.found())
        stack = wanted or next(iter([*self.noted, *STACKS]))
        for other in set(present) - {stack}:
            title, names = STACKS[other]["title"], " ".join(present[other])
            if stack in present:
                raise SetupError(
                    f"{self.venv} mixes two families, whose files overwrite each other. Remove one "
                    f"({self.python} -m pip uninstall -y {names}) and repeat: the other is repaired"
                )
            raise SetupError(
                f"{self.venv} holds the {title} of OpenMMLab ({names}); nothing is replaced. "
                f"Complete them (--stack {other}), or make another environment "
                f"(GERSP_VENV=.venv-{stack} bash tools/setup_env.sh)"
            )
        return stack

    def fingerprint(self) -> str:
        """Changes with anything that decides what gets installed; mim's forwarders list configs."""
        files = [*(ROOT / "requirements").iterdir(), ROOT / "setup.py", Path(__file__)]
        configs = sorted(str(path) for path in (ROOT / "configs").rglob("*.py"))
        content = b"".join(file.read_bytes() for file in sorted(files))
        return hashlib.sha256(content + "".join(configs).encode()).hexdigest()

    def write_note(self, fingerprint: str = "") -> None:
        """Note what later runs go by."""
        self.note.write_text(f"{self.stack} {fingerprint} {'made' * self.made}")

    def check(self, quiet: bool = False) -> bool:
        """Return whether all tasks can run; print the details unless ``quiet``."""
        tasks = [word for task in self.tasks for word in ("--require", task)]
        script = ROOT / "tools" / "check_env.py"
        return self.run(self.python, script, "--only-required", *tasks, quiet=quiet)

    # the steps -----------------------------------------------------------------------------------
    def make(self) -> None:
        """Make the environment, or repair its Python and what was cut off."""
        existed, found = self.python.exists(), self.ask(PYTHON)
        if self.venv.is_dir() and os.listdir(self.venv) and not (self.venv / "bin").is_dir():
            raise SetupError(f"{self.venv} is no Python environment: move it, or set GERSP_VENV")
        version = found or "{}.{}".format(*sys.version_info)
        if version not in self.table["pythons"]:
            raise SetupError(
                f"the {self.table['title']} need Python {' or '.join(self.table['pythons'])}, this "
                f"is {version}: name another by {'GERSP_VENV' if found else 'GERSP_PYTHON'}"
            )
        if not found:
            for link in self.venv.glob("bin/python*"):  # the Python they point to may be gone
                link.unlink()
            base = sys.prefix == sys.base_prefix and self.run(
                sys.executable, "-c", PAIR, quiet=True
            )
            make = [sys.executable, "-m", "venv", self.venv, *["--system-site-packages"] * base]
            if not (self.run(*make) and self.ask(PYTHON)) and not self.run(*make, "--clear"):
                raise SetupError(f"{self.venv} could not be made, the message stands above")
        self.made = self.made or not existed
        self.write_note()  # without fingerprint while it is in flux
        for pin in damaged_distributions(self.venv):
            self.pip("--force-reinstall", "--no-deps", pin)

    def pins(self) -> list[str]:
        """Return requirements for torch and the libraries: what stays, and what is to come."""
        found, pins = self.found(), []
        modules = {name for task in self.tasks for name in TASKS[task][1]}
        for module in [name for name in self.packages if name in modules]:
            row = self.packages[module]
            name = next((name for name in row["names"] if name in found), row["names"][0])
            version, tested = found.get(name, "0"), row["tested"]
            if module == "mmcv" and version == "0" and not self.has_wheel(f"{name}=={tested}"):
                name = row["names"][-1]  # mmcv-lite; the fork, built in isolation, is as small
            # Environments made here follow the table exactly, but for a torch that was there.
            follow = self.made and module not in ("torch", "torchvision")
            stays = version == tested if follow else key(version) >= key(row["oldest"])
            if module == "torch" and version != "0" and not stays and self.ask(TORCH):
                raise SetupError(
                    f"{self.venv} has torch {version}, too old for the {self.table['title']}, and "
                    "nothing is replaced: take --stack original, or another folder (GERSP_VENV)"
                )
            pins.append(f"{name}=={version if stays else tested}")
        if "torchvision" not in found and pins[0] != f"torch=={self.packages['torch']['tested']}":
            pins[1] = "torchvision"  # the partner of a torch that stays
        return pins

    def has_wheel(self, pin: str) -> bool:
        """Whether pip finds a wheel, which holds the compiled operators."""
        with tempfile.TemporaryDirectory() as folder:
            options = ("--no-deps", "--only-binary=:all:", "-d", folder, pin)
            return self.run(self.python, "-m", "pip", "download", *options, quiet=True)

    def install(self, compile_ops: bool) -> None:
        """Run every step, check the result, and note that it is done; SetupError if one fails."""
        self.make()
        stays = {} if self.made else {"setuptools": self.found().get("setuptools")}
        limits = [line for line in self.table["limits"] if not stays.get(line.split(">")[0])]
        pins, folder = [*self.pins(), *limits], ROOT / "requirements"
        files = dict.fromkeys(folder / f"{f}.txt" for task in self.tasks for f in TASKS[task][2])
        self.pip(*pins, "wheel", *(word for file in files for word in ("-r", file)))
        if not self.ask(PAIR):  # there, but damaged or not fitting together
            self.pip("--force-reinstall", "--no-deps", *pins[:2])
        missing = not self.ask(OPERATORS)
        if missing and (compile_ops or not self.ask(ABSENT)):  # or made for another torch
            self.rebuild_mmcv(
                next(pin for pin in pins if "mmcv" in pin).split("==")[1], compile_ops
            )
        if not self.pip("--only-binary=:all:", "-r", folder / "fast.txt", *pins, quiet=True):
            print("going on without fast.txt: slower on CPUs, no packed image folders")
        for alone in [("mim", "tests"), ("cam", "demo")]:
            if alone[1] in self.tasks:
                self.pip("-q", "--no-deps", "-r", folder / f"{alone[0]}.txt")
        self.pip("-q", "--no-deps", "--no-build-isolation", "--force-reinstall", "-e", ROOT)
        if not self.check():
            raise SetupError("the installation ran through, but the check above found gaps")
        self.write_note(self.fingerprint())

    def rebuild_mmcv(self, version: str, operators: bool) -> None:
        """Compile mmcv with its operators, or install it without them."""
        names = self.packages["mmcv"]["names"]
        self.run(self.python, "-m", "pip", "uninstall", "-q", "-y", *names)
        # Not the cache: it may hold a wheel of this version of the other kind. A build in isolation
        # sees no torch and leaves the operators out; mmcv-lite, the last name, has none.
        options = ["--no-deps", "--no-cache-dir", f"--no-binary={names[0]}"]
        if not operators:
            self.pip(f"{names[-1]}=={version}", *options)
            return
        self.pip("ninja", "wheel", *self.table["limits"])
        env = {"MMCV_WITH_OPS": "1", "CFLAGS": os.environ.get("CFLAGS", "-g0 -O2")}
        if not shutil.which("nvcc") and "CUDA_HOME" not in os.environ:
            env["CUDA_VISIBLE_DEVICES"] = ""  # no CUDA compiler: operators for the CPU
        self.pip(f"{names[0]}=={version}", *options, "--no-build-isolation", **env)


def damaged_distributions(venv: Path) -> list[str]:
    """Pins of what pip or uv were writing when they were cut off.

    pip writes RECORD last, and every file in it exists then. A distribution without RECORD, or
    with a listed file gone, is not complete, although pip itself would call it installed.
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


def main(argv: list[str] | None = None) -> int:
    """Install what the arguments ask for; return the exit code."""
    head, _, tail = (__doc__ or "").partition("\nExamples:")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "setup_env.sh", None, head, "Examples:" + tail, formatter_class=raw
    )
    titles = "; ".join(f"{name}: {table['title']}" for name, table in STACKS.items())
    parser.add_argument("--stack", choices=list(STACKS), help=f"family of OpenMMLab ({titles})")
    for option, text in {
        "--downstream": "mmdet, mmrotate, mmsegmentation",
        "--demo": "what requirements/demo.txt lists",
        "--tests": "what requirements/tests.txt lists",
        "--docs": "what requirements/docs.txt lists",
        "--compile-ops": "compile mmcv's operators where no wheel is found (20 minutes on 2 cores)",
    }.items():
        parser.add_argument(option, action="store_true", help=text)
    args = parser.parse_args(argv)
    options = {"", *(f"--{name}" for name, value in vars(args).items() if value is True)}
    began, venv = time.monotonic(), own()
    try:
        setup = Setup(venv, args.stack, [task for task, row in TASKS.items() if row[3] in options])
        noted = setup.fingerprint() in setup.noted
        if args.compile_ops or not (noted and setup.check(quiet=True)):
            setup.install(args.compile_ops)
    except SetupError as error:
        print(f"setup_env: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup_env: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    print(f"ready in {time.monotonic() - began:.0f} s ({', '.join(setup.tasks)})")
    print(f"enter it: source {os.path.relpath(venv)}/bin/activate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
