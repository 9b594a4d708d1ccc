"""Look at a folder of images before a training, and say what to write in the config.

The command is gersp_mm/commands/check.py; --help says how to use it.
"""

from gersp_mm.commands.check import main

if __name__ == "__main__":
    main()
