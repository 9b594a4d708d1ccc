"""Look at a folder of images before a training; the command is gersp_mm/commands/check.py."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import os.path as osp
import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

from gersp_mm.augmentation.view import ViewAugmentation
from gersp_mm.datasets.scenes import Scenes
from gersp_mm.images import rasters
from gersp_mm.images.bands import is_raster
from gersp_mm.images.census import look_at
from gersp_mm.images.decode import BadImageError, load_pixels, load_rgb, unlimited_image_size
from gersp_mm.images.duplicates import same_files, second_copies
from gersp_mm.images.listing import IMAGE_EXTENSIONS, ImageList, find_images
from gersp_mm.images.packed import DATABASE, LISTING, is_local_file, open_file
from gersp_mm.images.pixels import PERCENTILES, PixelScale, Scale, is_nodata, suspect_nodata
from gersp_mm.images.scaling import find_scale, raster_source, sample, spread
from gersp_mm.preparation.common import write_reasons
from gersp_mm.utils.called import as_called
from gersp_mm.utils.console import progress, progress_bar, table
from gersp_mm.utils.errors import UserError, counted, listed
from gersp_mm.utils.files import escape_name, replacing, write_text
from gersp_mm.utils.randomness import preserved_rng_state, seed_everything

COMPARED = 50_000  # The bytes of at most this many files are compared.
WHOLE_PIXELS = 2**22  # A raster with more pixels is not decoded as a whole.
CELL = 256  # Side in pixels of the cells of a larger raster; every cell is read.
KEPT = 4096  # Pixels per file that count for the ranges of values.
SCENE_SIDE = 1024  # Pixels. Longer rasters are scenes, of which windows are read.
SCENES_DRAWN = 64  # The contact sheet uses at most this many scenes.
BARS = "▁▂▃▄▅▆▇█"
BINS = 32
SAME_GROUND = 1.05  # Ratio of ground scales that counts as equal.
PAIRS_A_ROW, VIEW_SIDE = 4, 160
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Found:
    """Content of one file.

    Attributes:
        path: The file.
        format: Name of its format.
        kind: Bands and number type in words, such as ``4 bands x uint16``.
        size: Width and height in pixels.
        pixel_size: Side of a pixel in metres, None where it is not known.
        crs: Reference system as text, empty where there is none.
        nodata: Declared or suspected value of no data, None where there is none.
        info: Header of a raster, None for a photograph.
        valid: Share of the pixels with data.
        values: Valid pixels, bands×N; at most :data:`KEPT` of them.
        empty: Why the file has no content; empty where it has.
        bad: Why the file cannot be read; empty where it can.
    """

    path: str
    format: str = ""
    kind: str = ""
    size: tuple[int, int] = (0, 0)
    pixel_size: float | None = None
    crs: str = ""
    nodata: float | None = None
    info: rasters.RasterInfo | None = None
    valid: float = 1.0
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    empty: str = ""
    bad: str = ""


# --------------------------------------------------------------------------------- what there is


def find_paths(source: Path) -> tuple[list[str], str]:
    """List the files of a source.

    Returns:
        Their paths, and the folder that the config names as ``data_root``.

    Raises:
        UserError: The source does not exist or holds no image.
    """
    if source.is_dir() and (source / DATABASE).is_dir():
        paths, root = ImageList.read(source / LISTING, source, False).paths, str(source)
    elif source.is_dir():
        paths, root = find_images(source, progress=True), str(source)
    elif source.is_file() and source.name.lower().endswith(IMAGE_EXTENSIONS):
        paths, root = [source.name], str(source.parent)
    elif source.is_file():
        paths, root = ImageList.read(source, source.parent, None).paths, str(source.parent)
    else:
        raise UserError(f"{source} does not exist. Give a folder, a list or a raster.")
    if not paths:
        raise UserError(f"{source} holds no image (looked for: {' '.join(IMAGE_EXTENSIONS)})")
    return [osp.join(root, path) for path in paths], root


def evenly(paths: Sequence[str], most: int) -> list[str]:
    """Return at most this many of the paths, spread evenly over them."""
    return [paths[number] for number in spread(len(paths), most)]


def look_into(path: str) -> Found:
    """Decode one file and return its content, or the reason why it cannot be read."""
    try:
        with open_file(path) as file:
            raster = is_raster(file)
        if raster or osp.splitext(path)[1].lower() in (".tif", ".tiff"):
            try:
                return _look_into_raster(path)
            except rasters.RasterError:
                if raster:
                    raise
        return _look_into_photograph(path)
    except OSError as error:  # BadImageError and RasterError are OSErrors.
        reason = error.strerror if error.errno else str(error)
        return Found(path, bad=" ".join(str(reason).split()))


def _look_into_photograph(path: str) -> Found:
    image = load_rgb(path)
    with open_file(path) as file:
        start = file.read(2**16)
    pixels = np.asarray(image).reshape(-1, 3)
    values = pixels[:: max(1, len(pixels) // KEPT)].T
    name, bands = _photograph_format(start)
    return Found(
        path, name, f"{bands} x uint8", image.size, values=values,
        empty="one colour" if len(image.getcolors(1) or ()) == 1 else "",
    )  # fmt: skip


def _photograph_format(start: bytes) -> tuple[str, str]:
    # A TIFF has its header at any place.
    with (
        contextlib.suppress(Exception),
        unlimited_image_size(),
        Image.open(io.BytesIO(start)) as image,
    ):
        count = len(image.getbands())
        return image.format or "?", "1 band" if count == 1 else f"{count} bands"
    return "TIFF", "3 bands"


def _look_into_raster(path: str) -> Found:
    with rasters.opened(raster_source(path)) as dataset:
        info, driver = rasters.describe(dataset), dataset.driver
        small = info.width * info.height <= WHOLE_PIXELS
        raster = rasters.read(dataset, info.bands) if small else sample(dataset, info, info.bands)
    nodata, share = info.nodata, float(raster.valid.mean())
    with_data = raster.values[:, raster.valid]
    if not small and is_local_file(path):
        scene = look_at(path, CELL)  # It looks at more places, and suspects a nodata value.
        nodata, share, with_data = scene.nodata, scene.valid_share, scene.values
    elif small and nodata is None and raster.valid.all():
        suspected = suspect_nodata(raster.values)
        if suspected == raster.values.min():
            nodata = suspected
            with_data = raster.values[:, ~is_nodata(raster.values, nodata)]
            share = with_data.shape[1] / raster.valid.size
    empty = "" if with_data.size else "no pixel has data"
    if not empty and (with_data == with_data[:, :1]).all():
        empty = "one value in each band"
    return Found(
        path, driver, info.kind, (info.width, info.height), info.pixel_size, info.crs, nodata,
        info, share, with_data[:, :: max(1, with_data.shape[1] // KEPT)], empty,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- report


def kind_lines(found: Sequence[Found]) -> str:
    """Return a table of the kinds of files: size, ground scale and share of data."""
    groups: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for one in found:
        groups[one.format, one.kind].append(one)
    rows = []
    for (name, kind), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        nodata = sorted({f"{one.nodata:g}" for one in group if one.nodata is not None})
        rows.append((
            f"{name}, {kind}", len(group), _range([one.size[0] for one in group], "d"),
            _range([one.size[1] for one in group], "d"),
            _range([one.pixel_size for one in group if one.pixel_size], ".3g") or "unknown",
            listed(nodata) if nodata else "none", f"{np.mean([one.valid for one in group]):.1%}",
        ))  # fmt: skip
    header = ["kind", "files", "width", "height", "m per pixel", "nodata", "with data"]
    return table(header, rows)


def _range(values: Sequence[Any], form: str) -> str:
    ends = list(dict.fromkeys(format(end(values), form) for end in (min, max))) if values else []
    return " to ".join(ends)


def value_lines(found: Sequence[Found]) -> str:
    """Return a table of the ranges of values of each kind and band, with histograms."""
    groups: dict[tuple[str, int], list[Found]] = defaultdict(list)
    for one in found:
        if not one.empty:  # Photographs of every kind are decoded to three rows.
            groups[one.kind, len(one.values)].append(one)
    rows = []
    for (kind, _), group in groups.items():
        values = np.concatenate([one.values for one in group], axis=1)
        names = next((one.info.names for one in group if one.info and any(one.info.names)), ())
        for number, band in enumerate(values, 1):
            low, middle, high = np.percentile(band, (PERCENTILES[0], 50, PERCENTILES[1]))
            name = names[number - 1] if number <= len(names) else ""
            ends = (band.min(), low, middle, high, band.max())
            words = (f"{end:.5g}" for end in ends)
            rows.append((f"{kind}, {number} {name}".rstrip(), *words, histogram(band, low, high)))
    points = (f"{point:g} %" for point in (PERCENTILES[0], 50, PERCENTILES[1]))
    return table(["band", "lowest", *points, "highest", "between these points"], rows)


def histogram(values: np.ndarray, low: float, high: float) -> str:
    """Return a line of :data:`BINS` bars for the values from ``low`` to ``high``."""
    if not high > low:
        return "one value"
    counts, _ = np.histogram(values.astype(np.float64), BINS, (low, high))
    levels = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)


def propose_bands(info: rasters.RasterInfo | None) -> tuple[int, ...] | None:
    """Return the bands for red, green and blue that a file names; None where no choice is needed.

    A file without named colours that has neither one nor three bands gets a guess: 4, 3, 2 for
    the 12 or 13 bands of Sentinel-2, else 3, 2, 1.
    """
    if info is None or len(info.bands) in (1, 3):
        return None
    names = [name.lower() for name in info.names]
    if all(colour in names for colour in COLOURS):
        return tuple(info.bands[names.index(colour)] for colour in COLOURS)
    if len(info.bands) == 2:
        return (info.bands[0],)
    return (4, 3, 2) if len(info.bands) in (12, 13) else (3, 2, 1)


@dataclass
class Proposal:
    """Lines for the config.

    Attributes:
        source: ``type`` and arguments of the source.
        remarks: Sentences about decisions that the user has to make.
    """

    source: dict[str, Any]
    remarks: list[str]

    @property
    def lines(self) -> str:
        """The config's lines."""
        args = ", ".join(f"{name}={value!r}" for name, value in self.source.items())
        return f"train_dataloader.dataset.remote_sensing = dict({args})"


def propose(
    found: Sequence[Found],
    root: str,
    source: Path,
    bands: Sequence[int | str] | None,
    scale: Scale,
    window: int | str | None,
) -> Proposal:
    """Return the lines for the config that suit the usable files."""
    remarks = []
    large = [one for one in found if one.info is not None and max(one.size) > SCENE_SIDE]
    as_scenes = window is not None or 2 * len(large) > len(found)
    named = "" if source.is_dir() else source.name
    if as_scenes:
        arguments: dict[str, Any] = dict(type="gersp_mm.Scenes", data_root=root)
        arguments |= dict(files=named) if named else {}
        arguments["window"] = window or _window([one.pixel_size for one in large or found])
        left = sum(one.info is None for one in found)
        if left:
            remarks.append(
                f"{left} photographs are not scenes. Train on them as a separate source."
            )
    else:
        arguments = dict(type="gersp_mm.MillionAID", data_root=root)
        arguments |= dict(ann_file=named) if named else {}
        if large:
            remarks.append(
                f"{len(large)} rasters have more than {SCENE_SIDE} px a side and would be decoded "
                f"whole for each sample. Cut them with {as_called('gersp prepare tiles')}."
            )
    chosen = tuple(bands) if bands else None
    if chosen is None:
        guesses = Counter(propose_bands(one.info) for one in found)
        chosen = guesses.most_common(1)[0][0]
        first = next(one for one in found if propose_bands(one.info) == chosen)
        if chosen is not None and first.info is not None and not any(first.info.names):
            remarks.append(
                f"No file says which band is which: bands={chosen} is a guess. Look at the contact "
                "sheet, and give --bands."
            )
        if others := len(found) - guesses[chosen]:
            remarks.append(
                f"{others} of {len(found)} files need other bands than the rest. Make a folder of "
                "each kind, so that no file is left out."
            )
    if chosen is not None:
        arguments["bands"] = chosen
    if scale != PixelScale().scale:
        arguments["scale"] = scale
    if any(not one.kind.endswith("uint8") for one in found):
        remarks.append(
            "Views of such images: ViewAugmentation(preset='overhead') is made for them."
        )
    return Proposal(arguments, remarks)


def _window(grounds: Sequence[float | None]) -> int | str:
    known = [ground for ground in grounds if ground]
    if len(known) == len(grounds) and max(known) > SAME_GROUND * min(known):
        return f"{round(512 * float(np.median(known)))} m"
    return 512


# ----------------------------------------------------------------------------------- contact sheet


def draw_pairs(
    proposal: Proposal, found: Sequence[Found], rows: int, preset: str, out: Path
) -> PixelScale:
    """Draw pairs of views as the model will see them, and return the pixel scale.

    Raises:
        UserError: No pair can be drawn.
    """
    view = ViewAugmentation(preset=preset, size=VIEW_SIDE, colour="workers")
    load, count, scale = _loader(proposal, found)
    pairs: list[torch.Tensor] = []
    reason = ""
    with preserved_rng_state(), progress_bar("drawing pairs", "pair", rows * PAIRS_A_ROW) as bar:
        for number in np.random.default_rng(0).permutation(count):
            seed_everything(0, int(number), cpu_only=True)
            try:
                image = load(int(number))
            except BadImageError as error:
                reason = str(error)
                continue
            views = [view(dict(img=image))["img"] for _ in range(2)]
            pairs.append(torch.cat(views, dim=2))
            bar.advance()
            if len(pairs) == rows * PAIRS_A_ROW:
                break
    if not pairs:
        raise UserError(f"no pair can be drawn: {reason}")
    grid = make_grid(pairs, nrow=PAIRS_A_ROW, padding=6, pad_value=255)
    with replacing(out) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary, "PNG")
    return scale


def _loader(
    proposal: Proposal, found: Sequence[Found]
) -> tuple[Callable[[int], torch.Tensor], int, PixelScale]:
    """Return a function that loads an image by its number, their count, and the pixel scale."""
    options = {key: value for key, value in proposal.source.items() if key in ("bands", "scale")}
    if proposal.source["type"] == "gersp_mm.Scenes":
        paths = [one.path for one in found if one.info is not None]
        chosen = evenly(paths, SCENES_DRAWN)
        scenes = Scenes("", chosen, window=proposal.source["window"], **options)
        scale = scenes.pixel_scale
        return (
            lambda number: scenes.read_window(scenes.get_data_info(number))["img"],
            len(scenes),
            scale,
        )
    paths = [one.path for one in found]
    asked = PixelScale(options.get("scale", "percentile"), options.get("bands"))
    scale = find_scale("this source", len(paths), paths.__getitem__, asked)
    return lambda number: load_pixels(paths[number], scale=scale), len(paths), scale


# ---------------------------------------------------------------------------------------- command


def check(
    source: Path,
    out: Path,
    bands: Sequence[int | str] | None = None,
    scale: Scale = "percentile",
    window: int | str | None = None,
    sampled: int = 1000,
    rows: int = 6,
    preset: str = "overhead",
    workers: int = 1,
) -> str:
    """Look at a source of images, write the files of OUT, and return the report.

    Args:
        source: Folder, list or raster.
        out: Folder to write to.
        bands: See :class:`gersp_mm.images.pixels.PixelScale`; None proposes some.
        scale: See :class:`gersp_mm.images.pixels.PixelScale`.
        window: See :class:`gersp_mm.Scenes`; None decides by the size of the files.
        sampled: Number of files whose pixels are decoded.
        rows: Rows of the contact sheet.
        preset: See :class:`gersp_mm.ViewAugmentation`.
        workers: Threads.

    Raises:
        UserError: There is no image, or none can be used.
    """
    PixelScale(scale, bands)  # type: ignore[arg-type] # refuses invalid values
    paths, root = find_paths(source)
    chosen = evenly(paths, sampled)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        looked = list(progress(pool.map(look_into, chosen), "decoding", "img", len(chosen)))
    bad = {one.path: one.bad for one in looked if one.bad}
    empty = {one.path: one.empty for one in looked if one.empty}
    found = [one for one in looked if not one.bad]
    compared = evenly(paths, COMPARED)
    groups = same_files(compared)
    same = {path: first for first, *others in groups for path in others}
    write_reasons(out / "bad_images.txt", bad)
    write_reasons(out / "empty.txt", empty)
    write_reasons(out / "duplicates.txt", same)
    usable = [one for one in found if not one.empty]
    if not usable:
        path, reason = next(iter({**bad, **empty}.items()))
        raise UserError(
            f"None of {len(looked):,} examined files in {source} can be used, such as "
            f"{escape_name(path)}: {reason}. See {out}."
        )
    endings = Counter(osp.splitext(path)[1].lower() for path in paths)
    said = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common())
    share = "all of them" if len(chosen) == len(paths) else "an even sample"
    report = [
        f"{counted(len(paths), 'file')} in {source}: {said}",
        f"The pixels of {counted(len(chosen), 'file')} were examined, {share}.",
        "",
        kind_lines(found),
        "",
        value_lines(found),
        "",
        _finding("cannot be read", bad, len(chosen)),
        _finding("have no content", empty, len(chosen)),
        _finding("have the bytes of another file", same, len(compared)),
    ]
    if copies := second_copies(paths):
        report.append(f"{len(copies):,} files have another's name with another ending: "
                      f"{escape_name(copies[0][1])} and {escape_name(copies[0][0])}")  # fmt: skip
    report += ["", "In the config:", ""]
    proposal = propose(usable, root, source, bands, scale, window)
    report += [f"  {proposal.lines}", "", *proposal.remarks]
    try:
        used = draw_pairs(proposal, usable, rows, preset, out / "contact_sheet.png")
        report += [f"Pixel scale: {line}" for line in used.describe()]
    except UserError as error:  # The rest of the report says what to do about it.
        report.append(f"No contact sheet can be drawn: {error}")
    text = "\n".join(report)
    write_text(out / "report.txt", text + "\n")
    return text


def _finding(what: str, reasons: dict[str, str], looked_at: int) -> str:
    text = f"{len(reasons):,} of {looked_at:,} files {what}"
    if not reasons:
        return text
    shown = [f"{escape_name(osp.basename(path))}: {why}" for path, why in reasons.items()]
    return (
        f"{text}:\n"
        + "\n".join(f"  {line}" for line in shown[:5])
        + (f"\n  and {len(shown) - 5:,} more" if len(shown) > 5 else "")
    )


def run(args: argparse.Namespace) -> None:
    """Look at a folder of images and say what to write in the config."""
    if args.sample < 1 or args.rows < 1:
        raise UserError(
            f"--sample {args.sample} or --rows {args.rows} is out of range. Use at least 1."
        )
    out = args.out or Path("work_dirs", "check", args.source.resolve().stem)
    window = args.window
    if window is not None and window.strip().isdecimal():
        window = int(window)
    with warnings.catch_warnings():  # Here, because the filters are shared by all threads.
        warnings.simplefilter("ignore")  # Unusual metadata do not matter.
        text = check(
            args.source, out, args.bands, args.scale, window, args.sample, args.rows, args.preset,
            args.workers,
        )  # fmt: skip
    print(f"{text}\n\nwrote {shlex.quote(os.fspath(out))}: report.txt, contact_sheet.png, lists")
