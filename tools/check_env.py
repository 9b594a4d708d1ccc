#!/usr/bin/env python3
"""Print what is installed, which tasks can run, and the command that mends each gap.

Runs under any Python >= 3.9 with nothing installed. It examines the interpreter that runs it.

Examples:
  python tools/check_env.py             # everything; exit code 1 if pre-training cannot run
  python tools/check_env.py --require detection --require segmentation
  python tools/check_env.py --json      # for scripts and bug reports
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent  # the checkout, or gersp_mm/.mim in an installed wheel

# task -> (requirement files, host libraries to import beyond the core, needs mmcv's compiled ops)
TASKS = {
    "pretraining": (("runtime", "mminstall"), (), False),
    "detection": (("runtime", "mminstall"), ("mmdet",), True),
    "rotated": (("runtime", "mminstall"), ("mmdet", "mmrotate"), True),
    "segmentation": (("runtime", "mminstall"), ("mmseg",), True),
    "demo": (("runtime", "mminstall", "demo"), (), False),
    "tests": (("runtime", "mminstall", "tests"), (), False),
    "docs": (("docs",), (), False),
}
LABELS = {
    "pretraining": "pre-training, classification",
    "detection": "object detection",
    "rotated": "rotated detection",
    "segmentation": "semantic segmentation",
    "demo": "quickstart",
    "tests": "test suite",
    "docs": "documentation build",
}
CORE_IMPORTS = (
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "mmengine",
    "mmcv",
    "mmpretrain",
    "gersp_mm",
)
OPS = "mmcv._ext"

# Runs in a fresh interpreter, one line of JSON per module, so that a crash tells where it happened.
_PROBE = r"""
import importlib, json, os, sys, warnings
warnings.simplefilter("ignore")
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
for name in sys.argv[1:]:
    row = {"name": name}
    try:
        if name == "mmcv._ext":
            import torch
        module = importlib.import_module(name)
        row["version"] = getattr(module, "__version__", None)
        if name == "torch":
            cuda = module.cuda.is_available()
            row["devices"] = [module.cuda.get_device_name(i)
                              for i in range(module.cuda.device_count())] if cuda else []
            row["numpy bridge"] = module.ones(1).numpy().tolist()
        if name == "torchvision":
            import torch
            module.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except BaseException as error:
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        row["absent"] = isinstance(error, ModuleNotFoundError) and error.name == name
    print(json.dumps(row), file=out, flush=True)
"""


def load_versions() -> dict:
    """The names defined in gersp_mm/version.py, read by path: the package may not be importable."""
    for path in (ROOT / "gersp_mm" / "version.py", ROOT.parent / "version.py"):
        if path.is_file():
            return runpy.run_path(str(path))
    raise SystemExit(
        f"check_env: gersp_mm/version.py is missing beside {HERE}; "
        "this copy of gersp_mm is incomplete"
    )


def read_requirements(name: str) -> list[tuple[str, str]]:
    """(distribution, specifier) pairs of requirements/<name>.txt; extras are dropped."""
    rows = []
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([<>=!~].*)?$", line.split("#", 1)[0].strip())
        if match:
            rows.append((match.group(1), (match.group(2) or "").replace(" ", "")))
    return rows


def satisfies(version: str, specifier: str, key) -> bool:
    """Whether `version` meets e.g. `'>=1.6,<2'`; compares release numbers only."""
    compare = {
        "==": lambda a, b: a == b,
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
        "!=": lambda a, b: a != b,
    }
    return all(
        compare[operator](key(version), key(bound))
        for operator, bound in re.findall(r"([<>=!]=|[<>])([\w.]+)", specifier)
    )


def distribution_version(names: tuple[str, ...]) -> str | None:
    """Version of the first of `names` that is installed."""
    for name in names:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if found:
            return found
    return None


def probe(modules: list[str]) -> dict[str, dict]:
    """Import modules in a fresh interpreter: name -> row with `version`, or `error` and `absent`.

    A module that brings the interpreter down is reported as broken and the rest is tried again
    without it.
    """
    rows: dict[str, dict] = {}
    waiting = list(modules)
    with tempfile.TemporaryDirectory() as folder:  # elsewhere: the checkout is importable by chance
        while waiting:
            done = subprocess.run(
                [sys.executable, "-c", _PROBE, *waiting],
                cwd=folder,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for line in done.stdout.splitlines():
                row = json.loads(line)
                rows[row.pop("name")] = row
            waiting = [name for name in waiting if name not in rows]
            if waiting:
                rows[waiting[0]] = {
                    "error": f"importing it ended Python (exit {done.returncode})",
                    "absent": False,
                }
                waiting = waiting[1:]
    return rows


class Report:
    """Collects rows (what was found) and, per task, the commands that mend what is not right."""

    def __init__(self) -> None:
        self.names = load_versions()
        self.key = self.names["version_key"]
        self.rows: list[dict] = []
        self.problems: dict[str, dict] = {}  # item -> {'text', 'fix'}
        self.tasks: dict[str, dict] = {}
        self.devices: list[str] = []
        own = Path(os.environ.get("GERSP_VENV") or ROOT / ".venv")
        setup = HERE / "setup_env.sh"
        self.by_setup = (
            setup.is_file()
            and (ROOT / "setup.py").is_file()
            and own.exists()
            and own.resolve() == Path(sys.prefix).resolve()
        )
        self.setup = setup

    # commands ------------------------------------------------------------------------------------
    def setup_command(self, option: str = "") -> str:
        """Return the command that runs the installer with ``option``."""
        path = os.path.relpath(self.setup)
        prefix = ""
        if os.environ.get("GERSP_VENV"):
            prefix = f"GERSP_VENV={os.environ['GERSP_VENV']} "
        return f"{prefix}bash {path if not path.startswith('..') else self.setup} {option}".strip()

    def pip_command(self, *requirements: str, options: str = "") -> str:
        """Return the command that installs ``requirements`` into this Python."""
        quoted = " ".join(f'"{item}"' for item in requirements)
        return f"{sys.executable} -m pip install {options}{quoted}"

    def ops_command(self) -> str:
        """Return the command that compiles mmcv with its operators."""
        pin = f"{self.names['DISTRIBUTIONS']['mmcv'][0]}=={self.names['SUPPORTED']['mmcv'][1]}"
        return (
            f'{sys.executable} -m pip install "setuptools>=80,<82" wheel ninja && '
            f"CFLAGS='-g0 -O2' MMCV_WITH_OPS=1 MAX_JOBS={os.cpu_count()} "
            + self.pip_command(
                pin, options="--no-build-isolation --no-deps --force-reinstall --no-cache-dir "
            )
        )

    # what is there -------------------------------------------------------------------------------
    def imported(self, module: str, row: dict) -> None:
        """Judge one imported module."""
        names = self.names
        distribution = {"PIL": "pillow"}.get(module, module)
        oldest, tested = names["SUPPORTED"].get(module, (None, None))
        known = names["DISTRIBUTIONS"].get(module, (distribution,))
        version = row.get("version") or distribution_version(known)
        found = {"name": module, "version": version, "state": "ok", "note": ""}
        pin = f"{known[0]}=={tested}" if tested else known[0]
        fix = self.pip_command(pin)
        if module == "gersp_mm":
            if (ROOT / "setup.py").is_file():
                fix = f'{sys.executable} -m pip install --no-deps -e "{ROOT}"'
        elif module == OPS:
            fix = self.ops_command()
        option = "--downstream" if module in ("mmdet", "mmrotate", "mmseg", OPS) else ""
        if self.by_setup:
            fix = self.setup_command(option)
        if row.get("error"):
            found["state"] = "missing" if row["absent"] else "broken"
            found["note"] = "" if row["absent"] else row["error"]
            if found["state"] == "broken" and not self.by_setup and module not in (OPS, "gersp_mm"):
                fix = self.pip_command(pin, options="--force-reinstall --no-deps ")
        elif oldest and version and self.key(version) < self.key(oldest):
            found.update(state="old", note=f"needs {oldest} or newer")
        elif tested and version and self.key(version) > self.key(tested):
            found["note"] = f"newer than {tested}, the newest tested"
        self.rows.append(found)
        if found["state"] != "ok":
            label = "compiled operators of mmcv" if module == OPS else module
            self.problems[module] = {
                "text": f"{label} {found['state']}"
                + (f" ({found['note']})" if found["note"] else ""),
                "fix": fix,
            }

    def listed(self, file: str) -> list[str]:
        """Judge the distributions of a requirement file by metadata; returns the names at fault."""
        at_fault = []
        skip = set(CORE_IMPORTS) | {"pillow"}
        skip.update(name for names in self.names["DISTRIBUTIONS"].values() for name in names)
        for name, specifier in read_requirements(file):
            if name in skip:  # judged by importing
                continue
            version = distribution_version((name,))
            good = version is not None and satisfies(version, specifier, self.key)
            if not any(row["name"] == name for row in self.rows):
                self.rows.append(
                    {
                        "name": name,
                        "version": version,
                        "state": "ok" if good else "old" if version else "missing",
                        "note": "" if good or not version else f"needs {specifier}",
                    }
                )
            if not good:
                option = f"--{file}" if file in ("demo", "tests", "docs") else ""
                self.problems[name] = {
                    "text": f"{name} "
                    + (f"{version} does not meet {specifier}" if version else "missing"),
                    "fix": (
                        self.setup_command(option)
                        if self.by_setup
                        else self.pip_command(name + specifier)
                    ),
                }
                at_fault.append(name)
        return at_fault

    def run(self, tasks: list[str]) -> None:
        """Look at everything that `tasks` need."""
        modules: list[str] = []
        for task in tasks:
            files, hosts, ops = TASKS[task]
            core = CORE_IMPORTS if "mminstall" in files else ()
            modules += [
                name for name in (*core, *((OPS,) if ops else ()), *hosts) if name not in modules
            ]
        rows = probe(modules)
        self.devices = rows.get("torch", {}).get("devices", [])
        for module in modules:
            self.imported(module, rows[module])
        for task in tasks:
            files, hosts, ops = TASKS[task]
            needed = [
                *(CORE_IMPORTS if "mminstall" in files else ()),
                *hosts,
                *((OPS,) if ops else ()),
            ]
            blocked = [name for name in needed if name in self.problems]
            for file in files:
                blocked += [name for name in self.listed(file) if name not in blocked]
            self.tasks[task] = {"usable": not blocked, "blocked_by": blocked}

    # output --------------------------------------------------------------------------------------
    def as_dict(self) -> dict:
        """Return the findings as plain data, which ``--json`` prints."""
        return {
            "gersp_mm": self.names["__version__"],
            "python": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "cuda_devices": self.devices,
            "packages": self.rows,
            "tasks": self.tasks,
            "problems": self.problems,
        }

    def text(self) -> str:
        """Return the findings as text for people."""
        lines = [
            f"gersp_mm {self.names['__version__']}   Python {platform.python_version()} "
            f"({sys.executable})",
            f"{platform.platform()}, {os.cpu_count()} CPUs, "
            + (f"GPU: {', '.join(self.devices)}" if self.devices else "no CUDA GPU"),
            "",
        ]
        for row in self.rows:
            name = "mmcv operators" if row["name"] == OPS else row["name"]
            version = row["version"] or ("yes" if row["state"] == "ok" else "-")
            lines.append(f"  {row['state']:8}{name:18}{version:14}{row['note']}".rstrip())
        lines.append("")
        for task, result in self.tasks.items():
            state = "usable" if result["usable"] else "NOT usable"
            because = f"   ({', '.join(result['blocked_by'])})" if result["blocked_by"] else ""
            lines.append(f"  {LABELS[task]:30}{state}{because}")
        if self.problems:
            simple = self.pip_command()  # one command for all plain installs
            fixes: dict[str, list[str]] = {}
            for problem in self.problems.values():
                fixes.setdefault(problem["fix"], []).append(problem["text"])
            plain = [fix for fix in fixes if fix.startswith(f'{simple}"') and "&&" not in fix]
            if len(plain) > 1:
                joined = simple + " ".join(fix[len(simple) :] for fix in plain)
                fixes = {
                    joined: [text for fix in plain for text in fixes[fix]],
                    **{fix: texts for fix, texts in fixes.items() if fix not in plain},
                }
            lines += ["", "To mend it:"]
            for fix, texts in fixes.items():
                lines += [f"  # {'; '.join(texts)}", f"  {fix}"]
            own = ROOT / ".venv" / "bin" / "python"
            if not self.by_setup and own.is_file() and (ROOT / "setup.py").is_file():
                lines += [
                    "",
                    f"This is not the environment of tools/setup_env.sh; that one is "
                    f"examined by: {own} {HERE / 'check_env.py'}",
                ]
        return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Check the environment; return 1 where a required task cannot run."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.RawTextHelpFormatter,
        epilog=(__doc__ or "").split("\n\n", 2)[2],
    )
    parser.add_argument(
        "--require",
        action="append",
        choices=sorted(TASKS),
        metavar="TASK",
        help="exit with 1 unless TASK can run; may be repeated; one of\n"
        f"{', '.join(TASKS)}\n(default: pretraining)",
    )
    parser.add_argument(
        "--only-required",
        action="store_true",
        help="look at nothing but the required tasks (quicker)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    required = args.require or ["pretraining"]
    report = Report()
    report.run(required if args.only_required else list(TASKS))
    print(json.dumps(report.as_dict(), indent=2) if args.json else report.text())
    return 0 if all(report.tasks[task]["usable"] for task in required) else 1


if __name__ == "__main__":
    sys.exit(main())
