"""Check EuroSAT (RGB) and write the split eurosat-gersp-1."""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.utils.errors import UserError


def refuse_multispectral(data: Path) -> None:
    """Raise a :class:`UserError` if the class folders hold TIFF files."""
    from gersp_mm.datasets.known import EUROSAT
    from gersp_mm.preparation.common import folders_called

    for folder in folders_called(EUROSAT.classes, data):
        for file in folder.iterdir():
            if file.suffix.lower() in (".tif", ".tiff"):
                raise UserError(
                    f"{file} belongs to the multispectral EuroSAT (13 bands). Fetch "
                    "EuroSAT_RGB.zip, and keep it in a separate folder."
                )


def run(args: argparse.Namespace) -> None:
    """Check EuroSAT and write the lists of its named split."""
    from gersp_mm.datasets.known import EUROSAT
    from gersp_mm.preparation.common import unpack_into
    from gersp_mm.preparation.scenes import prepare_scenes

    if args.archive:
        unpack_into(args.data, [args.archive])
    refuse_multispectral(args.data)
    prepare_scenes(args, EUROSAT)
