"""Where the shipped configs, tools and demo files are, whichever way gersp_mm was installed.

In a checkout (also an editable install) they are the folders next to the package; a wheel carries
them inside the package, in ``gersp_mm/.mim/``, where ``mim train gersp_mm CONFIG`` looks.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_root() -> Path:
    """Folder that holds ``configs/``, ``tools/``, ``demo/`` and ``model-index.yml``.

    Raises:
        FileNotFoundError: Neither the checkout's folders nor ``gersp_mm/.mim`` are there.
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
    """Path of one shipped file or folder, e.g. ``resource('tools', 'train.py')``.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = resource_root().joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"gersp_mm ships no {'/'.join(parts)} (looked at {path})")
    return path


def data_root(folder: str | Path = "") -> Path:
    """Folder of the data sets: ``$GERSP_DATA``, else ``data`` below a folder.

    Args:
        folder: By default the current one, from which the configs start too.
    """
    return Path(os.environ.get("GERSP_DATA") or Path(folder, "data")).expanduser()


def list_configs() -> list[str]:
    """Names of all shipped configs relative to ``configs/``, with ``/``, sorted, bases left out."""
    root = resource("configs")
    names = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(
        name.as_posix()
        for name in names
        if not any(part.startswith("_") or part == "__pycache__" for part in name.parts)
    )


def find_config(name: str | Path) -> Path:
    """Path of a config given as a file, as a shipped config's relative path, or as its bare name.

    ``'my/config.py'``, ``'configs/pretrain/gersp_r50.py'``, ``'pretrain/gersp_r50'`` and
    ``'gersp_r50'`` are all understood; the suffix ``.py`` may be left out.

    Raises:
        FileNotFoundError: No such config; the message lists similar names.
        ValueError: A bare name that several shipped configs have.
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
    # A bare name, or the suffix-less alias that `mim` hands on as an absolute path.
    if len(given.parts) == 1 or (given.is_file() and not given.suffix):
        matches = [config for config in configs if config.rsplit("/", 1)[-1] == wanted.name]
        if len(matches) == 1:
            return root / matches[0]
        if matches:
            raise ValueError(
                f"several configs are called {wanted.name}: {', '.join(matches)}; "
                "give the path of one"
            )
    stems = {config.rsplit("/", 1)[-1].removesuffix(".py"): config for config in configs}
    similar = [stems[stem] for stem in get_close_matches(wanted.stem, stems, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"there are {', '.join(configs)}"
    raise FileNotFoundError(f"no config {name}: not a file, and not a config of gersp_mm; {hint}")
