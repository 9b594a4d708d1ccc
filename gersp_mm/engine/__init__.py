"""A run: its config, its processes, its loop, its hooks, its folder."""
