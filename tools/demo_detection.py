"""Fine-tune Faster R-CNN on the tree crowns of the demo scenes, from GeRSP and from random weights.

The body is gersp_mm/commands/demo_detection.py; --help says how to use it.
"""

try:
    from gersp_mm.commands.demo_detection import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: source .venv/bin/activate, or bash tools/setup_env.sh") from None

if __name__ == "__main__":
    main()
