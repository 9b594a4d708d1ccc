"""Build, complete or repair the Python environment of this checkout.

Started by tools/setup_env.sh; standard library only. The environment is the folder .venv of the
checkout, or the one that GERSP_VENV names. When everything is there already, this only looks
(a few seconds). A half-finished or damaged environment is repaired.

Examples:
  bash tools/setup_env.sh                   # pre-training and classification; minutes
  bash tools/setup_env.sh --downstream      # also detection, rotated detection, segmentation;
                                            # compiles mmcv's operators: 20 minutes on 2 cores
  bash tools/setup_env.sh --tests --demo    # also what the tests and the quickstart need

environment:
  GERSP_VENV       folder of the environment (default: .venv in the checkout)
  GERSP_PYTHON     the Python to build it with (default: the first of 3.11, 3.12, 3.10, 3.13)
  PIP_*            pip's own settings. PIP_FIND_LINKS may name a folder with a prebuilt onedl-mmcv
                   wheel, which saves the compilation; PIP_EXTRA_INDEX_URL may name PyTorch's
                   CPU-only index, which saves gigabytes on a machine without a GPU
  MAX_JOBS         processes of the compilation (default: number of cores)
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import runpy
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no file locks on this platform
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("demo", "tests", "docs")
STAMP = "gersp_setup.json"
HEARTBEAT = 10  # seconds between signs of life
# Newest setuptools series with pkg_resources, which openmim and mmcv's build import.
BUILD_TOOLS = ("setuptools>=80,<82", "wheel")
NETWORK_SIGNS = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Max retries exceeded|Temporary failure in name|"
    r"Name or service not known|Network is unreachable|ProxyError|SSLError|ConnectionResetError|"
    r"IncompleteRead|Connection broken|Connection refused|RemoteDisconnected|"
    r"\(from versions: none\)",
    re.I,
)
# Is there a torch that can be kept? 2.3 is the first release that works with numpy 2, which
# mmsegmentation asks for.
TORCH_PROBE = """
import warnings; warnings.simplefilter("ignore")
import re, torch, torchvision
torch.ones(1).numpy()
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
numbers = tuple(int(n) for n in re.findall(r"\\d+", torch.__version__)[:2])
assert (2, 3) <= numbers < (3, 0), torch.__version__
print(torch.__version__, torchvision.__version__)
"""


class SetupError(Exception):
    """Ends the program with one line."""


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def requirement_lines(name: str) -> list[str]:
    """Return the lines of ``requirements/<name>.txt`` without comments."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.split("#", 1)[0].strip() for line in lines) if line]


def pin_of(file: str, name: str) -> str:
    """Return the requirement of ``file`` that begins with ``name``."""
    return next(line for line in requirement_lines(file) if re.match(rf"{name}\b", line))


def diagnose(log: list[str], returncode: int) -> str:
    """One line out of pip's output."""
    text = "\n".join(log)
    if "No space left on device" in text:
        return "the disk is full; free some space (a full environment takes about 10 GB) and repeat"
    if NETWORK_SIGNS.search(text):
        return (
            "the package index could not be reached or is empty; check the network (or the "
            "PIP_INDEX_URL, HTTPS_PROXY and PIP_FIND_LINKS settings) and repeat: finished steps "
            "are kept"
        )
    errors = [line.strip() for line in log if re.match(r"\s*(ERROR|error|fatal)\b", line)]
    return errors[-1] if errors else f"the command ended with status {returncode}"


def damaged_distributions(site: Path) -> list[Path]:
    """Metadata folders of installs that were cut off, and what pip leaves when it is killed.

    pip writes RECORD last, and every file in it exists then. A distribution without RECORD, or
    with a listed file gone, is not complete, although pip itself would call it installed.
    """
    damaged = [path for path in site.glob("~*") if path.is_dir()]
    for info in site.glob("*.dist-info"):
        record = info / "RECORD"
        complete = (
            record.is_file() and (info / "METADATA").is_file() and ((info / "INSTALLER").is_file())
        )
        if complete:
            for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
                name = line.rsplit(",", 2)[0].strip('"')
                if name and not name.endswith(".pyc") and not (site / name).exists():
                    complete = False
                    break
        if not complete:
            damaged.append(info)
    return damaged


class Setup:
    """The steps, each of which can be repeated at any time."""

    def __init__(self, venv: Path, downstream: bool, extras: list[str], lock=None) -> None:
        self.venv = venv
        self.python = venv / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.downstream = downstream
        self.extras = extras
        self.lock = lock
        self.log_file = venv.parent / f"{venv.name}.log"
        self.started = time.monotonic()
        self.step = ""
        self.steps: list = []

    # running commands ----------------------------------------------------------------------------
    def run(self, command: list, env: dict | None = None) -> list[str]:
        """Run a command into the log, with a sign of life every few seconds; its last lines.

        Raises:
            SetupError: it failed; names the step, the cause and the log.
        """
        began = shown = time.monotonic()
        tail: list[str] = []
        with open(self.log_file, "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(str(part) for part in command)}\n")
            log.flush()
            # The lock goes along: should we be killed, a pip still at work keeps it.
            keep = (self.lock.fileno(),) if self.lock else ()
            child = subprocess.Popen(
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
                cwd=ROOT,
                pass_fds=keep,
            )
            assert child.stdout is not None
            pending = b""
            try:
                with selectors.DefaultSelector() as selector:
                    selector.register(child.stdout, selectors.EVENT_READ)
                    while True:
                        if selector.select(timeout=1):
                            chunk = os.read(child.stdout.fileno(), 65536)
                            if not chunk:
                                break
                            *lines, pending = (pending + chunk).split(b"\n")
                            for raw in lines:
                                line = raw.decode(errors="replace").rstrip()
                                log.write(f"{line}\n")
                                log.flush()
                                tail = [*tail[-200:], line]
                        now = time.monotonic()
                        if now - shown >= HEARTBEAT:
                            shown = now
                            last = tail[-1].strip()[:90] if tail else ""
                            say(f"      {now - began:4.0f} s  {last}")
                if pending:
                    tail.append(pending.decode(errors="replace"))
                    log.write(tail[-1] + "\n")
                child.wait()
            except BaseException:
                child.terminate()
                child.wait()
                raise
        if child.returncode:
            raise SetupError(
                f"{self.step} failed: {diagnose(tail, child.returncode)}   [log: {self.log_file}]"
            )
        return tail

    def pip(self, *arguments, env: dict | None = None) -> None:
        """Install with pip, without questions and progress bars."""
        self.run(
            [
                self.python,
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--progress-bar",
                "off",
                *arguments,
            ],
            env,
        )

    def ask(self, code: str) -> str | None:
        """Output of a line of Python in the environment; None if it fails."""
        try:
            done = subprocess.run(
                [str(self.python), "-W", "ignore", "-c", code],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self.venv,  # not the checkout, from where gersp_mm imports by chance
            )
        except OSError:  # no environment yet, or the Python it was made with is gone
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # is everything there? ------------------------------------------------------------------------
    def tasks(self) -> list[str]:
        """Return the names of the tasks that the environment has to serve."""
        hosts = ["detection", "rotated", "segmentation"] if self.downstream else []
        return ["pretraining", *hosts, *self.extras]

    def fingerprint(self) -> str:
        """Changes with anything that decides what gets installed."""
        digest = hashlib.sha256(f"{ROOT} {platform.python_version()}".encode())
        files = [
            *sorted((ROOT / "requirements").glob("*.txt")),
            ROOT / "setup.py",
            ROOT / "pyproject.toml",
            ROOT / "gersp_mm" / "version.py",
            Path(__file__),
        ]
        for file in files:
            digest.update(file.read_bytes())
        configs = sorted(path.as_posix() for path in (ROOT / "configs").rglob("*.py"))
        digest.update("\n".join(configs).encode())  # mim's forwarders are made per config
        return digest.hexdigest()

    def stamped(self) -> set[str]:
        """Tasks that an earlier run finished installing, with the same requirements."""
        try:
            stamp = json.loads((self.venv / STAMP).read_text())
            return set(stamp["tasks"]) if stamp["fingerprint"] == self.fingerprint() else set()
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def check(self, quiet: bool) -> bool:
        """Return whether all tasks can run; print the details unless ``quiet``."""
        command = [str(self.python), str(ROOT / "tools" / "check_env.py"), "--only-required"]
        for task in self.tasks():
            command += ["--require", task]
        done = subprocess.run(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GERSP_VENV": str(self.venv)},
        )
        if not quiet:
            say(done.stdout.rstrip())
        return done.returncode == 0

    def ready(self) -> bool:
        """Return whether nothing has to be installed."""
        return self.python.exists() and set(self.tasks()) <= self.stamped() and self.check(True)

    # the steps -----------------------------------------------------------------------------------
    def make_venv(self) -> None:
        """Make the environment, or repair its Python and its pip."""
        folder = self.venv
        ours = {"pyvenv.cfg", "include", "lib", "bin"}  # any of them: an environment, maybe cut off
        if folder.exists() and any(folder.iterdir()) and not ours & set(os.listdir(folder)):
            raise SetupError(
                f"{folder} exists and is no Python environment; "
                "move it away or set GERSP_VENV to another folder"
            )
        version = self.ask("import sys; print(*sys.version_info[:2])")
        if version and tuple(map(int, version.split())) < (3, 10):
            raise SetupError(
                f"{folder} was made with Python {version.replace(' ', '.')}, 3.10 is needed; "
                "remove it or set GERSP_VENV to another folder"
            )
        library = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        if self.ask("import pip") is None:
            keep = (folder / library).is_dir()  # what is installed there stays
            for link in (folder / "bin").glob("python*"):  # the Python they point to may be gone
                link.unlink()
            shared = ["--system-site-packages"] if self.system_torch() else []
            self.run(
                [sys.executable, "-m", "venv", *([] if keep else ["--clear"]), *shared, folder]
            )
        for path in damaged_distributions(self.site()):
            say(f"      incomplete: {path.name}, will be installed again")
            shutil.rmtree(path, ignore_errors=True)
        if (
            self.ask("import pip._internal.cli.main") is None
        ):  # cut off while pip itself was written
            self.run([sys.executable, "-m", "venv", "--clear", folder])

    def system_torch(self) -> bool:
        """Whether the Python that runs this has a torch worth sharing (a venv's cannot be)."""
        if sys.prefix != sys.base_prefix:
            return False
        done = subprocess.run(
            [sys.executable, "-c", TORCH_PROBE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if done.returncode == 0:
            say(f"      sharing torch {done.stdout.split()[0]} of {sys.executable}")
        return done.returncode == 0

    def site(self) -> Path:
        """Return the folder of the environment's packages."""
        return Path(self.ask('import sysconfig; print(sysconfig.get_paths()["purelib"])') or "")

    def install_build_tools(self) -> None:
        """Install setuptools and wheel, and ninja for compiling."""
        self.pip(*BUILD_TOOLS, *(["ninja"] if self.downstream else []))

    def install_torch(self) -> None:
        """Install torch and torchvision unless a working pair is there."""
        found = self.ask(TORCH_PROBE)
        if found:
            say(f"      keeping torch {found.replace(' ', ', torchvision ')}")
            return
        names = runpy.run_path(str(ROOT / "gersp_mm" / "version.py"))
        pins = [f"{name}=={names['SUPPORTED'][name][1]}" for name in ("torch", "torchvision")]
        self.pip(*pins)
        if not self.ask(TORCH_PROBE):  # there, but damaged or not fitting together
            self.pip("--force-reinstall", "--no-deps", *pins)
        if not self.ask(TORCH_PROBE):
            raise SetupError(
                f"{' and '.join(pins)} are installed but do not work; see: "
                f'{self.python} -c "import torch, torchvision"'
            )

    def constraints(self) -> list:
        """Return pip options that keep later installs from replacing torch and the build tools."""
        # The versions in the metadata: torch.__version__ may carry a suffix that pip never saw.
        pins = (
            self.ask(
                "from importlib.metadata import version as v\n"
                'for name in ("torch", "torchvision"): print(f"{name}=={v(name)}")'
            )
            or ""
        )
        path = self.venv / "gersp_constraints.txt"
        path.write_text(f"{pins}\n{BUILD_TOOLS[0]}\n")
        return ["-c", path]

    def install_core(self) -> None:
        """Install the OpenMMLab libraries and the packages that make them fast."""
        lines = requirement_lines("mminstall")
        for module, original in (
            ("mmengine", "mmengine"),
            ("mmcv", "mmcv|mmcv-lite"),
            ("mmpretrain", "mmpretrain"),
        ):
            # The original under its own name, importable, stays: two names share their files.
            names = ", ".join(repr(name) for name in original.split("|"))
            kept = self.ask(
                f"import {module}, importlib.metadata as m\n"
                f'found = [d.metadata["Name"] for d in m.distributions() '
                f'if (d.metadata["Name"] or "").lower() in [{names}]]\n'
                f"assert found; print(*found, {module}.__version__)"
            )
            if kept:
                say(f"      keeping {kept}")
                lines = [line for line in lines if not line.startswith(f"onedl-{module}=")]
        self.pip(
            "-r",
            ROOT / "requirements" / "runtime.txt",
            *lines,
            *self.constraints(),
            env=self.find_links(),
        )
        fast = ROOT / "requirements" / "fast.txt"
        try:
            self.pip("--only-binary=:all:", "-r", fast, *self.constraints())
        except SetupError:
            say(f"      going on without {fast.name}: slower on CPUs, no packed image folders")

    # mmcv with its operators ---------------------------------------------------------------------
    def wheel_folder(self) -> Path:
        """Where a compiled mmcv is kept for later environments, per Python and torch."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        torch = (self.ask(TORCH_PROBE) or "none").split(" ")[0]
        tag = self.ask("import sys; print(sys.implementation.cache_tag)")
        return cache / "gersp_mm" / f"mmcv-{tag}-torch-{torch}"

    def find_links(self) -> dict:
        """Return pip's environment with the folder of compiled wheels."""
        folder = self.wheel_folder()
        links = os.environ.get("PIP_FIND_LINKS", "")
        return {"PIP_FIND_LINKS": f"{links} {folder}".strip()} if folder.is_dir() else {}

    def has_ops(self) -> bool:
        """Return whether mmcv's compiled operators can be imported."""
        return self.ask("import torch, mmcv._ext") is not None

    def install_ops(self) -> None:
        """Install mmcv with its operators; compile them where no wheel loads."""
        if self.has_ops():
            say("      mmcv has its operators")
            return
        pin = pin_of("mminstall", "onedl-mmcv")
        folder = self.wheel_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # Not pip's own cache: it may hold a wheel of this version that was built without operators.
        build = [
            self.python,
            "-m",
            "pip",
            "wheel",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "--no-cache-dir",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            pin,
        ]
        env = {
            "MMCV_WITH_OPS": "1",
            "CFLAGS": os.environ.get("CFLAGS") or "-g0 -O2",
            "MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1),
        }
        if not shutil.which("nvcc") and not os.environ.get("CUDA_HOME"):
            env["CUDA_VISIBLE_DEVICES"] = ""  # no CUDA compiler: operators for the CPU
        say("      a prebuilt wheel if pip finds one; compiling takes some 40 CPU minutes")
        for extra in ((), ("--no-binary=onedl-mmcv",)):
            try:
                output = self.run([*build, *extra], {**env, **self.find_links()})
            except SetupError as error:
                if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
                    raise SetupError(
                        "compiling mmcv needs a C++ compiler (e.g. apt-get install g++)"
                    ) from error
                raise
            wheels = sorted(folder.glob("*.whl"))
            if wheels:
                self.pip("--force-reinstall", "--no-deps", wheels[-1])
            if self.has_ops():
                return
            for wheel in wheels:  # made for another torch, or without operators
                wheel.unlink()
            if any("Building wheel" in line for line in output):
                break  # compiled just now: a second time would give the same
            say("      the prebuilt wheel does not load here; compiling")
        raise SetupError(
            f"{pin} was compiled but its operators do not load; see: "
            f'{self.python} -c "import torch, mmcv._ext"'
        )

    def install_hosts(self) -> None:
        """Install mmdet, mmrotate and mmsegmentation."""
        self.pip("-r", ROOT / "requirements" / "downstream.txt", *self.constraints())

    def install_extras(self) -> None:
        """Install the requirement files that were asked for."""
        files: list = []
        for extra in self.extras:
            files += ["-r", ROOT / "requirements" / f"{extra}.txt"]
        self.pip(*files, *self.constraints())
        for extra, alone in (("tests", "mim"), ("demo", "cam")):
            if extra in self.extras:
                self.pip("--no-deps", "-r", ROOT / "requirements" / f"{alone}.txt")

    def install_package(self) -> None:
        """Install this checkout in editable mode."""
        self.pip("--no-deps", "--no-build-isolation", "-e", ROOT)

    # all of it -----------------------------------------------------------------------------------
    def plan(self) -> list:
        """Return the steps as pairs of a name and a function."""
        steps = [
            ("environment", self.make_venv),
            ("build tools", self.install_build_tools),
            ("torch and torchvision", self.install_torch),
            ("mmengine, mmcv, mmpretrain", self.install_core),
        ]
        if self.downstream:
            steps += [
                ("compiled operators of mmcv", self.install_ops),
                ("mmdet, mmrotate, mmsegmentation", self.install_hosts),
            ]
        if self.extras:
            steps += [(" and ".join(self.extras), self.install_extras)]
        return [*steps, ("gersp_mm", self.install_package)]

    def install(self) -> None:
        """Run every step, check the result, and note that it is done.

        Raises:
            SetupError: a step failed, or something does not import afterwards.
        """
        done_before = self.stamped()
        with contextlib.suppress(OSError):
            (self.venv / STAMP).unlink()  # from here on the environment is in flux
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.write_text("")
        self.steps = self.plan()
        for number, (name, step) in enumerate(self.steps, 1):
            self.step = f"step {number}/{len(self.steps)} ({name})"
            say(
                f"[{number}/{len(self.steps)}] {name} "
                f"({time.monotonic() - self.started:.0f} s so far)"
            )
            step()
        say("checking")
        if not self.check(quiet=False):
            raise SetupError("the installation ran through, but the check above found gaps")
        stamp = {"fingerprint": self.fingerprint(), "tasks": sorted({*done_before, *self.tasks()})}
        partial = self.venv / f"{STAMP}.partial"
        partial.write_text(json.dumps(stamp))
        os.replace(partial, self.venv / STAMP)


@contextlib.contextmanager
def exclusive(venv: Path) -> Iterator:
    """Hold the lock of an environment; a second run waits and says so."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(venv.parent / f"{venv.name}.lock", "w") as lock:
        waited = 0
        while fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % HEARTBEAT == 0:
                    say(f"another run is working on {venv}, waiting ({waited} s)")
                time.sleep(1)
                waited += 1
        yield lock


def main(argv: list[str] | None = None) -> int:
    """Install what the arguments ask for; return the exit code."""
    document = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="setup_env.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=document.split("\nExamples:")[0],
        epilog="Examples:" + document.split("\nExamples:")[1],
    )
    parser.add_argument(
        "--downstream",
        action="store_true",
        help="mmcv with compiled operators, mmdet, mmrotate, mmsegmentation",
    )
    for extra in EXTRAS:
        parser.add_argument(
            f"--{extra}", action="store_true", help=f"what requirements/{extra}.txt lists"
        )
    args = parser.parse_args(argv)
    if not (ROOT / "setup.py").is_file():
        print(
            "setup_env: this script belongs to a checkout of gersp_mm; for an installed wheel "
            'use: pip install "gersp_mm[openmmlab]"',
            file=sys.stderr,
        )
        return 1
    venv = Path(os.path.abspath(os.environ.get("GERSP_VENV") or ROOT / ".venv"))
    extras = [extra for extra in EXTRAS if getattr(args, extra)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with exclusive(venv) as lock:
            setup = Setup(venv, args.downstream, extras, lock)
            if not setup.ready():
                setup.install()
            say(
                f"environment ready in {time.monotonic() - setup.started:.0f} s: {venv} "
                f"({', '.join(setup.tasks())})"
            )
        return 0
    except SetupError as error:
        print(f"setup_env: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nsetup_env: interrupted; the same command goes on where it stopped", file=sys.stderr
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
