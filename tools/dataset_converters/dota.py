"""Check DOTA v1.0 and cut it into tiles with mmrotate's own splitter.

The body is gersp_mm/preparation/dota.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("dota")
