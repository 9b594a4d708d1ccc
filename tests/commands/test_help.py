"""Help comes at once, so nothing heavy is imported for it."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys

import pytest

from gersp_mm.commands import prepare, show
from gersp_mm.commands.main import COMMANDS
from gersp_mm.commands.options import run_tool
from gersp_mm.commands.prepare import dota as dota_command
from gersp_mm.commands.show import cam as cam_command
from gersp_mm.preparation import dota
from gersp_mm.utils.called import SCRIPTS
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization import cam
from tests.support.smoke import ROOT

GROUPS = {"prepare": prepare.COMMANDS, "show": show.COMMANDS}
EVERY = [*COMMANDS, *(f"{group} {name}" for group, names in GROUPS.items() for name in names)]
# One process shows the help of all commands, one after the other.
SHOW_HELP = """
import contextlib, io, sys
from gersp_mm.commands.main import cli
HEAVY = {"torch", "torchvision", "mmengine", "mmcv", "mmpretrain", "numpy", "PIL", "pydantic"}
shown = {}
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        cli([*command.split(), "--help"])
    is_help = text.getvalue().startswith(f"usage: gersp {command} [")
    shown[command] = [is_help, *sorted(HEAVY & sys.modules.keys())]
    assert "python tools/" not in text.getvalue(), command
    examples = [line for line in text.getvalue().splitlines() if line.startswith("  gersp ")]
    assert examples and max(map(len, examples)) <= 100, command  # joined lines are longer
print(shown)
"""
SHOW_HELP_OF_SCRIPTS = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    print(script, f"  python {script}" in text.getvalue(), "gersp " in text.getvalue())
"""


def test_the_help_of_every_command_needs_no_heavy_library():
    call = [sys.executable, "-c", SHOW_HELP, *EVERY]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == {name: [True] for name in EVERY}


def test_the_help_of_a_script_names_scripts():
    scripts = [f"tools/{script}" for script in SCRIPTS.values() if script.endswith(".py")]
    call = [sys.executable, "-c", SHOW_HELP_OF_SCRIPTS, *scripts]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == [f"{script} True False" for script in scripts]


@pytest.mark.parametrize(
    ("argv0", "shown"),
    [
        ("gersp train", "Run gersp prepare dior D, then gersp train C or gersp export R."),
        ("/usr/bin/pytest", "Run gersp prepare dior D, then gersp train C or gersp export R."),
        ("/mine/train.py", "Run gersp prepare dior D, then gersp train C or gersp export R."),
        (
            str(ROOT / "tools" / "train.py"),
            "Run python tools/dataset_converters/dior.py D, then python tools/train.py C or "
            "gersp export R.",
        ),
    ],
)
def test_a_message_names_commands_as_the_user_called_one(argv0, shown, monkeypatch, capsys):
    def fail(_: argparse.Namespace) -> None:
        raise UserError("Run gersp prepare dior D, then gersp train C or gersp export R.")

    monkeypatch.setattr(sys, "argv", [argv0])
    with pytest.raises(SystemExit):
        run_tool(fail, argparse.Namespace())
    assert capsys.readouterr().err == f"\nerror: {shown}\n"


def test_choices_in_the_help_are_those_of_the_work():
    assert (*dota.PROTOCOLS,) == dota_command.PROTOCOLS
    assert (*cam.METHODS,) == cam_command.METHODS
