"""Check EuroSAT (RGB) and write the split eurosat-gersp-1.

The body is gersp_mm/preparation/eurosat.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("eurosat")
