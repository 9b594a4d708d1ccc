"""The changes that entries of ``faults.yml`` make to the copy of the data and of the healthy run.

Each function takes the folder of a case, which holds ``data/`` and ``run/``, and the arguments of
its entry. Paths are relative to that folder.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import picture, save, write_odd
from PIL import Image


def _scan_start(content: bytes) -> int:
    """Return the start of the compressed pixels of a JPEG."""
    at = 2
    while True:
        marker, length = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])[0]
        at += 2 + length
        if marker == 0xDA:
            return at


def damage_jpegs(case: Path, folder: str, count: int, how: str) -> None:
    """Damage the first ``count`` JPEGs: zero the middle, cut the end, or claim 65,000 x 65,000."""
    for path in sorted((case / folder).rglob("*.jpg"))[:count]:
        content = bytearray(path.read_bytes())
        start = _scan_start(content)
        size = len(content) - start
        if how == "zeroed":
            first, last = start + size * 35 // 100, start + size * 65 // 100
            content[first:last] = bytes(last - first)
        elif how == "truncated":
            del content[start + size // 2 :]
        else:
            at = next(i for i in range(2, start) if content[i : i + 2] == b"\xff\xc0")
            content[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
        path.write_bytes(content)


def add_system_folders(case: Path, folder: str) -> None:
    """Add the files that notebooks, desktops, network drives and archives create in folders."""
    inside = ".ipynb_checkpoints", ".Trash-1000/files", "@eaDir/scene.jpg", "__MACOSX"
    for number, name in enumerate(inside):
        save(picture(70 + number), case / folder / name / "copy.jpg")
    (case / folder / "._scene_00.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")


def make_16_bit(case: Path, folder: str, bits: int) -> None:
    """Replace the JPEGs of a folder by PNGs of 16 bits that use only the lower ``bits``."""
    rng = np.random.default_rng(0)
    for path in sorted((case / folder).glob("*.jpg")):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) << (bits - 8)
        grey |= rng.integers(0, 1 << (bits - 8), grey.shape, np.uint16)  # use all bits
        save(Image.fromarray(grey), path.with_suffix(".png"))
        path.unlink()


def repeat_one(case: Path, folder: str) -> None:
    """Give all images of a folder the content of an image of one colour."""
    for path in (case / folder).glob("*.jpg"):
        save(Image.new("RGB", (64, 64), (90, 110, 60)), path)


def list_images(case: Path, folder: str, file: str, encoding: str, ends: str = "\n") -> None:
    """Write a list of the images of a folder in an encoding, with these line ends."""
    names = sorted(p.relative_to(case / folder).as_posix() for p in (case / folder).rglob("*.jpg"))
    (case / file).write_bytes("".join(f"{name}{ends}" for name in names).encode(encoding))


def list_classes(case: Path, folder: str, file: str, first_label: int) -> None:
    """Write a list of class folders whose labels start at a number."""
    lines = []
    classes = sorted(path.name for path in (case / folder).iterdir() if path.is_dir())
    for label, name in enumerate(classes, first_label):
        for path in sorted((case / folder / name).glob("*.jpg")):
            lines.append(f"{name}/{path.name} {label}\n")
    (case / file).write_text("".join(lines))


def shift_labels(case: Path, file: str, by: int) -> None:
    """Add a number to all labels of a list."""
    lines = [line.rsplit(" ", 1) for line in (case / file).read_text().splitlines()]
    (case / file).write_text("".join(f"{name} {int(label) + by}\n" for name, label in lines))


def remove(case: Path, path: str) -> None:
    """Delete a file or folder."""
    shutil.rmtree(case / path) if (case / path).is_dir() else (case / path).unlink()


def move(case: Path, source: str, target: str) -> None:
    """Move a file or folder."""
    (case / target).parent.mkdir(parents=True, exist_ok=True)
    (case / source).rename(case / target)


def copy(case: Path, source: str, target: str) -> None:
    """Copy a file, or add the content of a folder to another folder."""
    if (case / source).is_dir():
        shutil.copytree(case / source, case / target, dirs_exist_ok=True)
    else:
        (case / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(case / source, case / target)


def change_bytes(case: Path, file: str, count: int) -> None:
    """Invert bytes in the middle of a file."""
    content = bytearray((case / file).read_bytes())
    middle = len(content) // 2
    content[middle : middle + count] = bytes(255 - b for b in content[middle : middle + count])
    (case / file).write_bytes(content)


def edit_checkpoint(
    case: Path,
    file: str,
    drop: str | None = None,
    prefix: tuple[str, str] | None = None,
    nan: str | None = None,
) -> None:
    """Change the tensors of a checkpoint that the benchmark itself has written.

    Args:
        case: Folder of the case.
        file: The checkpoint.
        drop: Start of the names of tensors that are removed.
        prefix: Start of names, and its replacement.
        nan: Name of a tensor in which a value becomes NaN.
    """
    from gersp_mm.checkpoints.read import read_checkpoint

    content = dict(read_checkpoint(case / file).data)
    state = content["state_dict"]
    if nan:
        state[nan].flatten()[0] = float("nan")
    if drop:
        state = {name: t for name, t in state.items() if not name.startswith(drop)}
    if prefix:
        old, new = prefix
        state = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in state.items()}
    content["state_dict"] = state
    content.get("meta", {}).pop("weights_sha256", None)  # The hash must not be the difference.
    torch.save(content, case / file)


def swap_times(case: Path, older: str, newer: str) -> None:
    """Make the newer of two files look older, as copying in another order does."""
    os.utime(case / newer, (1_600_000_000, 1_600_000_000))
    os.utime(case / older, (1_700_000_000, 1_700_000_000))
    (case / older).parent.joinpath("last_checkpoint").unlink(missing_ok=True)


def coco_classes(case: Path, folder: str) -> None:
    """Write DIOR's COCO files with the classes in another order, as another converter does."""
    from gersp_mm.datasets.dior import DIOR_CLASSES
    from gersp_mm.datasets.dota import coco_text

    (case / folder).mkdir(parents=True, exist_ok=True)
    for part in ("trainval", "test"):
        text = coco_text([*DIOR_CLASSES[1:], DIOR_CLASSES[0]], [])
        (case / folder / f"{part}.json").write_text(text)


def write_dota(case: Path, folder: str, lines: list[str], same: bool = False) -> None:
    """Write a DOTA with one image in train and one image in val.

    Args:
        case: Folder of the case.
        folder: Folder of the data set.
        lines: Labels of the train image.
        same: Whether val holds the image of train.
    """
    for part, seed in (("train", 1), ("val", 2)):
        name = "P0001" if same else f"P000{seed}"
        save(picture(seed, 128), case / folder / part / "images" / f"{name}.png")
        text = "\n".join(lines if part == "train" else ["20 20 60 20 60 60 20 60 plane 0"])
        (case / folder / part / "labelTxt").mkdir(parents=True)
        (case / folder / part / "labelTxt" / f"{name}.txt").write_text(f"{text}\n")


def write_loveda(case: Path, folder: str, shift: int) -> None:
    """Write a LoveDA with one pair for each area, and labels shifted by ``shift``."""
    for number, part in enumerate(("Train", "Val")):
        for area in ("Rural", "Urban"):
            top = case / folder / part / area
            name = f"{2 * number + (area == 'Urban')}.png"
            save(picture(number, 64), top / "images_png" / name)
            mask = np.tile(np.repeat(np.arange(1, 9).clip(1, 7), 8), (64, 1))
            save(Image.fromarray((mask + shift).astype(np.uint8)), top / "masks_png" / name)


def write_ucmerced(case: Path, folder: str) -> None:
    """Write 21 classes of four images, each as .tif and as .png, as two copies of UC Merced are."""
    for label in range(21):
        for number in range(4):
            image = picture(100 * label + number, 32)
            for ending in ("tif", "png"):
                save(image, case / folder / f"class{label:02d}" / f"c{label:02d}_{number}.{ending}")


def write_plan(case: Path, file: str, text: str) -> None:
    """Write a plan of ``tools/benchmarks/run.py``; ``{case}`` is the folder of the case."""
    (case / file).write_text(text.replace("{case}", str(case)))


def unreadable(case: Path, folder: str) -> None:
    """Fill a folder with files that have the names of images but are not images."""
    (case / folder).mkdir(parents=True)
    for number in range(3):
        (case / folder / f"{number}.jpg").write_bytes(b"<html>not found</html>")


def odd_images(case: Path, folder: str) -> None:
    """Replace a folder by images that are odd but valid."""
    shutil.rmtree(case / folder, ignore_errors=True)
    write_odd(case / folder)


INJECTORS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        add_system_folders, change_bytes, coco_classes, copy, damage_jpegs,
        edit_checkpoint, list_classes, list_images, make_16_bit, move, odd_images, remove,
        repeat_one, shift_labels, swap_times, unreadable, write_dota, write_loveda, write_plan,
        write_ucmerced,
    )
}  # fmt: skip
