"""The old path of :mod:`gersp_mm.results`."""

from gersp_mm.results import append_rows, read_rows  # noqa: F401
