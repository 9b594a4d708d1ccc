"""Result rows as typed data, and the statistics and tables that are made from them."""

from gersp_mm.results.protocol import Protocol
from gersp_mm.results.row import Column, Identity, Pretraining, Row, SplitRef
from gersp_mm.results.store import append_new_rows, append_rows, read_rows

__all__ = [
    "Column",
    "Identity",
    "Pretraining",
    "Protocol",
    "Row",
    "SplitRef",
    "append_new_rows",
    "append_rows",
    "read_rows",
]
