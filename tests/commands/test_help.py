"""Help comes at once, so nothing heavy is imported for it."""

from __future__ import annotations

import ast
import subprocess
import sys

from gersp_mm.commands import prepare, show
from gersp_mm.commands.main import COMMANDS
from gersp_mm.commands.prepare import dota as dota_command
from gersp_mm.commands.show import cam as cam_command
from gersp_mm.preparation import dota
from gersp_mm.visualization import cam

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
print(shown)
"""


def test_the_help_of_every_command_needs_no_heavy_library():
    call = [sys.executable, "-c", SHOW_HELP, *EVERY]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == {name: [True] for name in EVERY}


def test_choices_in_the_help_are_those_of_the_work():
    assert (*dota.PROTOCOLS,) == dota_command.PROTOCOLS
    assert (*cam.METHODS,) == cam_command.METHODS
