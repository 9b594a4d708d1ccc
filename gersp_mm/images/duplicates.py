"""Checks that two parts of a data set do not share pictures."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import PurePath

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.images.packed import read_file
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import escape_name

Entry = tuple[str, int]  # path and label

TAIL = 256  # Bytes at the end of a file, compared before the whole file is hashed.
THUMBNAIL = 16  # Side in pixels.
# Largest mean difference between two thumbnails of one picture, in grey levels and as a share of
# their standard deviation. Lossy compression changes them by less, and similar tiles of water or
# sand differ by much more.
CLOSE, SHARE = 4.0, 1 / 16
TRIED = 50  # This many pairs of one name and one format are compared first.
MAX_SHARED = 0.05  # Largest share of a part that may also be in another part.


def second_copies(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return the files of one folder whose names only differ in the ending.

    Args:
        paths: Relative or absolute paths.

    Returns:
        Pairs of the first file of a name and each further file of that name.
    """
    first: dict[str, str] = {}
    found = []
    for path in sorted(paths):
        kept = first.setdefault(os.path.splitext(path)[0], path)
        if kept != path:
            found.append((kept, path))
    return found


def refuse_second_copies(paths: Sequence[str], where: str | os.PathLike) -> None:
    """Refuse a data set that has images in two formats.

    Raises:
        UserError: Images appear twice; the message gives their number.
    """
    found = second_copies(paths)
    if not found:
        return
    one, other = map(escape_name, found[0])
    images = len(paths) - len(found)
    every = "every image is" if len(found) == images else f"{len(found)} of {images} images are"
    endings = sorted({PurePath(path).suffix for pair in found for path in pair})
    raise UserError(
        f"In {where}, {every} there twice, as {' and '.join(endings)} ({one} and {other}), so "
        "that training and test would share pictures. Remove one of the two formats."
    )


def shared_images(one: Sequence[Entry], other: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return the pictures of ``other`` that are also in ``one``, as pairs of their paths.

    Two files hold the same picture if their bytes are equal, or if class and file name (without the
    ending) are equal and the pixels agree up to lossy compression. Images of one colour only count
    if they are one file, because two places may look alike. Unreadable files are ignored.

    Args:
        one: Path and label of each image of a part.
        other: Path and label of each image of another part.

    Returns:
        For each shared picture its path in ``one`` and its path in ``other``.
    """
    found = _same_bytes([path for path, _ in one], [path for path, _ in other])
    named: dict[tuple[int, str], list[str]] = defaultdict(list)
    for path, label in one:
        named[label, PurePath(path).stem.casefold()].append(path)
    alike: dict[bool, list[tuple[str, str]]] = {True: [], False: []}  # by whether of one format
    for path, label in other:
        if path not in found:
            for match in named.get((label, PurePath(path).stem.casefold()), ()):
                one_format = _suffix(path) == _suffix(match)
                alike[one_format].append((match, path))
    # Some data sets number the images of each part from 1, so that all names appear twice.
    step = max(1, len(alike[True]) // TRIED)
    if not any(_same_pixels(*pair) for pair in alike[True][::step]):
        alike[True] = []
    for match, path in alike[False] + alike[True]:
        if path not in found and _same_pixels(match, path):
            found[path] = match
    return [(found[path], path) for path, _ in other if path in found]


def same_files(paths: Sequence[str]) -> list[list[str]]:
    """Return the groups of files whose bytes are the same, each in the order of the paths.

    Args:
        paths: Files of any storage. Those that cannot be read are left out.
    """
    groups: dict[Hashable, list[str]] = {"all": list(paths)}
    for identify in (_size, _tail, _digest):
        finer: dict[Hashable, list[str]] = defaultdict(list)
        for key, group in groups.items():
            for path in group:
                finer[key, identify(path)].append(path)
        groups = {key: group for key, group in finer.items() if len(group) > 1}
    return [group for group in groups.values() if _size(group[0]) > 0]


def check_parts(
    parts: Mapping[str, Sequence[Entry]], where: str | os.PathLike, refuse: bool = True
) -> None:
    """Warn of pictures that two parts of a data set share, or refuse them.

    Args:
        parts: Path and label of each image, by part; the later parts are tested on.
        where: Name of the data set, for the message.
        refuse: Whether more than :data:`MAX_SHARED` of a part is an error. A smaller share is a
            warning, because published data sets have some.

    Raises:
        UserError: More than :data:`MAX_SHARED` of a part are also in an earlier one.
    """
    for one, other in combinations(parts, 2):
        shared = shared_images(parts[one], parts[other])
        if not shared:
            continue
        pairs = [f"{escape_name(b)} is {escape_name(a)}" for a, b in shared[:3]]
        said = (
            f"{where}: {len(shared)} of {len(parts[other])} {other} images are also in {one}, in "
            f"this or another format or folder ({listed(pairs)})."
        )
        if refuse and len(shared) > MAX_SHARED * len(parts[other]):
            raise UserError(f"{said} Results would be too good. Remove them from one part.")
        said += " Results are too good by that much."
        print_log(said, logger="current", level=logging.WARNING)


def _same_bytes(one: Sequence[str], other: Sequence[str]) -> dict[str, str]:
    """Return a path of ``one`` for each path of ``other`` whose file has the same content."""
    first, second = set(one), set(other)
    found = {path: path for path in first & second}
    for group in same_files(list(dict.fromkeys([*one, *other]))):
        match = next((path for path in group if path in first), None)
        copies = [path for path in group if path in second and path not in found]
        if match and copies and not _is_of_one_colour(match):
            found.update(dict.fromkeys(copies, match))
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return len(_content(path)) or -1


def _tail(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            return file.read()
    except OSError:
        return _content(path)[-TAIL:]


def _digest(path: str) -> bytes:
    return hashlib.sha256(_content(path)).digest()


def _content(path: str) -> bytes:
    """Return the content of a file, also inside a database, or nothing if it is unreadable."""
    try:
        return read_file(path)
    except UserError:
        raise
    except Exception:  # Storage backends raise their own types.
        return b""


def _is_of_one_colour(path: str) -> bool:
    try:
        return _is_constant(load_rgb(path))
    except BadImageError:
        return True


def _is_constant(image: Image.Image) -> bool:
    return len(image.getcolors(1) or ()) == 1


def _same_pixels(one: str, other: str) -> bool:
    try:
        first, second = load_rgb(one), load_rgb(other)
    except BadImageError:
        return False
    if _is_constant(first):
        return False
    if first.size == second.size and first.tobytes() == second.tobytes():
        return True
    pixels = [
        np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)
        for image in (first, second)
    ]
    difference = float(np.abs(pixels[0] - pixels[1]).mean())
    contrast = float(pixels[0].std((0, 1)).mean())
    return difference <= min(CLOSE, SHARE * contrast)


def _suffix(path: str) -> str:
    return PurePath(path).suffix.casefold()
