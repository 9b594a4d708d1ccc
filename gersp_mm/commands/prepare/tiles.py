"""Cut raster scenes into tiles, and list the place of each tile.

SRC is a folder of GeoTIFF, JPEG2000 or netCDF-3 scenes, searched recursively. GeoTIFF tiles keep
values, bands, nodata and georeference. PNG and JPEG tiles are 8-bit RGB by one pixel scale for all
scenes. Tiles with more than --max-nodata without data are left out; the last row and column of
tiles are moved inwards, so that all tiles of a scene have one size. DST gets:

  images/           the tiles: images/<scene>_<top>_<left>.tif
  images.txt        their paths; gersp_mm.MillionAID takes it as ann_file, data_root=DST
  tiles.jsonl       a line for each: path, scene, window, crs, transform, bounds, share without data
  pixel_scale.json  bands and limits of PNG and JPEG tiles
  bad_images.txt    scenes that cannot be read and are left out, with the reason
  progress.jsonl    finished scenes

The command may be interrupted or killed at any moment: the same command resumes at the scene where
it stopped. Remove DST to start over.

Examples:
  gersp prepare tiles data/scenes data/tiles
  gersp prepare tiles data/scenes data/tiles --size 256 --overlap 64
  gersp prepare tiles data/scenes data/tiles --to png --bands 4 3 2
"""

from __future__ import annotations

import argparse

from gersp_mm.preparation.options import add_raster_options, new_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this command."""
    parser = new_parser(__doc__, "quality", "workers", source="folder of the scenes")
    parser.add_argument(
        "--size", type=int, default=512, help="cut tiles with sides of N pixels [%(default)s]"
    )
    parser.add_argument(
        "--overlap", type=int, default=0, help="share N pixels between neighbours [%(default)s]"
    )
    parser.add_argument(
        "--max-nodata",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="leave out tiles with a larger share without data [%(default)s]",
    )
    parser.add_argument(
        "--to",
        choices=("tif", "png", "jpg"),
        default="tif",
        help="write tiles of this format [%(default)s]",
    )
    add_raster_options(parser)
    return parser.parse_args(argv)
