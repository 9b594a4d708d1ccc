"""Result rows as data, and what is computed and printed from them."""

from gersp_mm.results.store import FIELDS, append_rows, read_rows

__all__ = ["FIELDS", "append_rows", "read_rows"]
