#!/usr/bin/env python3
"""Print what is installed, what each task lacks, and the one command that completes it.

Runs under any Python >= 3.9 with nothing installed, and examines the interpreter that runs it.

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
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or gersp_mm/.mim of a wheel
CHECKOUT = (ROOT / "setup.py").is_file()
HOME = ROOT / "gersp_mm" if CHECKOUT else ROOT.parent
VERSION = SimpleNamespace(**runpy.run_path(str(HOME / "version.py")))  # imports nothing else
STACKS, TASKS = VERSION.STACKS, VERSION.TASKS
OWN = Path(os.path.abspath(os.environ.get("GERSP_VENV") or ROOT / ".venv"))  # of this checkout
TORCH = "import torch; torch.ones(1).numpy()"  # a torch that does not fit its numpy fails here
OURS = "operators of gersp_mm.ops, in torch"  # no problem, but slower in places
# Runs in a fresh interpreter, one line of JSON per module, so that a crash tells where it happened.
_PROBE = f"""
import importlib.util, json, os, sys, warnings
warnings.simplefilter("ignore")
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
for name in sys.argv[1:]:
    row = dict(name=name, note="")
    try:
        module = importlib.import_module(name)
        row["version"] = getattr(module, "__version__", None)
        if name == "torch":
            {TORCH}
            gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
            row["devices"] = [torch.cuda.get_device_name(i) for i in gpus]
        elif name == "torchvision":
            import torch
            module.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        elif name == "mmcv" and importlib.util.find_spec("mmcv._ext"):
            import torch, mmcv._ext
        elif name == "mmcv":
            row["note"] = "{OURS}"
    except BaseException as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        note = "" if absent else f"{{type(error).__name__}}: {{error}}".splitlines()[0][:300]
        row.update(state="missing" if absent else "broken", note=note)
    print(json.dumps(row), file=out, flush=True)
"""


def probe(names: list[str]) -> dict[str, dict]:
    """Import modules in a fresh interpreter: name -> row with ``version``, ``state``, ``note``."""
    rows: dict[str, dict] = {}
    while waiting := [name for name in names if name not in rows]:
        call = [sys.executable, "-c", _PROBE, *waiting]  # not in the checkout: it is importable
        done = subprocess.run(call, cwd=sys.prefix, capture_output=True, text=True)
        rows |= {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
        for name in [name for name in waiting if name not in rows][:1]:  # go on without it
            note = f"importing it ended Python (exit {done.returncode})"
            rows[name] = {"name": name, "state": "broken", "note": note}
    return rows


def examine(tasks: list[str]) -> dict:
    """Return what is there and what each task lacks, as plain data."""
    found = VERSION.installed(sys.path)
    present = VERSION.families(found)
    stack = VERSION.family(found)
    table, absent = STACKS[stack], STACKS[stack]["absent"]
    asked = dict.fromkeys(name for task in tasks for name in VERSION.modules(task))
    known = {name: {"state": "absent", "note": why} for name, why in absent.items()}
    if len(present) > 1:
        note = f"two families overwrite each other's files: {present}"
        known |= {name: {"state": "mixed", "note": note} for name in asked if name[:2] == "mm"}
    probed = probe([name for name in asked if name not in known])
    rows = {n: VERSION.judge({"name": n, **(known | probed)[n]}, table, found) for n in asked}
    lacks: dict[str, list[str]] = {}
    for task in tasks:
        names = VERSION.modules(task)
        lines = [line for file in TASKS[task]["files"] for line in VERSION.requirements(file)]
        for line in [*VERSION.limits(found), *lines]:
            names.append(VERSION.distribution_name(line))
            rows.setdefault(names[-1], VERSION.judge({"name": names[-1]}, table, found, line))
        lacks[task] = [name for name in dict.fromkeys(names) if rows[name]["state"] != "ok"]
    pins = {n: rows[n]["pin"] for names in lacks.values() for n in names if n not in absent}
    options = dict.fromkeys(TASKS[task]["option"] for task in tasks if pins.keys() & lacks[task])
    return {
        "gersp_mm": VERSION.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "cuda_devices": probed.get("torch", {}).get("devices", []),
        "stack": stack,
        "packages": list(rows.values()),
        "tasks": {task: {"usable": not lack, "blocked_by": lack} for task, lack in lacks.items()},
        "command": command(stack, [*options], [*pins.values()]) if pins else "",
    }


def command(stack: str, options: list[str], pins: list[str] | None = None) -> str:
    """Return the call of the installer for this Python's environment, or else the checkout's."""
    if not CHECKOUT:
        return " ".join([sys.executable, "-m pip install", *(f'"{pin}"' for pin in pins or [])])
    inside = sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir()
    venv = Path(sys.prefix) if inside else OWN
    where = "" if venv.resolve() == (ROOT / ".venv").resolve() else f"GERSP_VENV={venv}"
    family = "" if stack == next(iter(STACKS)) else f"--stack {stack}"
    return " ".join(filter(None, [where, f"bash {ROOT}/tools/setup_env.sh", family, *options]))


def as_text(report: dict) -> str:
    """Return the findings as text for people."""
    python, stack = Path(report["executable"]), report["stack"]
    gpus = "GPU: " + ", ".join(report["cuda_devices"]) if report["cuda_devices"] else "no CUDA GPU"
    lines = [
        f"gersp_mm {report['gersp_mm']}   Python {report['python']} ({python})",
        f"{report['platform']}, {report['cpus']} CPUs, {gpus}",
        f"OpenMMLab: {STACKS[stack]['title']}\n",
    ]
    for row in report["packages"]:
        lines.append(f"  {row['state']:8}{row['name']:18}{row['version'] or '-':14}{row['note']}")
    lines.append("")
    for task, result in report["tasks"].items():
        lacks = f"NOT usable   (lacks {', '.join(result['blocked_by'])})"
        lines.append(f"  {TASKS[task]['title']:30}{'usable' if result['usable'] else lacks}")
    if report["command"]:
        lines.append(f"\nTo complete it:\n  {report['command']}")
    if CHECKOUT and OURS in [row["note"] for row in report["packages"]]:
        compiled = command(stack, ["--downstream", "--compile-ops"])
        lines.append(f"\nmmcv's operators work. To have the compiled ones:\n  {compiled}")
    if CHECKOUT and (OWN / "bin").is_dir() and OWN.resolve() != python.parent.parent.resolve():
        lines.append(f"\nThis Python is outside {OWN}; enter it: source {OWN}/bin/activate")
    return "\n".join(line.rstrip(" ") for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Check the environment; return 1 where a required task cannot run."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    text = f"exit with 1 unless TASK (default: pretraining) can run; repeatable\n{', '.join(TASKS)}"
    parser.add_argument("--require", action="append", choices=TASKS, metavar="TASK", help=text)
    text = "look at nothing but the required tasks (quicker)"
    parser.add_argument("--only-required", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    required = args.require or ["pretraining"]
    report = examine(required if args.only_required else list(TASKS))
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return int(any(not report["tasks"][task]["usable"] for task in required))


if __name__ == "__main__":
    sys.exit(main())
