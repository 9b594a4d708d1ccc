"""Fine-tune Faster R-CNN on the tree crowns of the demo scenes, from GeRSP and from random weights.

The body is gersp_mm/commands/demo_detection.py; --help says how to use it.
"""

from gersp_mm.commands.demo_detection import main

if __name__ == "__main__":
    main()
