"""Make tables of result rows: Markdown, CSV and one HTML page that needs no other file.

The body is gersp_mm/commands/table.py; --help says how to use it.
"""

from gersp_mm.commands.table import main

if __name__ == "__main__":
    main()
