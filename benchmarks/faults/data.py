"""The small images of the faults benchmark: a healthy set, and a set that is odd but valid."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SCENES = dict(
    coast=(40, 90, 200), field=(200, 190, 60), forest=(30, 120, 40), town=(150, 140, 140)
)  # classes and their colours
OBJECTS = ("bird", "boat", "cat", "dog", "tree")


def picture(seed: int, side: int = 64, colour: tuple[int, int, int] | None = None) -> Image.Image:
    """Draw soft random patches with some noise.

    Args:
        seed: Another seed gives another picture.
        side: Width and height in pixels.
        colour: RGB colour of most of the picture; random patches by default.
    """
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (max(side // 8, 2), max(side // 8, 2), 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(float) + rng.normal(0, 8, (side, side, 3))
    if colour is not None:
        pixels = 0.15 * pixels + 0.85 * np.array(colour)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> None:
    """Write a picture, and its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        options.setdefault("quality", 90)
    image.save(path, **options)


def write_healthy(folder: Path) -> None:
    """Write remote-sensing and natural images, labelled scenes for train and test, and lists."""
    for number in range(24):
        save(picture(number), folder / "rs" / f"scene_{number:02d}.jpg")
    for label, name in enumerate(OBJECTS):
        for number in range(4):
            image = picture(1000 + 100 * label + number, 48)
            save(image, folder / "natural" / name / f"{name}_{number}.jpg")
    for part, count, first in (("train", 6, 3000), ("test", 3, 5000)):
        lines = []
        for label, (name, colour) in enumerate(SCENES.items()):
            for number in range(count):
                path = f"{part}/{name}/{name}_{first + number}.jpg"
                save(picture(first + 100 * label + number, 48, colour), folder / "knn" / path)
                lines.append(f"{path} {label}\n")
        (folder / "knn" / f"{part}.txt").write_text("".join(lines))


def write_odd(folder: Path) -> None:
    """Write images that are unusual but valid; none of them may be refused."""
    image = picture(1, 96)
    grey, palette = image.convert("L"), image.quantize(64)
    transparent = image.convert("RGBA")
    transparent.putalpha(200)
    ramp = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    save(grey, folder / "grey.jpg")
    save(palette, folder / "palette.png")
    save(transparent, folder / "transparent.png")
    save(image.convert("CMYK"), folder / "cmyk.jpg")
    save(image, folder / "progressive.jpg", progressive=True)
    save(image, folder / "turned.jpg", exif=exif)
    save(image, folder / "CAPITALS.JPEG", comment=b"made in a test")
    save(image, folder / "one file with spaces.webp")
    save(image, folder / "städte" / "größe_✓.png")
    save(image, folder / "deep" / "er" / "scene.tif")
    save(image, folder / "windows.bmp")
    save(image.resize((300, 9)), folder / "narrow.png")
    save(image.resize((3, 3)), folder / "tiny.png")
    save(Image.fromarray(ramp), folder / "grey_16_bit.png")
    save(Image.new("RGB", (40, 40), (0, 0, 90)), folder / "lake.png")
    content = io.BytesIO()
    image.save(content, "JPEG")
    (folder / "longer.jpg").write_bytes(content.getvalue() + bytes(range(256)))
    content = io.BytesIO()
    image.save(content, "PNG")
    (folder / "png_inside.jpg").write_bytes(content.getvalue())
    (folder / "notes.txt").write_text("not an image, and not called one\n")
