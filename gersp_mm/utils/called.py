"""Name the commands in a text as the user called one: by ``gersp``, or by the scripts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# The script of a checkout, below tools/, that does the same as a command of `gersp`.
SCRIPTS = {
    "train": "train.py",
    "test": "test.py",
    "check": "check_images.py",
    "convert": "model_converters/convert_checkpoint.py",
    "benchmark": "benchmarks/run.py",
    "table": "benchmarks/table.py",
    "quickstart": "quickstart.sh",
    "demo_detection": "demo_detection.sh",
    "prepare million_aid": "dataset_converters/million_aid.py",
    "prepare imagenet": "dataset_converters/imagenet.py",
    "prepare eurosat": "dataset_converters/eurosat.py",
    "prepare resisc45": "dataset_converters/resisc45.py",
    "prepare dior": "dataset_converters/dior.py",
    "prepare dota": "dataset_converters/dota.py",
    "prepare loveda": "dataset_converters/loveda.py",
    "prepare pack": "dataset_converters/pack_images.py",
    "prepare tiles": "dataset_converters/tile_scenes.py",
    "show pairs": "visualization/browse_pairs.py",
    "show augmentation_paths": "visualization/augmentation_paths.py",
    "show curves": "visualization/curves.py",
    "show projection": "visualization/tsne.py",
    "show neighbours": "visualization/neighbours.py",
    "show cam": "visualization/cam_grid.py",
}
_COMMANDS = re.compile(rf"\bgersp ({'|'.join(SCRIPTS)})\b")


def as_called(text: str) -> str:
    """Return a text that names commands of ``gersp``, with scripts where a script was called.

    Args:
        text: A help or a message, such as ``"Run gersp prepare dior data/dior."``.
    """
    script = Path(sys.argv[0]).absolute().with_suffix("").as_posix()
    if not script.endswith(tuple(f"/tools/{Path(s).with_suffix('')}" for s in SCRIPTS.values())):
        return text
    return _COMMANDS.sub(_script, text)


def _script(command: re.Match) -> str:
    script = SCRIPTS[command[1]]
    return f"{'bash' if script.endswith('.sh') else 'python'} tools/{script}"
