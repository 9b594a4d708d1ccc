"""Cut raster scenes into tiles, and list where each of them lies.

The body is gersp_mm/preparation/tiles.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("tiles")
