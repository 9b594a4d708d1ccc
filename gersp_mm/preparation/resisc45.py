"""Check NWPU-RESISC45 and write the split resisc45-gersp-1."""

from __future__ import annotations

import argparse

SIDE = 256  # px


def run(args: argparse.Namespace) -> None:
    """Check NWPU-RESISC45 and write the lists of its named split."""
    from gersp_mm.datasets.splits import RESISC45_GERSP_1
    from gersp_mm.preparation.common import unpack_into
    from gersp_mm.preparation.scenes import prepare_scenes

    if args.archive:
        unpack_into(args.data, [args.archive])
    prepare_scenes(args.data, RESISC45_GERSP_1, SIDE, args.allow_incomplete, not args.no_decode)
