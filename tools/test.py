"""Evaluate a checkpoint with the config it belongs to; draw or submit its predictions.

The body is gersp_mm/commands/test.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.test import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
