"""Cut raster scenes into tiles, and list the place of each tile.

The body is gersp_mm/preparation/tiles.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("tiles")
