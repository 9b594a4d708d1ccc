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
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from check_env import OURS, OWN, ROOT, STACKS, TASKS, TORCH, VERSION, as_text, examine

PYTHON = OWN / "bin" / "python"
NOTE = OWN / "gersp_setup.txt"  # stack, whether it was made here, fingerprint


def run(*command: str | Path, quiet: bool = False, **env: str) -> bool:
    """Run a command with its output on the screen, unless ``quiet``; it keeps the lock."""
    out = subprocess.DEVNULL if quiet else None
    env = {**os.environ, **env}
    return not subprocess.call(command, stdout=out, stderr=out, env=env, close_fds=False)


def make(stack: str) -> None:
    """Make the environment, or give it a Python that runs."""
    base = os.path.realpath(sys.executable)  # a link of this environment goes next
    ours = not any(OWN.glob("*")) or (OWN / "bin").is_dir()
    for link in OWN.glob("bin/python*"):
        link.unlink()
    # A torch of the Python itself is used, unless the other family is there as well.
    alone = not {*VERSION.families(VERSION.installed(sys.path))} - {stack}
    torch = alone and sys.prefix == sys.base_prefix and run(base, "-c", TORCH, quiet=True)
    options = ["--system-site-packages"] * torch
    if not ours or not run(base, "-m", "venv", OWN, *options):
        sys.exit(f"setup_env: {OWN} is no Python environment: move it, or set GERSP_VENV")
    NOTE.write_text(f"{stack} made")


def fingerprint() -> str:
    """Changes with anything that decides what gets installed; mim's forwarders list configs."""
    files = [ROOT / "setup.py", Path(__file__), *sorted((ROOT / "requirements").iterdir())]
    parts = [*sorted(map(str, ROOT.glob("configs/**/*.py"))), *(f.read_text() for f in files)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


class Setup:
    """What the environment whose Python runs this shall hold."""

    def __init__(self, stack: str, tasks: list[str], noted: list[str]) -> None:
        self.stack, self.table, self.packages = stack, STACKS[stack], STACKS[stack]["packages"]
        self.tasks = [t for t in tasks if not {*self.table["absent"]} & {*VERSION.modules(t)}]
        self.made = [word for word in noted if word == "made"]
        present = VERSION.families(VERSION.installed(sys.path))
        for other in {*present} - {stack}:
            names = " ".join(present[other])
            sys.exit(
                f"setup_env: {OWN} holds the {STACKS[other]['title']} of OpenMMLab ({names}). "
                f"Nothing is replaced: complete them (--stack {other}), remove them ({PYTHON} -m "
                f"pip uninstall -y {names}), or name another folder (GERSP_VENV=.venv-{stack})"
            )

    def pip(self, *arguments: str | Path, quiet: bool = False, **env: str) -> bool:
        """Install by uv where it is, else by pip; failing ends the program, unless ``quiet``."""
        tool = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
        if shutil.which("uv"):
            tool = ["uv", "pip", "install", "--python", PYTHON]
            for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "CONSTRAINT"):
                if words := os.environ.get(f"PIP_{name}", "").split():
                    env[f"UV_{name}"] = ("," if name == "FIND_LINKS" else " ").join(words)
            env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip
        done = run(*tool, *arguments, quiet=quiet, **env)
        if not done and not quiet:
            sys.exit(
                "setup_env: installing failed, see above: repeat it to go on there. "
                f"{self.table['title']} need Python {' or '.join(self.table['pythons'])} and "
                f"torch>={self.packages['torch']['oldest']}; for others set --stack or GERSP_VENV"
            )
        return done

    def pins(self) -> list[str]:
        """Return requirements for torch and the libraries: what stays, and what is to come."""
        found, pins, free = VERSION.installed(sys.path), [], shutil.disk_usage(OWN).free / 1e9
        if "torch" not in found and free < 7:  # pip would say so after minutes
            print(f"{OWN} has {free:.1f} GB free; PyTorch with CUDA needs about 7", flush=True)
        least = "tested" if self.made else "oldest"  # environments made here follow the table
        modules = dict.fromkeys(name for task in self.tasks for name in VERSION.modules(task))
        for row in [self.packages[name] for name in modules if name in self.packages]:
            name = next((name for name in row["names"] if name in found), row["names"][0])
            pin = f"{name}=={row['tested']}"
            if name == "torch" in found:  # if it is too old, pip says so before it changes anything
                pin = f"{name}=={found[name]},>={row['oldest']}"
            elif name == "torchvision" and {"torch", name} & found.keys():
                pin = f"{name}>={row['oldest']}"  # pip keeps or finds the partner of torch
            elif name in found and VERSION.satisfies(found[name], f">={row[least]}"):
                pin = f"{name}=={found[name]}"
            elif name == "mmcv" and name not in found:  # without a wheel it would be compiled
                wheel = self.pip("--dry-run", "--no-deps", "--only-binary=:all:", pin, quiet=True)
                pin = pin if wheel else f"mmcv-lite=={row['tested']}"
            pins.append(pin)
        return pins

    def install(self, damaged: list[str], compile_ops: bool) -> None:
        """Run every step, check the result, and note that it is done."""
        NOTE.write_text(" ".join([self.stack, *self.made]))  # in flux: no fingerprint
        run(PYTHON, "-m", "ensurepip", "--default-pip", quiet=True)  # adds a pip that is missing
        for pin in damaged:
            self.pip("--force-reinstall", "--no-deps", pin)
        pins, folder = self.pins(), ROOT / "requirements"
        files = dict.fromkeys(f"-r{folder}/{f}.txt" for t in self.tasks for f in TASKS[t]["files"])
        self.pip(*pins, *self.table["limits"], *files)
        self.fit_to_torch(compile_ops)
        if not self.pip("--only-binary=:all:", f"-r{folder}/fast.txt", *pins, quiet=True):
            print("going on without fast.txt: slower on CPUs, no packed image folders")
        for file, task in {"mim": "tests", "cam": "demo"}.items():
            if task in self.tasks:
                self.pip("-q", "--no-deps", f"-r{folder}/{file}.txt")
        self.pip("-q", "--no-deps", "--force-reinstall", "-e", ROOT)
        print(as_text(report := examine(self.tasks)))
        if report["command"]:
            sys.exit("setup_env: the installation ran through, but the check above found gaps")
        NOTE.write_text(" ".join([self.stack, *self.made, fingerprint()]))

    def fit_to_torch(self, compile_ops: bool) -> None:
        """Replace a torchvision or an mmcv that does not fit torch; compile mmcv if asked for."""
        torch, vision, _, mmcv = examine(["pretraining"])["packages"][:4]
        if "broken" in (torch["state"], vision["state"]):
            found = VERSION.installed(sys.path)
            pair = [f"{name}=={found[name]}" for name in ("torch", "torchvision")]
            self.pip("--force-reinstall", "--no-deps", *pair)
            mmcv = examine(["pretraining"])["packages"][3]
        misfit = any(word in mmcv["note"] for word in ("_ext", "ended Python"))  # its operators
        if not misfit and not (compile_ops and mmcv["note"] == OURS):
            return
        names = self.packages["mmcv"]["names"]
        run(PYTHON, "-m", "pip", "uninstall", "-q", "-y", *names)
        # Not the cache: it may hold a wheel of this version of the other kind. A build in isolation
        # sees no torch and leaves the operators out; mmcv-lite, the last name, has none.
        options, env = ["--no-deps", "--no-cache-dir", f"--no-binary={names[0]}"], {}
        if compile_ops:
            self.pip("setuptools", "wheel", "ninja", *self.table["limits"])
            options.append("--no-build-isolation")
            env = {"MMCV_WITH_OPS": "1", "CFLAGS": os.environ.get("CFLAGS", "-g0 -O2")}
            if not shutil.which("nvcc") and "CUDA_HOME" not in os.environ:
                env["CUDA_VISIBLE_DEVICES"] = ""  # no CUDA compiler: operators for the CPU
        self.pip(f"{names[0 if compile_ops else -1]}=={mmcv['version']}", *options, **env)


def damaged_distributions(site: Path) -> list[str]:
    """Return pins of what pip or uv were writing when they were cut off."""
    damaged = []  # RECORD is written last and lists every file; pip itself does not look at them
    for info in site.glob("*.dist-info"):
        item = metadata.Distribution.at(info)
        lines = (item.read_text("RECORD") or "").splitlines()
        files = [site / line.rsplit(",", 2)[0].strip('"') for line in lines]
        whole = files and all(file.exists() for file in files if file.suffix != ".pyc")
        ours = (item.read_text("INSTALLER") or "pip").strip() in ("pip", "uv")
        if ours and not whole and not item.read_text("direct_url.json"):
            damaged.append("==".join(info.stem.rsplit("-", 1)))
            if not files or info.stem.startswith("pip-"):
                shutil.rmtree(info)  # pip cannot uninstall it
    return damaged


def main() -> None:
    """Install what the arguments ask for."""
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
    noted = NOTE.read_text().split() if NOTE.is_file() else []
    stack = args.stack or next(iter([*noted, *STACKS]))
    if not (shutil.which(PYTHON) and run(PYTHON, "-c", "", quiet=True)):
        make(stack)
    if "GERSP_INSIDE" not in os.environ:  # go on by the Python of the environment
        os.execve(PYTHON, [str(PYTHON), *sys.argv], os.environ | {"GERSP_INSIDE": "1"})
    tasks = [task for task, row in TASKS.items() if row["option"] in ["", *(args.options or [])]]
    setup = Setup(stack, tasks, noted)
    if args.wheels:
        torch = VERSION.installed(sys.path).get("torch", setup.packages["torch"]["tested"])
        index = setup.table["wheels"].format(device=args.wheels, torch=torch.split("."))
        os.environ["PIP_FIND_LINKS"] = f"{os.environ.get('PIP_FIND_LINKS', '')} {index}".strip()
    damaged = damaged_distributions(Path(sysconfig.get_path("purelib")))
    finished = fingerprint() in noted and not examine(setup.tasks)["command"]
    if args.compile_ops or damaged or not finished:
        setup.install(damaged, args.compile_ops)
    print(f"ready: {', '.join(setup.tasks)}; enter it: source {os.path.relpath(OWN)}/bin/activate")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("setup_env: interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
