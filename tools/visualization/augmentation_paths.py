"""Draw the same random views through every implementation of the augmentation, side by side.

The body is gersp_mm/visualization/augmentation_paths.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.show import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main("augmentation_paths")
