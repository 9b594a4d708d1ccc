"""Draw the same random views through every implementation of the augmentation, side by side.

The body is gersp_mm/visualization/augmentation_paths.py; --help says how to use it.
"""

from gersp_mm.commands.show import main

if __name__ == "__main__":
    main("augmentation_paths")
