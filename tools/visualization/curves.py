"""Draw the losses and monitored values of one or several runs into one picture.

The body is gersp_mm/visualization/curves.py; --help says how to use it.
"""

from gersp_mm.commands.show import main

if __name__ == "__main__":
    main("curves")
