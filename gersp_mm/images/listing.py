"""The rule that decides which files are images, and the reader and writer of image lists."""

from __future__ import annotations

import codecs
import os
import os.path as osp
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmengine import fileio
from mmengine.logging import print_log

from gersp_mm.utils.console import progress_bar
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import escape_name, write_text

# Endings of the files that are searched in folders. Decoding depends on the content, not the name.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".jp2", ".nc",
)  # fmt: skip
# Endings of images that no reader here decodes, or only under another name. The log says how many
# of them are skipped.
OTHER_EXTENSIONS = (
    ".img", ".bil", ".bip", ".bsq", ".vrt", ".hdf", ".h5", ".he5", ".nc4", ".grd", ".asc", ".ntf",
    ".nitf", ".ecw", ".sid", ".grib", ".grb", ".grib2", ".j2k", ".jpx", ".jpf", ".gif", ".jfif",
    ".heic", ".avif", ".jxl",
)  # fmt: skip

# Names of files that desktops, network drives and archives create, in lower case. Names that begin
# with a dot (.ipynb_checkpoints, .Trash-1000, ._x.jpg, .DS_Store) are skipped as well.
SYSTEM_NAMES = frozenset({
    "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "__macosx", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "recycler", "recycled",
    "system volume information", "__pycache__",
})  # fmt: skip

_told: set[tuple[str, str]] = set()


def is_passed_over(name: str) -> bool:
    """Return whether a file or folder with this name is hidden or belongs to the system.

    Args:
        name: The last component of a path.
    """
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def is_image_name(name: str) -> bool:
    """Return whether a file with this name, the last component of a path, is an image."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and not is_passed_over(name)


def find_images(
    folder: str | os.PathLike,
    extensions: Sequence[str] = IMAGE_EXTENSIONS,
    progress: bool = False,
) -> list[str]:
    """List the images at any depth below a folder, as sorted relative paths with ``/``.

    Hidden and system files and folders are skipped, and the log says once how many. Links to
    folders are followed. A folder with several paths is listed once, if possible by the path
    without links, so that circular links end.

    Args:
        folder: A folder, local or in any storage that ``mmengine.fileio`` lists.
        extensions: File-name endings to look for, in any case.
        progress: Whether to show a progress bar.

    Raises:
        UserError: A folder cannot be listed.
    """
    folder = os.fspath(folder)
    if "://" in folder:
        return sorted(_remote_images(folder, extensions))
    walk = _Walk(folder, extensions, progress)
    walk.run([("", folder, walk.root)])
    walk.tell()
    return sorted(walk.found)


def find_classes(
    folder: str | os.PathLike,
    extensions: Sequence[str] = IMAGE_EXTENSIONS,
    progress: bool = False,
) -> dict[str, list[str]]:
    """List the images of each class in a folder with one sub-folder per class.

    The classes are sorted by name, which is the order of their labels, and the images of a class by
    path. Both orders equal those of mmpretrain's ``CustomDataset``, which also treats hidden and
    system folders as classes.

    Args:
        folder: See :func:`find_images`.
        extensions: File-name endings to look for, in any case.
        progress: Whether to show a progress bar.

    Returns:
        The paths of each class's images relative to ``folder``, with ``/``. A sub-folder
        without images is a class without images.

    Raises:
        UserError: A folder cannot be listed.
    """
    folder = os.fspath(folder)
    if "://" in folder:
        below = fileio.list_dir_or_file(folder, list_file=False)
        classes = sorted(name for name in below if not is_passed_over(name))
        found = _remote_images(folder, extensions)
    else:
        walk = _Walk(folder, extensions, progress)
        classes = walk.run_classes()
        walk.tell()
        found = walk.found
    images: dict[str, list[str]] = {name: [] for name in classes}
    for path in found:
        name, separator, _ = path.partition("/")
        if separator:
            images[name].append(path)
    for paths in images.values():
        paths.sort()
    return images


def _remote_images(folder: str, extensions: Sequence[str]) -> list[str]:
    endings = tuple(ending.lower() for ending in extensions)
    paths = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
    return [
        path.replace(os.sep, "/")
        for path in paths
        if path.lower().endswith(endings) and not any(map(is_passed_over, path.split("/")))
    ]


class _Walk:
    """One pass over a folder, with the images and the skipped files that it finds.

    Args:
        folder: The folder, which has to be local.
        extensions: File-name endings to look for, in any case.
        progress: Whether to show a progress bar.
    """

    def __init__(self, folder: str, extensions: Sequence[str], progress: bool) -> None:
        self.folder = folder
        self.root = osp.realpath(folder)
        self.extensions = tuple(ending.lower() for ending in extensions)
        self.found: list[str] = []
        self.seen: set[str] = set()  # real paths of the folders that are listed
        self.hidden: list[str] = []
        self.other: Counter[str] = Counter()  # files of other formats, by their endings
        self.gone: list[str] = []  # names of images that are broken links
        self.links: list[str] = []  # links to folders that are listed under another path
        self.progress = progress

    def run(self, folders: list[tuple[str, str, str]]) -> None:
        """List folders, given as (prefix of the relative paths, path, real path)."""
        with progress_bar(f"listing {self.folder}", "img", shown=self.progress) as self.bar:
            links = self._real(folders)
            while links:
                links.sort()
                prefix, path = links.pop(0)
                if self._is_listed(real := osp.realpath(path)):
                    self.links.append(prefix[:-1])
                else:
                    links += self._real([(prefix, path, real)])

    def run_classes(self) -> list[str]:
        """List all folders inside the folder, and return the sorted names of the classes."""
        self.seen.add(self.root)
        classes: list[tuple[str, str, str]] = []
        links: list[tuple[str, str]] = []
        for entry in self._entries(self.folder):
            if not _is_folder(entry):
                continue
            if entry.is_symlink():
                links.append((entry.name, entry.path))
            else:
                classes.append((f"{entry.name}/", entry.path, osp.join(self.root, entry.name)))
        reals = {real for _, _, real in classes}
        for name, path in sorted(links):
            real = osp.realpath(path)
            if real in reals or self._is_listed(real):
                self.links.append(name)
            else:
                reals.add(real)
                classes.append((f"{name}/", path, real))
        self.run(classes)
        return sorted(prefix[:-1] for prefix, _, _ in classes)

    def _real(self, folders: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
        """List folders without following links, and return the linked folders in them."""
        links = []
        pending = list(folders)
        while pending:
            prefix, path, real = pending.pop()
            if real in self.seen:
                continue
            self.seen.add(real)
            before = len(self.found)
            for entry in self._entries(path):
                if _is_folder(entry):
                    if entry.is_symlink():
                        links.append((f"{prefix}{entry.name}/", entry.path))
                    else:
                        inside = f"{real}{os.sep}{entry.name}"
                        pending.append((f"{prefix}{entry.name}/", entry.path, inside))
                elif entry.name.lower().endswith(self.extensions):
                    (self.found if _is_file(entry) else self.gone).append(prefix + entry.name)
                elif (ending := osp.splitext(entry.name)[1].lower()) in OTHER_EXTENSIONS:
                    self.other[ending] += 1
            self.bar.advance(len(self.found) - before)
        return links

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if is_passed_over(entry.name):
                        self.hidden.append(entry.name)
                    else:
                        yield entry
        except OSError as error:
            raise UserError(
                f"The folder {path} cannot be listed ({error.strerror}). Make it readable, or "
                "remove it."
            ) from None

    def _is_listed(self, real: str) -> bool:
        """Return whether a folder is listed already, or contains the listed folder."""
        return real in self.seen or f"{self.root}{os.sep}".startswith(real.rstrip(os.sep) + os.sep)

    def tell(self) -> None:
        """Log the skipped files, once for each folder."""
        parts = []
        if self.hidden:
            kinds = sorted(set(self.hidden))
            parts.append(f"hidden or system files and folders: {len(self.hidden)} ({_some(kinds)})")
        if self.other:
            parts.append(
                f"files of other formats: {self.other.total()} ({_some(sorted(self.other))}), "
                "which gdal_translate converts"
            )
        if self.links:
            links = sorted(self.links)
            parts.append(f"links to folders that are listed already: {len(links)} ({_some(links)})")
        if self.gone:
            gone = sorted(self.gone)
            parts.append(f"links that lead to no file: {len(gone)} ({_some(gone)})")
        text = "; ".join(parts)
        if text and (self.root, text) not in _told:
            _told.add((self.root, text))
            where = self.folder.rstrip(os.sep)
            print_log(f"{where}: {len(self.found)} images. Passed over {text}", logger="current")


def _some(names: Sequence[str]) -> str:
    return listed([escape_name(name) for name in names])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # The entry is a link to itself.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


LOOKED_AT = 16  # entries of a list, before the first step
MARKS = (
    (codecs.BOM_UTF8, "utf-8", "a UTF-8 byte-order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)


@dataclass(frozen=True)
class ImageList:
    """An ordered list of images, with or without labels.

    Attributes:
        paths: Paths of the images, as they are written.
        labels: Label of each image; None for a list of paths only.
        oddities: Features that other readers do not support: a byte-order mark, UTF-16,
            backslashes.
    """

    paths: list[str]
    labels: list[int] | None = None
    oddities: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, path: str | os.PathLike, root: str | os.PathLike = "", labelled: bool | None = True
    ) -> ImageList:
        r"""Read a text file with a line ``path label`` or ``path`` per image.

        UTF-8, with or without a byte-order mark, and UTF-16 are read, with any kind of line end.
        ``\`` in paths becomes ``/`` if the files exist under that name, or if no path has a ``/``.

        Args:
            path: The list, in any storage that ``mmengine.fileio`` reads.
            root: Folder to which the paths are relative.
            labelled: Whether lines have labels; None means that they have labels if every line
                ends with a whole number.

        Raises:
            UserError: The file does not exist, is not a text file, or has a line without a label.
        """
        text, oddities = read_text(path)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = list(map(str.strip, text.split("\n")))
        if labelled is None:
            filled = [line for line in lines if line]
            labelled = bool(filled) and all(_split(line)[1] for line in filled)
        paths: list[str] = []
        labels: list[int] = []
        if labelled:
            for number, line in enumerate(lines, 1):
                if not line:
                    continue
                name, label = _split(line)
                if not label:
                    raise UserError(
                        f"{path}, line {number}: expected `path label`, found {line!r}. Write "
                        "the path, a space and a whole number from 0."
                    )
                paths.append(name)
                labels.append(int(label))
        else:
            paths = [line for line in lines if line]
        if "\\" in text and _is_of_windows(paths, root):
            paths = [name.replace("\\", "/") for name in paths]
            oddities = (*oddities, "backslashes in its paths")
        _refuse_other_encodings(path, paths, root)
        return cls(paths, labels if labelled else None, oddities)

    def write(self, path: str | os.PathLike) -> None:
        """Write the list in the format of :meth:`read`, atomically.

        Raises:
            UserError: A list cannot hold one of the paths.
        """
        labels = self.labels
        ends = [""] * len(self.paths) if labels is None else [f" {label}" for label in labels]
        write_list(path, [name + end for name, end in zip(self.paths, ends)])


def _split(line: str) -> tuple[str, str]:
    """Return path and label of a line; the label may be empty."""
    path, _, label = line.rpartition(" ")
    if not (path and label.isdecimal()):
        path, _, label = line.replace("\t", " ").rpartition(" ")
    return (path.rstrip(), label) if path and label.isdecimal() else (line, "")


def require_entries(
    path: str | os.PathLike, entries: Sequence[str], root: str | os.PathLike
) -> None:
    r"""Refuse a list if none of a sample of its entries exists.

    Individual missing files are reported when they are read.

    Args:
        path: The list, for the message.
        entries: Paths of images.
        root: Folder to which the paths are relative.

    Raises:
        UserError: No entry of the sample exists. The message gives the likely reason: the folder
            does not exist, appears twice in the paths or is missing from them, ``\`` separates
            folders, or the paths come from another machine.
    """
    root = os.fspath(root)
    if "://" in root or not entries:
        return
    looked_at = [entries[i] for i in range(0, len(entries), max(1, len(entries) // LOOKED_AT))]
    if any(osp.lexists(osp.join(root, entry)) for entry in looked_at):
        return
    first = looked_at[0]
    raise UserError(
        f"{path}: none of {len(looked_at)} sampled entries exists, such as "
        f"{osp.join(root, first)}. {_why_missing(first, root)}"
    )


def _why_missing(entry: str, root: str) -> str:
    """Return why an entry of a list is not found, and what to do, as sentences."""
    folder = root or "."
    if osp.isabs(entry):
        return "Its paths are absolute, in another place: write them relative to data_root."
    if not osp.isdir(folder):
        return f"The folder {folder} does not exist: correct data_root or data_prefix."
    plain = entry.replace("\\", "/")
    if plain != entry and osp.lexists(osp.join(root, plain)):
        return "It separates folders by \\: write / instead."
    parts = plain.split("/")
    for n in range(1, len(parts)):
        if osp.lexists(osp.join(root, *parts[n:])):
            extra = "/".join(parts[:n])
            twice = osp.abspath(folder).replace(os.sep, "/").endswith(f"/{extra}")
            why = "appears twice" if twice else f"is not in {folder}"
            return f"The folder {extra} {why}: remove it from the entries or from data_root."
    if root and osp.lexists(plain):
        return "They are relative to the current folder: set data_root and data_prefix to ''."
    with os.scandir(folder) as inside:
        names = sorted(item.name for item in inside if item.is_dir())
    for name in names[:LOOKED_AT]:
        if osp.lexists(osp.join(folder, name, plain)):
            return f"The images lie in {osp.join(folder, name)}: correct data_root or data_prefix."
    return "Correct data_root or data_prefix, or write the list again."


def refuse_unlistable(name: str) -> None:
    """Raise a :class:`UserError` if a list cannot hold a file name."""
    try:
        name.encode()
        fits = name == name.strip() and len(name.splitlines()) == 1
    except UnicodeEncodeError:
        fits = False
    if not fits or name.startswith("\ufeff"):
        raise UserError(
            f"the file name in {name!r} has a line break, begins or ends with a space, or is "
            "not UTF-8, which lists cannot hold. Rename the file."
        )


def write_list(path: str | os.PathLike, lines: Sequence[str]) -> None:
    """Write a list with one entry per line, atomically.

    Raises:
        UserError: A list cannot hold one of the file names.
    """
    for line in lines:
        refuse_unlistable(line)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_text(path: str | os.PathLike) -> tuple[str, tuple[str, ...]]:
    """Read a text file in UTF-8, or, with a byte-order mark, in UTF-16 or UTF-32.

    Returns:
        The text, and the features of the file that other readers do not support.

    Raises:
        UserError: The file cannot be read or is not a text file.
    """
    try:
        content = fileio.get(os.fspath(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    for mark, encoding, name in MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding).removeprefix("\ufeff"), (name,)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} begins as {name}, but is not ({error.reason}). Save it as UTF-8."
                ) from None
    if b"\0" in content:
        raise UserError(
            f"{path} is not a text in UTF-8: it holds zero bytes, like UTF-16 without a byte-order "
            "mark and binary files. Save it as UTF-8."
        )
    return content.decode("utf-8", "surrogateescape"), ()


def _is_of_windows(paths: Sequence[str], root: str | os.PathLike) -> bool:
    r"""Return whether ``\`` separates folders; on other systems it may be part of a name."""
    first = next((path for path in paths if "\\" in path), None)
    if first is None or os.sep == "\\" or osp.lexists(osp.join(root, first)):
        return False
    if osp.lexists(osp.join(root, first.replace("\\", "/"))):
        return True
    return not any("/" in path for path in paths)


def _refuse_other_encodings(
    path: str | os.PathLike, paths: Sequence[str], root: str | os.PathLike
) -> None:
    """Refuse bytes that are not UTF-8, unless they name a file."""
    for name in paths:
        if name.isascii():
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            if not osp.lexists(osp.join(root, name)):
                raise UserError(
                    f"{path} is not UTF-8: its line {escape_name(name)!r} names no file below "
                    f"{root}. Save the list as UTF-8."
                ) from None
            return
