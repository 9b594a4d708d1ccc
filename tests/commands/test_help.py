"""Help comes at once, so nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gersp_mm.commands.main import COMMANDS

# The tools whose modules load heavy libraries only when they run.
LIGHT_TOOLS = [
    ("gersp_mm.preparation", "eurosat"),
    ("gersp_mm.preparation", "resisc45"),
    ("gersp_mm.visualization", "augmentation_paths"),
]
SHOW_HELP = """
import contextlib, importlib, io, sys
package, *names = sys.argv[1:]
for name in names:
    command = importlib.import_module(f"{package}.{name}")
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        command.parse_args(["--help"])
    heavy = sorted({"torch", "mmengine", "mmpretrain", "numpy", "PIL"} & sys.modules.keys())
    print(name, "usage:" in text.getvalue(), *heavy)
"""


def show_help(package: str, *names: str) -> list[str]:
    """Return, for each module, its name, whether it shows its usage, and the heavy libraries."""
    call = [sys.executable, "-c", SHOW_HELP, package, *names]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_help_of_every_command_needs_no_heavy_library():
    assert show_help("gersp_mm.commands", *COMMANDS) == [f"{name} True" for name in COMMANDS]


@pytest.mark.parametrize("package, name", LIGHT_TOOLS)
def test_the_help_of_a_light_tool_needs_no_heavy_library(package, name):
    assert show_help(package, name) == [f"{name} True"]
