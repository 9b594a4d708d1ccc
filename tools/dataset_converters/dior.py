"""Write DIOR's boxes as COCO json (horizontal) and DOTA text (oriented), after checking the data.

The body is gersp_mm/preparation/dior.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("dior")
