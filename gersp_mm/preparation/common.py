"""Parts that all converters share: archives, damaged files, messages and lists."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from gersp_mm.images.decode import BadImageError, load_rgb, unlimited_image_size
from gersp_mm.images.listing import is_passed_over
from gersp_mm.utils.called import as_called
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import escape_name, unescape_name, write_text

SHOWN = 10  # Files named in a message.
EXAMPLES = 5  # Files named with a finding.
CHUNK = 10_000  # Images handed to threads at once.
ARCHIVE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
)  # fmt: skip


def findings_text(findings: Mapping[str, Sequence[str]]) -> str:
    """Return one line for each kind of finding: how often, and where for the first few."""
    return "\n".join(
        f"{what}: {len(where):,} ({listed(where, EXAMPLES)})" for what, where in findings.items()
    )


def folders_called(names: Collection[str], root: Path) -> list[Path]:
    """Return the folders of these names at any depth below ``root``, sorted; none inside another.

    Hidden and system folders are passed over. Linked folders are followed, each once.
    """
    found: list[Path] = []
    seen = set()
    for folder, subfolders, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real not in seen:
            found += [Path(folder, name) for name in subfolders if name in names]
            inside = [n for n in subfolders if n not in names and not is_passed_over(n)]
        subfolders[:] = [] if real in seen else inside
        seen.add(real)
    return sorted(found)


@contextlib.contextmanager
def explained(
    folder: Path, then: str = "and run the same command again", *more: type[Exception]
) -> Iterator[None]:
    """Turn errors while files are written into one line.

    Args:
        folder: Folder that is written to.
        then: Advice for the time after the remedy.
        more: Types of errors that are turned in addition to ``OSError``.

    Raises:
        UserError: One of these errors was raised in the block.
    """
    errors: tuple[type[Exception], ...] = (OSError, *more)
    try:
        yield
    except errors as error:
        raise UserError(
            f"cannot write to {folder} ({error}). Check free space, permissions and symbolic "
            f"links, {then}."
        ) from error


def first_lines(texts: Sequence[object]) -> str:
    """Return the first few texts, one per line below a message, and how many more there are."""
    return "".join(f"\n  {text}" for text in _first(texts))


def _first(texts: Sequence[object]) -> list[object]:
    more = [f"and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else []
    return [*texts[:SHOWN], *more]


def refuse_incomplete(
    data: Path,
    title: str,
    differences: Sequence[str],
    allowed: bool,
    consequence: str = "",
    findings: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Report how a data set differs from the complete one, and refuse it unless allowed.

    Args:
        data: Folder of the data set.
        title: Name of the complete data set.
        differences: One text for each difference; without any, nothing happens.
        allowed: Whether ``--allow-incomplete`` was given.
        consequence: Consequence of a sample for results, as ``: …``.
        findings: Other oddities, printed where the data set is refused.

    Raises:
        UserError: There are differences, and they are not allowed.
    """
    if differences and not allowed:
        told = [*differences, *findings_text(findings or {}).splitlines()]
        raise UserError(
            f"{data} is not the complete {title}:{first_lines(told)}\nFetch what is missing, or "
            f"use --allow-incomplete to take a sample{consequence}"
        )
    for text in _first(differences):
        warn(str(text))


def describe_counts(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """Return one text for each part whose number of images is not the official one."""
    return [
        f"{part} has {found[part]:,} images, the official one has {official[part]:,}"
        for part in found
        if found[part] != official[part]
    ]


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"WARNING: {text}", file=sys.stderr)


def decode_once(folder: Path, names: Sequence[str], workers: int = 0) -> dict[str, str]:
    """Decode the images that no earlier call has, and return the unreadable ones with the reason.

    The call may be interrupted, because ``decoded_<folder>.txt`` next to the folder lists each
    readable image at once. ``unreadable_<folder>.txt`` gets the others, which every call tries
    again.

    Args:
        folder: Folder that the names are relative to.
        names: The images.
        workers: Threads; all cores by default.
    """
    record = folder.with_name(f"decoded_{folder.name}.txt")
    record.touch()
    done = {unescape_name(line.decode()) for line in complete_lines(record)}
    pending = [name for name in names if name not in done]
    problems = (problem for _, problem in _problems([folder / n for n in pending], workers, None))
    bar = progress(problems, "decoding", "img", len(names), len(names) - len(pending))
    unreadable = {}
    with open(record, "a", encoding="utf-8") as notes:
        for name, problem in zip(pending, bar):
            if problem is None:
                notes.write(f"{escape_name(name)}\n")
            else:
                unreadable[name] = problem
    write_reasons(folder.with_name(f"unreadable_{folder.name}.txt"), unreadable)
    return unreadable


def complete_lines(record: Path) -> list[bytes]:
    """Return the lines of a record, and cut off the line that a killed run did not finish."""
    content = record.read_bytes()
    *lines, unfinished = content.split(b"\n")
    if unfinished:
        os.truncate(record, len(content) - len(unfinished))
    return lines


def write_reasons(path: Path, unreadable: Mapping[str, str]) -> None:
    """Write a line ``name<tab>reason`` for each image, with special characters escaped."""
    lines = (f"{escape_name(name)}\t{escape_name(reason)}\n" for name, reason in unreadable.items())
    write_text(path, "".join(lines))


def read_reasons(path: Path) -> dict[str, str]:
    """Read what :func:`write_reasons` wrote."""
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = (line.partition("\t") for line in lines if "\t" in line)
    return {unescape_name(name): unescape_name(reason) for name, _, reason in pairs}


def _problems(
    paths: Sequence[Path], workers: int, size: tuple[int, int] | None
) -> Iterator[tuple[Path, str | None]]:
    def problem(path: Path) -> str | None:
        try:
            image = load_rgb(str(path))
        except BadImageError as error:
            return " ".join(str(error).split())
        if size and image.size != size:
            return f"is {image.width}x{image.height}, not {size[0]}x{size[1]}"
        return None

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for start in range(0, len(paths), CHUNK):  # a pool holds all that it is given
            chunk = paths[start : start + CHUNK]
            yield from zip(chunk, pool.map(problem, chunk))


def refuse_damaged(
    paths: Sequence[Path], workers: int = 0, size: tuple[int, int] | None = None
) -> None:
    """Decode every image, with a progress bar, and refuse those that cannot be read.

    Args:
        paths: Image files.
        workers: Threads; all cores by default.
        size: Width and height that every image has to have, in pixels.

    Raises:
        UserError: Images are unreadable or of another size; the message names them.
    """
    problems = progress(_problems(paths, workers, size), "decoding", "img", len(paths))
    found = [f"{path}: {problem}" for path, problem in problems if problem is not None]
    if found:
        what = "cannot be read or have another size" if size else "cannot be read"
        raise UserError(
            f"{len(found)} of {len(paths)} images {what}; fetch them again:{first_lines(found)}"
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip or tar archive into a folder, with a progress bar, whole or not at all.

    Args:
        archive: ``.zip``, ``.tar``, ``.tar.gz`` and the like.
        target: Must not exist, or be empty.

    Raises:
        UserError: The archive does not exist, is damaged or reaches outside of the folder; or the
            folder has content.
    """
    if target.is_dir() and any(target.iterdir()):
        raise UserError(
            f"{target} has content already: leave --archive out, or choose another DATA"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(".tmp", f".{target.name}.", target.parent))
    try:
        if archive.suffix.lower() == ".rar":
            raise UserError(f"{archive} is a RAR archive: unpack it yourself (unrar x, 7z x)")
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, partial)
        elif archive.is_file() and tarfile.is_tarfile(archive):
            with tarfile.open(archive) as content:
                for member in progress(content, f"unpacking {archive.name}", "file"):
                    if not any(map(_is_foreign, member.name.split("/"))):
                        content.extract(member, partial, filter="data")
        else:
            raise UserError(f"{archive} is no zip or tar archive: was its download complete?")
        if target.is_dir():
            target.rmdir()
        os.replace(partial, target)
    except ARCHIVE_ERRORS as error:
        raise UserError(f"{archive} cannot be unpacked ({error}): fetch it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_zip(archive: Path, target: Path) -> None:
    r"""Extract a zip archive without system files; tools of Windows write ``\`` between folders."""
    with zipfile.ZipFile(archive) as content:
        for member in progress(content.infolist(), f"unpacking {archive.name}", "file"):
            member.filename = member.filename.replace("\\", "/")
            if any(map(_is_foreign, member.filename.split("/"))):
                continue
            try:
                content.extract(member, target)  # drops a leading / and .. from names
            except (RuntimeError, NotImplementedError) as error:  # a password, Deflate64
                raise UserError(
                    f"{archive} cannot be unpacked here ({error}). Unpack it yourself (7z x)."
                ) from None


def _is_foreign(part: str) -> bool:
    return part not in ("", ".", "..") and is_passed_over(part)


def unpack_into(data: Path, archives: Iterable[Path]) -> None:
    """Unpack each archive into a folder of its name in ``data``; existing folders do not change.

    Raises:
        UserError: An archive cannot be unpacked, or two of them have the same name.
    """
    targets: dict[Path, Path] = {}
    for archive in archives:
        target = data / archive.name.split(".")[0]
        if target in targets:
            raise UserError(
                f"{targets[target]} and {archive} would both be unpacked into {target}: rename one"
            )
        targets[target] = archive
    for target, archive in targets.items():
        if target.is_dir() and any(target.iterdir()):
            print(f"{target} is there already: {archive.name} is not unpacked again")
        else:
            unpack(archive, target)


def image_size(path: Path) -> tuple[int, int]:
    """Read width and height of an image from its header.

    Raises:
        UserError: The file is no image.
    """
    try:
        with unlimited_image_size(), Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Fetch it again.") from None


def next_pretraining(folder: Path, packed: str, options: Sequence[str], *listing: str) -> str:
    """Return what to run after the images of a pre-training were checked.

    Args:
        folder: Folder of the images.
        packed: Folder that packed images would go to.
        options: ``key=value`` for ``--cfg-options``.
        listing: Options of the packer that name the images.
    """
    pack = " ".join([f"{folder} {packed}", *listing, "--to lmdb"])
    return as_called(
        "next, to make the images smaller and one file of them (optional):\n"
        f"  gersp prepare pack {pack}\n"
        "next:\n"
        f"  gersp train configs/pretrain/gersp_r50.py --cfg-options {' '.join(options)}"
    )


def next_command(config: str, data: Path, folder: str, *options: str) -> str:
    """Return what to run after a data set was prepared.

    Args:
        config: Path of a downstream config.
        data: Folder of the data set.
        folder: The name that its configs look for below ``GERSP_DATA``.
        options: More ``key=value`` for ``--cfg-options``.
    """
    lines = []
    if data.resolve().name != folder:
        lines.append(f"ln -s {data.resolve()} data/{folder}   # where the configs look for it")
    elif data.resolve() != Path("data", folder).resolve():
        lines.append(f"export GERSP_DATA={data.resolve().parent}")
    overrides = " ".join(["pretrained=BACKBONE.pth", *options])
    lines.append(f"gersp train {config} --cfg-options {overrides}")
    return as_called("next:\n" + "\n".join(f"  {line}" for line in lines))
