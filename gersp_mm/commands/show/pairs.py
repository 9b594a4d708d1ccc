r"""Draw training pairs exactly as the model sees them.

Batches come from the config's own train_dataloader (dataset, augmentation, sampler, collate
function) and go through the model's data preprocessor; then the normalisation alone is undone.
Rows are samples; columns are the remote-sensing query, its key, and the natural image with its
label.

Examples:
  gersp show pairs configs/pretrain/gersp_r18_demo.py
  gersp show pairs configs/pretrain/gersp_r50.py --rows 12 \
      --out pairs.png --cfg-options train_dataloader.dataset.remote_sensing.data_root=/my/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.commands.options import add_common_arguments
from gersp_mm.utils.arguments import new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__)
    parser.add_argument("config", help="draw the pairs of this pre-training config")
    parser.add_argument("--rows", type=int, default=8, help="draw N pairs [%(default)s]")
    parser.add_argument("--out", type=Path, help="write this PNG file [<work dir>/pairs.png]")
    add_common_arguments(parser)
    parser.set_defaults(work_dir=None)
    return parser.parse_args(argv)
