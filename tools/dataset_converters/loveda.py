"""Check LoveDA, and bring Urban and Rural together for mmsegmentation.

The body is gersp_mm/preparation/loveda.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("loveda")
