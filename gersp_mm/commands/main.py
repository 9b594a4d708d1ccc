"""The ``gersp`` command: the table of commands, each imported when it is called, not before."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Mapping
from importlib import import_module
from textwrap import dedent

from gersp_mm.resources import resource
from gersp_mm.version import __version__

COMMANDS = {
    "pretrain": "pre-train a backbone on images of your own",
    "train": "train by any config, pre-training or downstream",
    "test": "evaluate a checkpoint, draw or submit its predictions",
    "plan": "say what fits into memory and how long a pre-training takes",
    "check": "look at a folder of images before a training",
    "export": "write a backbone for mmlab, torchvision, timm or a model hub",
    "push": "upload an exported hub folder",
    "convert": "convert a pre-trained backbone of another project",
    "benchmark": "evaluate checkpoints by tasks and seeds into result rows",
    "table": "make tables of result rows",
    "quickstart": "pre-train on the demo images and evaluate the backbone",
    "demo_detection": "fine-tune a detector on the demo scenes",
}
# Groups of commands, such as `gersp prepare pack`.
GROUPS = {
    "prepare": "check and arrange a data set",
    "show": "draw a picture",
}
# Scripts that run without this package: name, file below tools/, description.
SCRIPTS = {"env": ("check_env.py", "look at the libraries of this Python, and say what is missing")}
# Arguments that `gersp` adds before those of the user.
DEFAULTS = {"train": ("--log", "summary")}
OTHER_NAMES = {"tsne": "projection", "demo-detection": "demo_detection"}


def main(name: str, argv: list[str] | None = None) -> None:
    """Run a command of :data:`COMMANDS` with its own arguments."""
    import_module(f"gersp_mm.commands.{name}").main(argv)


def cli(argv: list[str] | None = None) -> None:
    """Run ``gersp COMMAND …``, the entry point of the installed package.

    Args:
        argv: The words after ``gersp``; by default the arguments of the process.

    Raises:
        SystemExit: 0 after help, 2 for an unknown command, and the exit codes of the commands.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(f"gersp_mm {__version__}")
        return
    name = _known(words.pop(0), [*COMMANDS, *GROUPS, *SCRIPTS], "gersp")
    if name in SCRIPTS:
        script = str(resource("tools", SCRIPTS[name][0]))
        sys.argv = [script, *words]
        runpy.run_path(script, run_name="__main__")
        return
    if name not in GROUPS:
        sys.argv[0] = f"gersp {name}"  # the name in the help of argparse
        main(name, [*DEFAULTS.get(name, ()), *words])
        return
    group = import_module(f"gersp_mm.commands.{name}")
    if not words or words[0] in ("-h", "--help"):
        print(group_usage(name, group.COMMANDS), file=sys.stdout if words else sys.stderr)
        raise SystemExit(0 if words else 2)
    given = words.pop(0)
    chosen = _known(given, list(group.COMMANDS), f"gersp {name}")
    sys.argv[0] = f"gersp {name} {chosen}"
    group.main(chosen, words)


def usage() -> str:
    """Return the help of ``gersp``."""
    start = dedent("""\
        usage: gersp COMMAND ...

        Pre-train, evaluate and use backbones for remote sensing images.

        commands:
        """)
    end = dedent("""

        `gersp COMMAND --help` shows the arguments of a command, with examples.

        examples:
          gersp quickstart
          gersp check photographs/
          gersp export work_dirs/gersp_r50 --to hub hub/gersp-r50
          gersp show pairs configs/pretrain/gersp_r50.py""")
    scripts = {name: description for name, (_, description) in SCRIPTS.items()}
    return start + _listing({**COMMANDS, **GROUPS, **scripts}) + end


def group_usage(name: str, commands: Mapping[str, str]) -> str:
    """Return the help of a group of commands, such as ``gersp prepare``."""
    return (
        f"usage: gersp {name} NAME ...\n\n{GROUPS[name].capitalize()}.\n\nnames:\n"
        f"{_listing(commands)}\n\n"
        f"`gersp {name} NAME --help` shows the arguments of NAME, with examples."
    )


def _listing(commands: Mapping[str, str]) -> str:
    width = max(map(len, commands)) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in commands.items())


def _known(given: str, names: list[str], prog: str) -> str:
    name = OTHER_NAMES.get(given, given)
    if name in names:
        return name
    near = difflib.get_close_matches(given, names, 1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(names)}."
    print(f"{prog}: there is no command {given!r}. {hint}", file=sys.stderr)
    raise SystemExit(2)
