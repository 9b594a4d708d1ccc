"""Paths of the shipped configs, tools and demo files for every kind of installation.

In a checkout, also an editable install, they are folders next to the package. A wheel holds them in
``gersp_mm/.mim/``, where ``mim train gersp_mm CONFIG`` searches for them.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_root() -> Path:
    """Return the folder that holds ``configs/``, ``tools/``, ``demo/`` and ``model-index.yml``.

    Raises:
        FileNotFoundError: Neither the checkout's folders nor ``gersp_mm/.mim`` exist.
    """
    for root in (_PACKAGE.parent, _PACKAGE / ".mim"):
        if (root / "model-index.yml").is_file() and (root / "configs").is_dir():
            return root
    raise FileNotFoundError(
        f"the configs of gersp_mm are neither next to nor inside {_PACKAGE}: the installation is "
        "incomplete. Install again from the wheel or from a checkout: "
        "pip install --force-reinstall --no-deps ."
    )


def resource(*parts: str) -> Path:
    """Return the path of a shipped file or folder, e.g. ``resource('tools', 'train.py')``.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    path = resource_root().joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"gersp_mm ships no {'/'.join(parts)} (looked at {path})")
    return path


def data_root(folder: str | Path = "") -> Path:
    """Return the folder of the data sets: ``$GERSP_DATA``, else ``data`` below a folder.

    Args:
        folder: By default the current folder, as in the configs.
    """
    return Path(os.environ.get("GERSP_DATA") or Path(folder, "data")).expanduser()


def list_configs() -> list[str]:
    """Return the sorted names of all shipped configs but bases, relative to ``configs/``."""
    root = resource("configs")
    names = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(
        name.as_posix()
        for name in names
        if not any(part.startswith("_") or part == "__pycache__" for part in name.parts)
    )


def find_config(name: str | Path) -> Path:
    """Return the path of a config, given as a file, a shipped config's relative path or its name.

    ``'my/config.py'``, ``'configs/pretrain/gersp_r50.py'``, ``'pretrain/gersp_r50'`` and
    ``'gersp_r50'`` are all valid; the suffix ``.py`` may be omitted.

    Raises:
        FileNotFoundError: There is no such config; the message lists similar names.
        ValueError: Several shipped configs have this name.
    """
    given = Path(name)
    if given.suffix:
        if given.is_file():
            return given
        wanted = given
    else:
        wanted = given.with_name(given.name + ".py")
        if wanted.is_file():
            return wanted
    configs = list_configs()
    root = resource("configs")
    relative = wanted.as_posix().removeprefix("./").removeprefix("configs/")
    if relative in configs:
        return root / relative
    # The name alone, or the name without suffix that `mim` passes on as an absolute path.
    if len(given.parts) == 1 or (given.is_file() and not given.suffix):
        matches = [config for config in configs if config.rsplit("/", 1)[-1] == wanted.name]
        if len(matches) == 1:
            return root / matches[0]
        if matches:
            raise ValueError(
                f"several configs have the name {wanted.name}: {', '.join(matches)}; "
                "give the path of one"
            )
    stems = {config.rsplit("/", 1)[-1].removesuffix(".py"): config for config in configs}
    similar = [stems[stem] for stem in get_close_matches(wanted.stem, stems, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"there are {', '.join(configs)}"
    raise FileNotFoundError(f"no config {name}: not a file, and not a config of gersp_mm; {hint}")
