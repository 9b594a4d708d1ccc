"""The installed command finds its commands, and says what it does not know."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["--help"], 0, "quickstart"),
        ([], 2, "usage: gersp COMMAND"),
        (["trian"], 2, "Did you mean 'train'?"),
        (["show"], 2, "usage: gersp show NAME"),
        (["show", "augmentation_paths", "--help"], 0, "usage: gersp show augmentation_paths"),
        (["prepare", "eurosat", "--help"], 0, "usage: gersp prepare eurosat"),
        (["env"], 0, "torch"),
        (["train", "--help"], 0, "usage: gersp train"),
    ],
)
def test_gersp_finds_its_commands(words, code, text):
    call = f"from gersp_mm.commands.main import cli; cli({words})"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    assert done.returncode == code
    assert text in done.stdout + done.stderr
