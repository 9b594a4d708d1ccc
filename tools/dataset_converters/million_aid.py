"""Count the images of Million-AID and list them; GeRSP pre-trains on the test split.

The body is gersp_mm/preparation/million_aid.py; --help says how to use it.
"""

from gersp_mm.commands.prepare import main

if __name__ == "__main__":
    main("million_aid")
