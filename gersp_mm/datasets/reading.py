"""Reading the images of a source by number, replacing unreadable images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gersp_mm.images.decode import BadImageError, EmptyWindowError
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import escape_name

# Reading stops after this number of unreadable images in a row, or this share of the source, if
# that is larger.
MAX_BAD_IN_A_ROW = 100
MAX_BAD_SHARE_IN_A_ROW = 0.05

BadImage = tuple[str, str, str]  # source ("remote_sensing" or "natural"), path and reason


@dataclass
class DecodedImages:
    """The images of a source, decoded from their files.

    Attributes:
        name: ``'remote_sensing'`` or ``'natural'``.
        source: A dataset of mmpretrain's kind.
        decode: Function that takes the source's data info of an image and returns a dict with
            ``img``, a 3×H×W uint8 RGB tensor, and further entries.
    """

    name: str
    source: Any
    decode: Callable[[dict[str, Any]], dict[str, Any]]

    def read(self, index: int, bad: list[BadImage]) -> dict[str, Any]:
        """Decode image ``index`` or the first readable one after it.

        Args:
            index: Number of the image in the source.
            bad: List that gets source, path and reason of each unreadable image.

        Returns:
            The source's data info of the image, with ``img``, a 3×H×W uint8 RGB tensor, and
            ``number``, the number of the image that was read.

        Raises:
            UserError: Too many images in a row cannot be read.
        """
        size, stride = len(self.source), getattr(self.source, "stride", 1)
        attempts = max(MAX_BAD_IN_A_ROW, int(MAX_BAD_SHARE_IN_A_ROW * size))
        last = ("", "")
        for offset in range(min(size, attempts)):
            number = (index + offset * stride) % size
            info = self.source.get_data_info(number)
            try:
                return {**info, **self.decode(info), "number": number}
            except BadImageError as error:
                last = info["img_path"], str(error)
                if not isinstance(error, EmptyWindowError):  # Its file is intact.
                    bad.append((self.name, *last))
        path, reason = last
        raise UserError(
            f"{offset + 1} images of {type(self.source).__name__} in a row cannot be read, the "
            f"last one being {escape_name(path)} ({reason}). Check the files and data_root."
        )
