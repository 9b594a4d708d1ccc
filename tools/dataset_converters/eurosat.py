"""Check EuroSAT (RGB) and write the split eurosat-gersp-1.

The body is gersp_mm/preparation/eurosat.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.prepare import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("eurosat")
