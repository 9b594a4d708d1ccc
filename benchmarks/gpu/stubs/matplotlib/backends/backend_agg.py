"""Stands in for the canvas of MMEngine's Visualizer."""

from matplotlib.figure import Figure


class FigureCanvasAgg(Figure):
    """Takes everything and draws nothing."""
