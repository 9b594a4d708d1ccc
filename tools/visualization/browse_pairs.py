"""Draw training pairs exactly as the model sees them.

The body is gersp_mm/visualization/pairs.py; --help says how to use it.
"""

from gersp_mm.commands.show import main

if __name__ == "__main__":
    main("pairs")
