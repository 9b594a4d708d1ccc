"""Draw the nearest training images of some images, as several pre-trainings see them.

The body is gersp_mm/visualization/neighbours.py; --help says how to use it.
"""

from gersp_mm.commands.show import main

if __name__ == "__main__":
    main("neighbours")
