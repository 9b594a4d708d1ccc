"""Draw the features of the same images by several pre-trainings, side by side in two dimensions.

The body is gersp_mm/visualization/projection.py; --help says how to use it.
"""

from gersp_mm.commands.show import main

if __name__ == "__main__":
    main("projection")
