"""The style of help that all commands share."""

from __future__ import annotations

import argparse

from gersp_mm.utils.called import as_called


def new_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows ``doc``, the docstring of a module, line by line."""
    return argparse.ArgumentParser(
        description=as_called(doc or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
