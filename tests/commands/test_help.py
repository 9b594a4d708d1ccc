"""Help comes at once, so nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

from gersp_mm.commands.main import COMMANDS

SHOW_HELP = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    command = importlib.import_module(f"gersp_mm.commands.{name}")
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        command.parse_args(["--help"])
    heavy = sorted({"torch", "mmengine", "mmpretrain", "numpy", "PIL"} & sys.modules.keys())
    print(name, "usage:" in text.getvalue(), *heavy)
"""


def test_the_help_of_every_command_needs_no_heavy_library():
    # The options of `check` are read by its body, with the pixel scales and presets that it knows.
    names = [name for name in COMMANDS if name != "check"]
    call = [sys.executable, "-c", SHOW_HELP, *names]
    shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [f"{name} True" for name in names]
