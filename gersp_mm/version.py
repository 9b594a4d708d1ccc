"""Version of gersp_mm and the versions of its neighbours it was written for and tested with.

The neighbours come from ``requirements/stacks.json``, the one table of the two OpenMMLab families.
Standard library only: ``setup.py``, ``tools/check_env.py`` and ``tools/setup_env.py`` read this
file by its path, before anything is installed.
"""

from __future__ import annotations

import json
import operator
import re
from importlib import metadata
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _requirements_folder() -> Path:
    """Return the folder with the table and the requirement files, of a wheel or of a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / ".mim" / "requirements", package.parent / "requirements"):
        if (folder / "stacks.json").is_file():
            return folder
    raise FileNotFoundError(
        f"requirements/stacks.json is missing next to {package}: "
        "this copy of gersp_mm is incomplete"
    )


_FOLDER = _requirements_folder()
_TABLE: dict[str, Any] = json.loads((_FOLDER / "stacks.json").read_text(encoding="utf-8"))

#: The families of OpenMMLab: name -> title, packages, limits; the first is what gets installed.
STACKS: dict[str, dict[str, Any]] = _TABLE["stacks"]

#: Rules for all families: rows of ``if``, ``then`` (requirements) and ``why``.
RULES: list[dict[str, str]] = _TABLE["rules"]

#: Tasks: name -> title, requirement files, OpenMMLab hosts, option of the installer.
TASKS: dict[str, dict[str, Any]] = _TABLE["tasks"]

#: Packages that gersp_mm needs.
CORE = ("torch", "torchvision", "mmengine", "mmcv", "mmpretrain")


def version_key(version: str) -> tuple[int, ...]:
    """Release numbers of a version, for comparing: ``'2.11.0+cu130'`` -> ``(2, 11, 0)``.

    Suffixes (``rc1``, ``+cpu``, ``.dev0``) are dropped and trailing zeros are padded to three
    places, so that ``'2.1'`` equals ``'2.1.0'``. A string without a leading number gives zeros.
    """
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    return tuple(numbers + [0] * (3 - len(numbers)))


def _supported() -> dict[str, tuple[str, str]]:
    bounds: dict[str, list[str]] = {}
    for stack in STACKS.values():
        for name, row in stack["packages"].items():
            bounds.setdefault(name, []).extend((row["oldest"], row["tested"]))
    return {
        name: (min(found, key=version_key), max(found, key=version_key))
        for name, found in bounds.items()
    }


#: import name -> (oldest version that can work, newest version the tests ran with), of any family.
SUPPORTED = _supported()

#: import name -> distributions that provide it: the maintained fork first (it is what we install),
#: then the original OpenMMLab names.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    name: tuple(
        dict.fromkeys(
            distribution
            for stack in STACKS.values()
            for distribution in stack["packages"].get(name, {}).get("names", ())
        )
    )
    for name in SUPPORTED
}


def distribution_name(requirement: str) -> str:
    """Return the distribution that a requirement names, spelt as pip compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def satisfies(version: str, requirement: str) -> bool:
    """Whether ``version`` meets e.g. ``'numpy>=1.22,<2'``; compares release numbers only."""
    compare = {"==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<": operator.lt}
    bounds = re.findall(r"([=!>]=|<)([\w.]+)", requirement)
    return all(compare[sign](version_key(version), version_key(bound)) for sign, bound in bounds)


def requirements(name: str) -> list[str]:
    """Return the requirements in ``requirements/<name>.txt``, without comments."""
    lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.split("#")[0].strip() for line in lines) if line]


def modules(task: str) -> list[str]:
    """Return the modules that a task of :data:`TASKS` imports."""
    core = [*CORE, "gersp_mm"] if "runtime" in TASKS[task]["files"] else []
    return [*core, *TASKS[task]["hosts"]]


def installed(paths: list[str]) -> dict[str, str]:
    """Return name -> version of the distributions in folders such as ``sys.path``.

    Of two distributions with one name that of the earlier folder counts, as in an import.
    """
    items = [(item.metadata["Name"], item.version) for item in metadata.distributions(path=paths)]
    return {distribution_name(name): version for name, version in reversed(items) if name}


def families(found: dict[str, str]) -> dict[str, list[str]]:
    """Return stack -> distributions of OpenMMLab that ``found`` holds of it, where it has any."""
    held = {}
    for stack, table in STACKS.items():
        rows = [row for module, row in table["packages"].items() if module.startswith("mm")]
        held[stack] = [name for row in rows for name in row["names"] if name in found]
    return {stack: names for stack, names in held.items() if names}


def family(found: dict[str, str]) -> str:
    """Return the stack that ``found`` holds, the first of :data:`STACKS` where it holds none."""
    return next(iter(families(found) or STACKS))


def limits(found: dict[str, str]) -> list[str]:
    """Return the requirements that follow from :data:`RULES` for what is installed."""
    return [
        rule["then"]
        for rule in RULES
        if satisfies(found.get(distribution_name(rule["if"]), "99"), rule["if"])
    ]


def judge(
    row: dict[str, Any], table: dict[str, Any], found: dict[str, str], line: str = "gersp-mm"
) -> dict[str, Any]:
    """Complete what is known of a module, or of a requirement, by what the tables say about it.

    Args:
        row: The ``name`` of the module or requirement, and if known its ``version``, ``state`` and
            ``note``.
        table: The family of :data:`STACKS` that is installed.
        found: Name -> version of the installed distributions.
        line: The requirement, where the name is not a library of the table.

    Returns:
        The row with ``version`` (None if it is not installed), ``state`` (``ok``, ``wrong``,
        ``missing`` or the given one), ``note`` and ``pin``: what to install to repair it. Where
        mmcv is missing, that is the one without compiled operators.
    """
    name, pin, names, newest = row["name"], line, [distribution_name(line)], None
    if known := table["packages"].get(name):
        names, newest = known["names"], SUPPORTED[name][1]
        provider = next((n for n in names if n in found), names[-1])
        line, pin = f"{provider}>={known['oldest']}", f"{provider}=={known['tested']}"
    version = row.get("version") or next((found[n] for n in names if n in found), None)
    note, state = row.get("note", ""), row.get("state") or ("ok" if version else "missing")
    if state == "ok" and not satisfies(version or "", line):
        why = [f": {rule['why']}" for rule in RULES if rule["then"] == line]
        state, note = "wrong", "".join([f"needs {line}", *why])
    elif state == "ok" and newest and not note and not satisfies(newest, f">={version}"):
        note = f"newer than {newest}, the newest tested"
    return {"name": name, "version": version, "state": state, "note": note, "pin": pin}
