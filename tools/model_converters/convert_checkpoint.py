"""Convert a public pre-training, or a training checkpoint, to a backbone that surely loads.

The body is gersp_mm/commands/convert.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.convert import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
