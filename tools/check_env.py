#!/usr/bin/env python3
"""Print what is installed, what each task lacks, and the one command that completes it.

Runs under any Python >= 3.9 with nothing installed. It examines the interpreter that runs it, by
the table requirements/stacks.json.

Examples:
  python tools/check_env.py             # everything; exit code 1 if pre-training cannot run
  python tools/check_env.py --require detection --require segmentation
  python tools/check_env.py --json      # for scripts and bug reports
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import re
import runpy
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or gersp_mm/.mim of a wheel
CHECKOUT = (ROOT / "setup.py").is_file()
NAMES = runpy.run_path(str((ROOT / "gersp_mm" if CHECKOUT else ROOT.parent) / "version.py"))
STACKS, RULES, key = NAMES["STACKS"], NAMES["RULES"], NAMES["version_key"]
COMPARE = {"==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
           ">": operator.gt, "<": operator.lt}  # fmt: skip
CORE = (*NAMES["CORE"], "numpy", "PIL", "gersp_mm")
# task -> (label, what it imports, requirement files, option of setup_env.sh)
TASKS = {
    "pretraining": ("pre-training, classification", CORE, ("runtime",), ""),
    "detection": ("object detection", (*CORE, "mmdet"), ("runtime",), "--downstream"),
    "rotated": ("rotated detection", (*CORE, "mmdet", "mmrotate"), ("runtime",), "--downstream"),
    "segmentation": ("semantic segmentation", (*CORE, "mmseg"), ("runtime",), "--downstream"),
    "demo": ("quickstart", CORE, ("runtime", "demo"), "--demo"),
    "tests": ("test suite", CORE, ("runtime", "tests"), "--tests"),
    "docs": ("documentation build", (), ("docs",), "--docs"),
}

# Runs in a fresh interpreter, one line of JSON per module, so that a crash tells where it happened.
_PROBE = r"""
import importlib, json, os, sys, warnings
warnings.simplefilter("ignore")
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
for name in sys.argv[1:]:
    row = {"name": name, "note": ""}
    try:
        module = importlib.import_module(name)
        row["version"] = getattr(module, "__version__", None)
        if name == "torch":
            gpus = range(module.cuda.device_count() if module.cuda.is_available() else 0)
            row["devices"] = [module.cuda.get_device_name(i) for i in gpus]
            module.ones(1).numpy()
        elif name == "torchvision":
            import torch
            module.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        elif name == "mmcv":
            try:
                import torch, mmcv._ext
            except ModuleNotFoundError:
                row["note"] = "without compiled operators"
    except BaseException as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        row["state"] = "missing" if absent else "broken"
        row["note"] = "" if absent else f"{type(error).__name__}: {error}".splitlines()[0][:300]
    print(json.dumps(row), file=out, flush=True)
"""


def requirement_lines(file: str) -> list[str]:
    """Return the lines of ``requirements/<file>.txt`` without comments."""
    lines = (ROOT / "requirements" / f"{file}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.split("#", 1)[0].strip() for line in lines) if line]


def name_of(requirement: str) -> str:
    """Return the distribution that a requirement names, spelt as pip compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def satisfies(version: str, requirement: str) -> bool:
    """Whether ``version`` meets e.g. ``'numpy>=1.22,<2'``; compares release numbers only."""
    bounds = re.findall(r"([<>=!]=|[<>])([\w.]+)", requirement)
    return all(COMPARE[sign](key(version), key(bound)) for sign, bound in bounds)


def installed(paths: list[str] | None = None) -> dict[str, str]:
    """Return name -> version of the distributions of this Python or of the folders ``paths``."""
    items = metadata.distributions(**({} if paths is None else {"path": paths}))
    return {name_of(i.metadata["Name"]): i.version for i in items if i.metadata["Name"]}


def families(found: dict[str, str]) -> dict[str, list[str]]:
    """Return stack -> distributions of OpenMMLab that ``found`` holds of it, where it has any."""
    ours = {
        stack: [n for m, row in table["packages"].items() if m[:2] == "mm" for n in row["names"]]
        for stack, table in STACKS.items()
    }
    return {
        stack: held for stack, names in ours.items() if (held := [n for n in names if n in found])
    }


def own() -> Path:
    """Return the environment of this checkout."""
    return Path(os.path.abspath(os.environ.get("GERSP_VENV") or ROOT / ".venv"))


def probe(modules: list[str]) -> dict[str, dict]:
    """Import modules in a fresh interpreter: name -> row with ``version``, ``state``, ``note``.

    A module that brings the interpreter down is broken; the rest is tried again without it.
    """
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:  # elsewhere: the checkout is importable by chance
        while waiting := [name for name in modules if name not in rows]:
            command = [sys.executable, "-c", _PROBE, *waiting]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            rows |= {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
            for crashed in [name for name in waiting if name not in rows][:1]:
                note = f"importing it ended Python (exit {done.returncode})"
                rows[crashed] = {"name": crashed, "state": "broken", "note": note}
    return rows


def judge(module: str, row: dict, table: dict, found: dict[str, str]) -> dict:
    """Complete the row of an imported module by its ``state``, and ``pin``, which mends it."""
    known, tested = table["packages"].get(module, {}), NAMES["SUPPORTED"].get(module, ("", ""))[1]
    names = known.get("names") or [{"PIL": "pillow", "gersp_mm": "gersp-mm"}.get(module, module)]
    version = row.get("version") or next((found[name] for name in names if name in found), None)
    # mmcv-lite, the last name, is mmcv without operators.
    row = {**row, "version": version, "pin": names[-1] + (f"=={known['tested']}" if known else "")}
    for rule in RULES:
        met = module != name_of(rule["then"]) or not version or satisfies(version, rule["then"])
        if not met and satisfies(found.get(name_of(rule["if"]), "99"), rule["if"]):
            note = f"needs {rule['then']}: {rule['why']}"
            return {**row, "state": "wrong", "note": note, "pin": rule["then"]}
    if "state" in row:
        return row
    if known and version and key(version) < key(known["oldest"]):
        return {**row, "state": "old", "note": f"needs {known['oldest']} or newer"}
    if tested and version and key(version) > key(tested):
        row["note"] = f"newer than {tested}, the newest tested"
    return {**row, "state": "ok"}


def examine(tasks: list[str]) -> dict:
    """Return what is there and what each task lacks, as plain data."""
    found = installed()
    present = families(found)
    stack = next(iter(present or STACKS))
    table, absent = STACKS[stack], STACKS[stack].get("absent", {})
    modules = list(dict.fromkeys(name for task in tasks for name in TASKS[task][1]))
    rows = probe([name for name in modules if name not in absent])
    devices = rows.get("torch", {}).get("devices", [])
    rows = {name: judge(name, row, table, found) for name, row in rows.items()}
    for name in set(absent) & set(modules):
        rows[name] = {"name": name, "version": None, "state": "absent", "note": absent[name]}
    needs = {task: list(TASKS[task][1]) for task in tasks}
    if len(present) > 1:
        note = f"two families overwrite each other's files: {present}"
        rows["OpenMMLab"] = {"name": "OpenMMLab", "version": None, "state": "mixed", "note": note}
        needs = {task: [*names, "OpenMMLab"] for task, names in needs.items()}
    for task, line in [
        (t, line) for t in tasks for f in TASKS[t][2] for line in requirement_lines(f)
    ]:
        name, version = name_of(line), found.get(name_of(line))
        if name in ("torch", "torchvision", "numpy", "pillow"):  # judged by importing
            continue
        state = "missing" if not version else "ok" if satisfies(version, line) else "old"
        note = f"needs {line}" if state == "old" else ""
        row = {"name": name, "version": version, "state": state, "note": note, "pin": line}
        rows.setdefault(name, row)
        needs[task].append(name)
    lacks = {
        t: [n for n in dict.fromkeys(names) if rows[n]["state"] != "ok"]
        for t, names in needs.items()
    }
    return {
        "gersp_mm": NAMES["__version__"],
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "cuda_devices": devices,
        "stack": stack,
        "packages": [
            {k: row.get(k) for k in ("name", "version", "state", "note")} for row in rows.values()
        ],
        "tasks": {
            task: {"usable": not names, "blocked_by": names} for task, names in lacks.items()
        },
        "command": command(
            stack, {t: [p for n in ns if (p := rows[n].get("pin"))] for t, ns in lacks.items()}
        ),
    }


def command(stack: str, pins: dict[str, list[str]]) -> str:
    """Return the one command that installs the ``pins`` that each task lacks; empty if none."""
    tasks = [task for task, lacking in pins.items() if lacking]
    if not CHECKOUT and tasks:
        names = dict.fromkeys(f'"{pin}"' for task in tasks for pin in pins[task])
        return f"{sys.executable} -m pip install {' '.join(names)}"
    inside = sys.prefix != sys.base_prefix or Path(sys.prefix, "conda-meta").is_dir()
    venv = Path(sys.prefix) if inside else own()
    where = "" if venv.resolve() == (ROOT / ".venv").resolve() else f"GERSP_VENV={venv} "
    options = ["" if stack == next(iter(STACKS)) else f"--stack {stack}"]
    options += dict.fromkeys(TASKS[task][3] for task in tasks)
    words = [f"{where}bash {ROOT}/tools/setup_env.sh", *options]
    return " ".join(word for word in words if word) if tasks else ""


def as_text(report: dict) -> str:
    """Return the findings as text for people."""
    gpus = ", ".join(report["cuda_devices"])
    lines = [
        f"gersp_mm {report['gersp_mm']}   Python {report['python']} ({sys.executable})",
        f"{report['platform']}, {report['cpus']} CPUs, {'GPU: ' + gpus if gpus else 'no CUDA GPU'}",
        f"OpenMMLab: {STACKS[report['stack']]['title']}\n",
    ]
    for row in report["packages"]:
        version = row["version"] or "-"
        lines.append(f"  {row['state']:8}{row['name']:18}{version:14}{row['note']}".rstrip())
    lines.append("")
    for task, result in report["tasks"].items():
        lacks = f"NOT usable   (lacks {', '.join(result['blocked_by'])})"
        lines.append(f"  {TASKS[task][0]:30}{'usable' if result['usable'] else lacks}")
    if report["command"]:
        lines.append(f"\nTo complete it:\n  {report['command']}")
    if CHECKOUT and (own() / "bin").is_dir() and own().resolve() != Path(sys.prefix).resolve():
        lines.append(f"\nThis Python is outside {own()}; enter it: source {own()}/bin/activate")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Check the environment; return 1 where a required task cannot run."""
    head, _, tail = (__doc__ or "").partition("\nExamples:")
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(
        description=head, formatter_class=raw, epilog="Examples:" + tail
    )
    say = f"exit with 1 unless TASK can run; may be repeated; one of\n{', '.join(TASKS)}"
    parser.add_argument("--require", action="append", choices=sorted(TASKS), metavar="TASK",
                        help=f"{say}\n(default: pretraining)")  # fmt: skip
    parser.add_argument("--only-required", action="store_true",
                        help="look at nothing but the required tasks (quicker)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    required = args.require or ["pretraining"]
    report = examine(required if args.only_required else list(TASKS))
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return int(any(not report["tasks"][task]["usable"] for task in required))


if __name__ == "__main__":
    sys.exit(main())
