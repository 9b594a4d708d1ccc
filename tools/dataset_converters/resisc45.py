"""Check NWPU-RESISC45 and write the split resisc45-gersp-1.

The body is gersp_mm/preparation/resisc45.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("resisc45")
