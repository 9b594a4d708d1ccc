"""Draw the losses and monitored values of one or several runs into one picture.

The body is gersp_mm/visualization/curves.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.show import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("curves")
