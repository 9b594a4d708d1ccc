#!/usr/bin/env python3
"""Fetch and cut the demo images, or list the images of your own folders in the same layout.

The demo images come from two MIT-licensed wheels of the Python package index: airborne scenes of
`deepforest` and natural photographs of `foolbox`. The wheels are read as archives: they are
verified by sha256, pictures and annotations are extracted, and none of their code is imported or
run. demo/README.md describes the pictures and how they are cut.

Everything is built in a temporary folder next to OUT and moved into place at the end, so an
interrupted run leaves nothing half-written. Needs Pillow and NumPy.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

MANIFEST = "manifest.json"
LAYOUT_VERSION = 1
JPEG = dict(quality=95, subsampling=0)
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".jp2", ".nc",
)  # fmt: skip
# The same values as in gersp_mm.images.listing, without importing it; a test compares them.
SYSTEM_NAMES = frozenset({
    "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "__macosx", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "recycler", "recycled",
    "system volume information", "__pycache__",
})  # fmt: skip
KINDS = dict(remote_sensing="remote sensing, unlabelled", natural="natural, labelled")
OWN_FOLDERS = (
    "or use images of your own: --remote-sensing DIR --natural DIR (the natural ones in one "
    "sub-folder per class)"
)


class DemoError(RuntimeError):
    """An error that the user can fix; its message is one line."""


class Wheel(NamedTuple):
    """A wheel that is used as an archive of pictures."""

    name: str
    version: str
    sha256: str


class Area(NamedTuple):
    """A rectangle of one scene, in pixels; the right and lower ends are not part of it."""

    scene: str
    site: str
    part: str
    left: int
    top: int
    right: int
    bottom: int


class Cut(NamedTuple):
    """How tiles are cut out of an area."""

    side: int
    stride: int
    limit: int | None = None


DEEPFOREST = Wheel(
    "deepforest", "2.1.0", "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
)
FOOLBOX = Wheel(
    "foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
)

SCENES = {
    "YELL_528": "deepforest/data/2019_YELL_2_528000_4978000_image_crop2.png",
    "YELL_541": "deepforest/data/2019_YELL_2_541000_4977000_image_crop.png",
    "OSBS_029": "deepforest/data/OSBS_029.png",
    "SOAP_031": "deepforest/data/SOAP_031.png",
    "SOAP_061": "deepforest/data/SOAP_061.png",
}
# Train areas end at least one tile (64 px, 6.4 m) before the test area of the same scene begins.
AREAS = (
    Area("YELL_528", "YELL_528", "train", 0, 0, 1400, 2472),
    Area("YELL_528", "YELL_528", "test", 1500, 0, 2299, 2472),
    Area("YELL_541", "YELL_541", "train", 0, 0, 760, 1035),
    Area("YELL_541", "YELL_541", "test", 860, 0, 1249, 1035),
    Area("OSBS_029", "OSBS_029", "train", 0, 0, 208, 400),
    Area("OSBS_029", "OSBS_029", "test", 272, 0, 400, 400),
    Area("SOAP_031", "SOAP_031", "train", 0, 0, 208, 400),
    Area("SOAP_031", "SOAP_031", "test", 272, 0, 400, 400),
    Area("SOAP_061", "SOAP_061", "train", 0, 0, 208, 400),
    Area("SOAP_061", "SOAP_061", "test", 272, 0, 400, 400),
)
# Unlabelled tiles for pre-training, cut only from the train areas: more densely in small scenes,
# but never with most of a tile in the next tile, because contrastive learning separates them.
PRETRAIN_CUTS = {
    "YELL_528": Cut(64, 48),
    "YELL_541": Cut(64, 40),
    "OSBS_029": Cut(64, 32),
    "SOAP_031": Cut(64, 32),
    "SOAP_061": Cut(64, 32),
}
SITE_CUT = Cut(64, 16, limit=100)
SEED = 0
TRAIN_LIMIT, TEST_LIMIT = 2000, 1000  # images of the evaluation on own classes

IMAGENET_NAME = re.compile(r"foolbox/data/(imagenet_\d+_(\d+)\.jpg)")


def fetch_wheel(wheel: Wheel, folder: Path, wheels: Path | None = None) -> Path:
    """Get one wheel into ``folder`` and verify it.

    Args:
        wheel: Name, exact version and sha256.
        folder: Folder for the downloads of ``pip``.
        wheels: A folder that holds the wheel already; in that case nothing is downloaded.

    Returns:
        Path of the verified file.

    Raises:
        DemoError: The wheel cannot be downloaded or found, or its sha256 differs.
    """
    pinned = f"{wheel.name}=={wheel.version}"
    pattern = f"{wheel.name}-{wheel.version}-*.whl"
    if wheels is None:
        print(f"fetching {pinned} from the package index (as an archive, nothing is installed) ...")
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
            "--ignore-requires-python", "--disable-pip-version-check",
            "--dest", str(folder), pinned,
        ]  # fmt: skip
        watched = None if sys.stdout.isatty() else subprocess.DEVNULL  # pip's progress bar
        done = subprocess.run(command, stdout=watched, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "?")
            raise DemoError(
                f"cannot download {pinned} from the Python package index ({reason[:200]}): check "
                f"the network or pip's index settings, {OWN_FOLDERS}"
            )
    else:
        folder = wheels
    found = sorted(folder.glob(pattern))
    if not found:
        raise DemoError(f"there is no {pattern} in {folder}")
    actual = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if actual != wheel.sha256:
        raise DemoError(
            f"{found[0].name} has sha256 {actual} instead of {wheel.sha256}: it is not the "
            f"published {pinned}, so nothing is taken from it; check the package index or mirror "
            f"that pip uses, {OWN_FOLDERS}"
        )
    return found[0]


def _read(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        return archive.read(member)
    except KeyError:
        raise DemoError(f"{archive.filename} holds no {member}") from None


def _licences(archive: zipfile.ZipFile, wheel: Wheel, out: Path) -> None:
    """Keep the licence text next to the pictures, as the MIT licence asks."""
    texts = [n for n in archive.namelist() if PurePosixPath(n).name.upper().startswith("LICENSE")]
    for name in texts:
        _write(out / "licenses" / f"{wheel.name}-{PurePosixPath(name).name}", archive.read(name))


def tile_corners(area: Area, cut: Cut) -> list[tuple[int, int]]:
    """Return the (x, y) of the upper left corners of an area's tiles, row by row.

    All tiles lie completely inside the area. With a limit, this number of tiles is drawn at random,
    the same tiles every time.
    """
    rows = range(area.top, area.bottom - cut.side + 1, cut.stride)
    columns = range(area.left, area.right - cut.side + 1, cut.stride)
    corners = [(x, y) for y in rows for x in columns]
    if cut.limit is not None and len(corners) > cut.limit:
        rng = random.Random(f"{SEED} {area.scene} {area.part}")
        corners = sorted(rng.sample(corners, cut.limit), key=lambda corner: corner[::-1])
    return corners


def _save_tiles(
    scene: np.ndarray, area: Area, cut: Cut, out: Path, folder: str
) -> Iterator[dict[str, Any]]:
    (out / folder).mkdir(parents=True, exist_ok=True)
    for x, y in tile_corners(area, cut):
        path = f"{folder}/{area.scene}_x{x:04d}_y{y:04d}.jpg"
        tile = Image.fromarray(scene[y : y + cut.side, x : x + cut.side])
        tile.save(out / path, **JPEG)
        yield dict(path=path, scene=area.scene, x=x, y=y, side=cut.side)


def cut_scenes(archive: zipfile.ZipFile, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Cut all tiles and copy the annotated scenes.

    Args:
        archive: The deepforest wheel.
        out: The folder to build.

    Returns:
        The tiles of ``'pretrain'``, ``'train'`` and ``'test'``, each with its path, scene,
        corner and side in pixels; those of the sites also with ``label`` and ``site``.
    """
    tiles: dict[str, list[dict[str, Any]]] = dict(pretrain=[], train=[], test=[])
    sites = site_names()
    for number, (name, member) in enumerate(SCENES.items(), 1):
        content = _read(archive, member)
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        for area in (area for area in AREAS if area.scene == name):
            if area.right > width or area.bottom > height:
                raise DemoError(f"{member} is {width}x{height} px, too small for {area}")
            if area.part == "train":
                cut = PRETRAIN_CUTS[name]
                tiles["pretrain"] += _save_tiles(pixels, area, cut, out, f"remote_sensing/{name}")
            for tile in _save_tiles(pixels, area, SITE_CUT, out, f"sites/{area.part}/{area.site}"):
                tiles[area.part].append(
                    {**tile, "label": sites.index(area.site), "site": area.site}
                )
        boxes = f"{member.rsplit('.', 1)[0]}.xml"
        if boxes in archive.namelist():
            _write(out / f"scenes/images/{name}.png", content)
            text = archive.read(boxes).decode()
            text = re.sub(r"<filename>[^<]*<", f"<filename>{name}.png<", text, count=1)
            _write(out / f"scenes/annotations/{name}.xml", text.encode())
        count = sum(map(len, tiles.values()))
        print(f"  scene {number} of {len(SCENES)}: {name}, {width}x{height} px; {count} tiles")
    return tiles


def site_names() -> list[str]:
    """Return the classes of the site recognition, in the order of their labels."""
    return sorted({area.site for area in AREAS})


def copy_photographs(archive: zipfile.ZipFile, out: Path) -> list[tuple[str, int]]:
    """Copy foolbox's ImageNet photographs to ``natural/<class index>/``.

    Returns:
        (path relative to ``out``, ImageNet class index 0 to 999), sorted by path.
    """
    listed = []
    for member in archive.namelist():
        match = IMAGENET_NAME.fullmatch(member)
        if match:
            path = f"natural/{int(match[2]):04d}/{match[1]}"
            _write(out / path, archive.read(member))
            listed.append((path, int(match[2])))
    if not listed:
        raise DemoError(f"{archive.filename} holds no foolbox/data/imagenet_NN_CLASS.jpg")
    return sorted(listed)


def is_passed_over(name: str) -> bool:
    """Return whether a file or folder with this name is hidden or belongs to the system."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def find_images(folder: Path, option: str) -> list[Path]:
    """List the image files in a folder and its sub-folders, sorted, as absolute paths.

    Hidden and system files and folders are skipped. Links to folders are followed, each once.

    Raises:
        DemoError: The folder does not exist or holds no image; the message names the option.
    """
    if not folder.is_dir():
        raise DemoError(f"{option} {folder}: there is no such folder")
    root = os.path.realpath(folder)
    paths: list[Path] = []
    seen: set[str] = set()
    pending = [root]
    while pending:  # Links come after the folders to which they may lead.
        for parent, folders, names in os.walk(pending.pop(0)):
            real = os.path.realpath(parent)
            above = real != root and f"{root}/".startswith(real.rstrip("/") + "/")
            if real in seen or above:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not is_passed_over(name)]
            inside = (os.path.join(parent, name) for name in folders)
            pending += sorted(path for path in inside if os.path.islink(path))
            images = (name for name in names if name.lower().endswith(IMAGE_EXTENSIONS))
            paths += [Path(parent, name) for name in images if not is_passed_over(name)]
    if not paths:
        endings = " ".join(IMAGE_EXTENSIONS)
        raise DemoError(f"{option} {folder}: no image in it (looked for {endings})")
    return sorted(paths)


def by_class(images: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Group images by the first folder below ``folder``, sorted by name; others are left out."""
    classes: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        parts = path.relative_to(folder.resolve()).parts
        if len(parts) > 1:
            classes[parts[0]].append(path)
    return dict(sorted(classes.items()))


def split_classes(
    classes: dict[str, list[Path]],
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Split every class at random, 70 % to 30 %, the same way every time.

    Args:
        classes: The images of every class; classes with fewer than two images are left out.

    Returns:
        At most :data:`TRAIN_LIMIT` training and :data:`TEST_LIMIT` test images as (path, label),
        but at least one per class.
    """
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, (name, images) in enumerate(classes.items()):
        shuffled = random.Random(f"{SEED} {name}").sample(images, len(images))
        cut = max(1, round(0.3 * len(images)))
        test += [(str(p), label) for p in shuffled[:cut][: max(1, TEST_LIMIT // len(classes))]]
        train += [(str(p), label) for p in shuffled[cut:][: max(1, TRAIN_LIMIT // len(classes))]]
    return train, test


def prepare(
    out: Path,
    remote_sensing: Path | None = None,
    natural: Path | None = None,
    wheels: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Make the folder, unless it is complete already.

    Args:
        out: The folder to make; an existing folder is replaced only if this tool made it.
        remote_sensing: Folder of own remote-sensing images, which replace the demo's.
        natural: Folder of own natural images with one sub-folder per class.
        wheels: Folder of wheels that were downloaded before.
        force: Whether to make a complete folder again.

    Returns:
        The manifest, as in ``<out>/manifest.json``.

    Raises:
        DemoError: An input is missing or wrong, or ``out`` belongs to another tool.
    """
    request = dict(
        remote_sensing=str(remote_sensing.resolve()) if remote_sensing else None,
        natural=str(natural.resolve()) if natural else None,
    )
    known = read_manifest(out)
    # Own folders may have changed, so they are listed again every time.
    if known and known["request"] == request and not force and not any(request.values()):
        broken = check_files(out, known)
        if not broken:
            return known
        print(f"{out / broken[0]} is missing or damaged ({len(broken)} such files): starting anew")
    if out.exists() and known is None and any(out.iterdir()):
        raise DemoError(
            f"{out} exists and was not made by this tool (it has no {MANIFEST} of it): choose "
            "another folder with --out, or remove it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
    try:
        os.chmod(building, 0o755)
        manifest = _build(building, remote_sensing, natural, wheels)
        manifest["request"] = request
        files = (path for path in building.rglob("*") if path.is_file())
        manifest["files"] = {
            path.relative_to(building).as_posix(): path.stat().st_size for path in sorted(files)
        }
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        old = building.with_name(building.name + "-old")
        if out.exists():
            os.replace(out, old)
        os.replace(building, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _build(
    out: Path, remote_sensing: Path | None, natural: Path | None, wheels: Path | None
) -> dict[str, Any]:
    """Fill the folder ``out``; return the manifest without its list of files."""
    manifest: dict[str, Any] = dict(layout=LAYOUT_VERSION, sources={}, tiles={}, evaluation=None)
    if remote_sensing is not None:
        images = find_images(remote_sensing, "--remote-sensing")
    if natural is not None:
        photographs = find_images(natural, "--natural")
        classes = by_class(photographs, natural)
        if not classes:
            raise DemoError(
                f"--natural {natural}: its images are not in sub-folders, so they have no labels; "
                "put them into one sub-folder per class"
            )
    with tempfile.TemporaryDirectory(prefix="gersp_demo_") as downloads:
        needed = [w for w, own in ((DEEPFOREST, remote_sensing), (FOOLBOX, natural)) if own is None]
        archives = {w.name: fetch_wheel(w, Path(downloads), wheels) for w in needed}
        for wheel in needed:
            manifest["sources"][wheel.name] = wheel._asdict()
            with zipfile.ZipFile(archives[wheel.name]) as archive:
                _licences(archive, wheel, out)

        if remote_sensing is None:
            with zipfile.ZipFile(archives[DEEPFOREST.name]) as archive:
                tiles = cut_scenes(archive, out)
            manifest["tiles"] = tiles
            rs_lines = [tile["path"] for tile in tiles["pretrain"]]
            train, test = ([(t["path"], t["label"]) for t in tiles[p]] for p in ("train", "test"))
            manifest["evaluation"] = dict(
                what="site recognition; test tiles come from another part of the same images",
                classes=site_names(),
            )
        else:
            rs_lines = list(map(str, images))
            labelled = {k: v for k, v in by_class(images, remote_sensing).items() if len(v) > 1}
            train, test = split_classes(labelled) if len(labelled) > 1 else ([], [])
            if train:
                manifest["evaluation"] = dict(
                    what="sub-folders as classes, random 70/30 split; pre-training sees all of "
                    "these images, without labels",
                    classes=list(labelled),
                )

        if natural is None:
            with zipfile.ZipFile(archives[FOOLBOX.name]) as archive:
                natural_lines = copy_photographs(archive, out)
            manifest["natural_classes"] = None  # labels are ImageNet's class indices
        else:
            natural_lines = [
                (str(path), label) for label, paths in enumerate(classes.values()) for path in paths
            ]
            manifest["natural_classes"] = list(classes)

    _write_lines(out / "remote_sensing.txt", rs_lines)
    _write_lines(out / "natural.txt", (f"{path} {label}" for path, label in natural_lines))
    if train:
        _write_lines(out / "sites_train.txt", (f"{path} {label}" for path, label in train))
        _write_lines(out / "sites_test.txt", (f"{path} {label}" for path, label in test))
    manifest["counts"] = dict(
        remote_sensing=len(rs_lines), natural=len(natural_lines), train=len(train), test=len(test)
    )
    return manifest


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that this tool made, or None.

    A manifest of another layout version is returned without its request, so that the folder is
    made again.
    """
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or "layout" not in manifest:
        return None
    return manifest if manifest["layout"] == LAYOUT_VERSION else {**manifest, "request": None}


def check_files(out: Path, manifest: dict[str, Any]) -> list[str]:
    """Return the files that are missing or have another size than when they were written."""
    broken = []
    for name, size in manifest["files"].items():
        try:
            fine = (out / name).stat().st_size == size
        except OSError:
            fine = False
        if not fine:
            broken.append(name)
    return broken


def count_table(out: Path, manifest: dict[str, Any]) -> str:
    """Return a small table of the images and the lists that hold them."""
    counts = manifest["counts"]
    rows = [("images", "number", "listed in")]
    for kind in ("remote_sensing", "natural"):
        rows.append((KINDS[kind], str(counts[kind]), str(out / f"{kind}.txt")))
    for part in ("train", "test"):
        if counts[part]:
            rows.append((f"evaluation, {part}", str(counts[part]), str(out / f"sites_{part}.txt")))
    for part in ("train", "test"):
        per_site: dict[str, int] = defaultdict(int)
        for tile in manifest["tiles"].get(part, []):
            per_site[tile["site"]] += 1
        for site, number in sorted(per_site.items()):
            rows.append((f"  {part}, {site}", str(number), str(out / "sites" / part / site)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def _remove_leftovers(out: Path) -> None:
    """Remove folders that killed runs left next to ``out`` at least an hour ago."""
    for leftover in out.parent.glob(f".{out.name}.building-*"):
        if time.time() - leftover.stat().st_mtime > 3600:
            shutil.rmtree(leftover, ignore_errors=True)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python demo/prepare_demo.py
  python demo/prepare_demo.py --out /data/gersp_demo
  python demo/prepare_demo.py --out data/own --remote-sensing my/tiles --natural my/photographs
  python demo/prepare_demo.py --wheels downloads      # without a network

own images: they are listed where they are, not copied. Natural images need one sub-folder per
class (labels follow the sorted names). If the remote-sensing folder has two or more sub-folders,
these are taken as classes for the evaluation; otherwise there is no evaluation.""",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/demo"), help="default: data/demo")
    add("--remote-sensing", type=Path, metavar="DIR", help="own remote-sensing images")
    add("--natural", type=Path, metavar="DIR", help="own natural images, in classes")
    add("--wheels", type=Path, metavar="DIR", help="take the two wheels from here")
    add("--force", action="store_true", help="make the folder again")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    args = parse_args(argv)
    for name in ("out", "remote_sensing", "natural", "wheels"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).expanduser())
    started = time.time()
    try:
        manifest = prepare(args.out, args.remote_sensing, args.natural, args.wheels, args.force)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is left half-written, run it again", file=sys.stderr)
        return 130
    print(count_table(args.out, manifest))
    if manifest["evaluation"] is None:
        print("no evaluation set: --remote-sensing has no two sub-folders (classes) of two images")
    print(f"ready in {args.out} ({time.time() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
