"""Make tables of result rows: Markdown, CSV and one HTML page that needs no other file.

The body is gersp_mm/commands/table.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.table import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
