"""Examine a folder of images before a training, and print the lines for the config.

The body is gersp_mm/commands/check.py; --help says how to use it.
"""

from gersp_mm.commands.check import main

if __name__ == "__main__":
    main()
