"""Reading text files of any system."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from gersp_mm.utils.errors import UserError

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | os.PathLike) -> str:
    """Read a text file in UTF-8, or in UTF-16 where its byte-order mark says so.

    Raises:
        UserError: The file holds anything else.
    """
    content = Path(path).read_bytes()
    encoding = next((e for mark, e in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a text file in UTF-8 or UTF-16 ({error.reason} at byte {error.start}). "
            "Fetch it again, or save it as UTF-8."
        ) from None
    if "\0" in text:
        raise UserError(f"{path} holds zero bytes and is not a text file. Fetch it again.")
    return text
