"""Shrink an image data set once, and pack its million files into one LMDB database.

The body is gersp_mm/preparation/pack.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("pack")
