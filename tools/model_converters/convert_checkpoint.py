"""Convert a public pre-training, or a training checkpoint, to a backbone that surely loads.

The body is gersp_mm/commands/convert.py; --help says how to use it.
"""

from gersp_mm.commands.convert import main

if __name__ == "__main__":
    main()
