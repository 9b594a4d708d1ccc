"""Check DOTA v1.0 and cut it into tiles with mmrotate's own splitter.

The body is gersp_mm/preparation/dota.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.prepare import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("dota")
