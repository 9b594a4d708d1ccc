"""Stands in for matplotlib where it is not installed; draws nothing.

mmpretrain imports figures when it is imported, and MMEngine's Visualizer makes some when it is
built. bundle.py uses this folder only where there is no matplotlib.
"""

import sys
from unittest import mock

__version__ = "0.0.0+stub"
for name in ("figure", "pyplot", "backends", "backends.backend_agg"):
    sys.modules[f"{__name__}.{name}"] = mock.MagicMock()
