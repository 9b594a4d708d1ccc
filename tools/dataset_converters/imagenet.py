"""Check ImageNet-1k, the natural images of GeRSP's pre-training.

The body is gersp_mm/preparation/imagenet.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("imagenet")
