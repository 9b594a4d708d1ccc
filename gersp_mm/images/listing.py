"""Which files are images, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

from tqdm import tqdm

# What image folders are searched for; the content decides how a file is decoded, not its name.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def list_images(folder: Path, progress: bool = True) -> list[str]:
    """Return the images at any depth below a folder, as sorted relative paths with ``/``.

    Hidden files and folders are left out. Linked folders are followed, each once.
    """
    found: list[str] = []
    seen = set()
    pending = [("", str(folder))]
    with tqdm(desc=f"listing {folder}", unit="img", disable=not progress) as bar:
        while pending:
            prefix, path = pending.pop()
            real = os.path.realpath(path)
            if real in seen:
                continue
            seen.add(real)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        pending.append((f"{prefix}{entry.name}/", entry.path))
                    elif entry.name.lower().endswith(IMAGE_EXTENSIONS) and entry.is_file():
                        found.append(prefix + entry.name)
                        bar.update()
    return sorted(found)
