"""Check a file for DOTA's or LoveDA's test server before it is submitted.

The body is gersp_mm/commands/check_submission.py; --help says how to use it.
"""

from gersp_mm.commands.check_submission import main

if __name__ == "__main__":
    main()
