"""Check NWPU-RESISC45 and write the split resisc45-gersp-1."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> None:
    """Check NWPU-RESISC45 and write the lists of its named split."""
    from gersp_mm.datasets.known import RESISC45
    from gersp_mm.preparation.common import unpack_into
    from gersp_mm.preparation.scenes import prepare_scenes

    if args.archive:
        unpack_into(args.data, [args.archive])
    prepare_scenes(args, RESISC45)
