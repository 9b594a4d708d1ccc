"""Stands in for matplotlib where it is not installed; draws nothing.

mmpretrain imports figures when it is imported, and MMEngine's Visualizer makes some when it is
built. bundle.py uses this folder only where there is no matplotlib.
"""

__version__ = "0.0.0+stub"
