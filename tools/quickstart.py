"""Pre-train GeRSP on the demo images, export the backbone and evaluate it.

The body is gersp_mm/commands/quickstart.py; --help says how to use it.
"""

from gersp_mm.commands.quickstart import main

if __name__ == "__main__":
    main()
