"""Train any config of this package: pre-training and downstream.

The body is gersp_mm/commands/train.py; --help says how to use it.
"""

from gersp_mm.commands.train import main

if __name__ == "__main__":
    main()
