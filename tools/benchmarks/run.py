"""Evaluate checkpoints x tasks x seeds, as one YAML file says, into rows of results.

The body is gersp_mm/commands/benchmark.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.benchmark import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
