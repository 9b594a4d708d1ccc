"""Stands in for the figures that MMEngine's Visualizer makes when it is built."""


class Figure:
    """Takes everything and draws nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Figure()

    def __call__(self, *args, **kwargs):
        """Return another one."""
        return Figure()
