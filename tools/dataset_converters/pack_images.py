"""Shrink an image data set once, and pack its million files into one LMDB database.

The body is gersp_mm/preparation/pack.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.prepare import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("pack")
