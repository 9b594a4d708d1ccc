"""Check NWPU-RESISC45 and write the split resisc45-gersp-1.

The body is gersp_mm/preparation/resisc45.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.prepare import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("resisc45")
