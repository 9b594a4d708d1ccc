"""Pre-train GeRSP on the demo images, export the backbone and evaluate it.

The body is gersp_mm/commands/quickstart.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.quickstart import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
