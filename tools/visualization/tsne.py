"""Draw the features of the same images by several pre-trainings, side by side in two dimensions.

The body is gersp_mm/visualization/projection.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.show import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("projection")
