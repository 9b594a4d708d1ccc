"""Evaluate checkpoints x tasks x seeds, as one YAML file says, into rows of results.

The body is gersp_mm/commands/benchmark.py; --help says how to use it.
"""

from gersp_mm.commands.benchmark import main

if __name__ == "__main__":
    main()
