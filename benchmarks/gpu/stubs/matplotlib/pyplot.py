"""Stands in for the functions by which MMEngine's Visualizer opens and closes figures."""

from matplotlib.figure import Figure

new_figure_manager = figure = close = Figure
