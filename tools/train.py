"""Train any config of this package: pre-training and downstream.

The body is gersp_mm/commands/train.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.train import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
