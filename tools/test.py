"""Evaluate a checkpoint with the config it belongs to; draw or submit its predictions.

The body is gersp_mm/commands/test.py; --help says how to use it.
"""

from gersp_mm.commands.test import main

if __name__ == "__main__":
    main()
