"""Stands in for matplotlib's backends."""
