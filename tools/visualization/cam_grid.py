"""Draw where several pre-trainings look: class activation maps, images by pre-trainings.

The body is gersp_mm/visualization/cam.py; --help says how to use it.
"""

from gersp_mm.commands.show import main

if __name__ == "__main__":
    main("cam")
