"""Whether the annotation files that a config names are there and have the classes it names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from gersp_mm.images.listing import ImageList, is_passed_over, require_entries
from gersp_mm.utils.errors import UserError, listed

PARTS = ("train", "val", "test")
FOLDER_DATASETS = ("CustomDataset", "ImageNet", "LabelledImages")
_checked: set[tuple[str, tuple[str, ...]]] = set()


def check_data(cfg: Config, parts: Sequence[str] = PARTS) -> None:
    """Look at the annotation files of a downstream config before any data set is built.

    COCO files are compared with ``metainfo.classes`` in names and order (a host drops what it does
    not know and shifts the labels of the rest), DOTA folders in names, ``path label`` lists in
    their labels. Where a config has folders alone, these have to hold files, and folders of classes
    have to be the same in all parts, since each part numbers its own.

    Args:
        cfg: a config with ``<part>_dataloader.dataset``, wrapped ones included. What was looked at
            once is not read again.
        parts: which loaders.

    Raises:
        UserError: a file does not exist, or has other classes.
    """
    folders: dict[str, tuple[str, list[str]]] = {}
    for part in parts:
        loader = cfg.get(f"{part}_dataloader")
        for dataset in leaves((loader or {}).get("dataset")):
            _check_dataset(dataset, cfg.get("data_preparation"))
            if (found := _class_folders(dataset)) is not None:
                folders.setdefault(part, found)
    _compare_folders(folders)


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets of a config that hold images themselves, inside all wrappers."""
    if not dataset:
        return
    inner = dataset.get("dataset") or dataset.get("datasets")
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        if part:
            yield from leaves(part)
    if not inner:
        yield dataset


def _check_dataset(dataset: Any, preparation: str | None) -> None:
    root = Path(dataset.get("data_root") or "")
    classes = tuple((dataset.get("metainfo") or {}).get("classes") or ())
    ann_file = dataset.get("ann_file")
    prefixes = (dataset.get("data_prefix") or {}).values() if not ann_file else ()
    named = [root / path for path in (ann_file, *prefixes) if path]
    for path in named:
        if not path.exists() or (path.is_dir() and next(os.scandir(path), None) is None):
            how = f"prepare the data with: {preparation}" if preparation else "see to data_root"
            raise UserError(
                f"{path} does not exist or is empty: {how}   (GERSP_DATA=DIR in the environment "
                "says where the data sets are, by default in data/)"
            )
    key = (str(named[0]) if ann_file else "", classes)
    if not ann_file or not classes or key in _checked:
        return
    path = named[0]
    prefix = dataset.get("data_prefix") or ""
    if isinstance(prefix, Mapping):
        prefix = prefix.get("img_path") or prefix.get("img") or ""
    folder = os.path.join(root, prefix)
    if path.suffix == ".json":
        _check_coco(path, classes, folder)
    elif path.is_dir():
        _check_dota(path, classes)
    elif path.suffix == ".txt":
        ours = str(dataset.get("type", "")).startswith("gersp_mm.")
        _check_labels(path, classes, ours, folder)
    _checked.add(key)


def _check_coco(path: Path, classes: tuple[str, ...], folder: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = content["categories"]
        found = tuple(c["name"] for c in sorted(categories, key=lambda c: c["id"]))
        images = [str(image["file_name"]) for image in content.get("images", ())]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no COCO annotation file ({type(error).__name__}: {error}): write it again"
        ) from None
    require_entries(path, images, folder)
    if found == classes:
        return
    if set(found) == set(classes):
        what = f"in another order: {', '.join(found)}"
    else:
        what = _difference(set(found), set(classes))
    raise UserError(
        f"the categories of {path} are not the classes of the config, and labels would be shifted: "
        f"{what}. Write the file again with the converter, or set metainfo.classes to its "
        "categories"
    )


def _check_dota(folder: Path, classes: tuple[str, ...]) -> None:
    known = set(classes)
    for file in sorted(folder.glob("*.txt")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            name = line.split()[8:9]
            if name and name[0] not in known:
                raise UserError(
                    f"{file}, line {number}: the class {name[0]!r} is not in the config's "
                    f"metainfo.classes ({', '.join(classes)}): write the files again with the "
                    "converter"
                )


def _class_folders(dataset: Any) -> tuple[str, list[str]] | None:
    """Return folder and sub-folders of a data set that takes labels from folders."""
    kind = str(dataset.get("type", "")).rpartition(".")[2]
    if kind not in FOLDER_DATASETS or dataset.get("ann_file"):
        return None
    prefix = dataset.get("data_prefix") or ""
    prefix = prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix
    folder = Path(dataset.get("data_root") or "", prefix)
    if not folder.is_dir() or dataset.get("with_label") is False:
        return None
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if kind == "LabelledImages":
        names = [name for name in names if not is_passed_over(name)]
    return str(folder), names


def _compare_folders(folders: Mapping[str, tuple[str, list[str]]]) -> None:
    for part, (folder, names) in list(folders.items())[1:]:
        first, (known_in, known) = next(iter(folders.items()))
        if names != known:
            sides = {f"only {first} has": set(known) - set(names)}
            sides[f"only {part} has"] = set(names) - set(known)
            what = "; ".join(f"{k} {listed(sorted(v))}" for k, v in sides.items() if v)
            raise UserError(
                f"The class folders of {known_in} and {folder} differ ({what}), and each part "
                "numbers its own, so that labels would be shifted. Give both the same folders, or "
                "lists as ann_file."
            )


def _check_labels(path: Path, classes: tuple[str, ...], ours: bool, folder: str) -> None:
    images = ImageList.read(path, path.parent)
    if images.oddities and not ours:
        raise UserError(
            f"{path} has {' and '.join(images.oddities)}, which mmpretrain does not read. Save it "
            "as UTF-8 without a byte-order mark, and write / in its paths."
        )
    require_entries(path, images.paths, folder)
    for name, label in zip(images.paths, images.labels or ()):
        if label >= len(classes):
            raise UserError(
                f"{path}: {name!r} has the label {label}, not one from 0 to {len(classes) - 1}, as "
                f"{len(classes)} classes in the config's metainfo.classes need"
            )


def _difference(found: set[str], wanted: set[str]) -> str:
    sides = {"only the file has": found - wanted, "only the config has": wanted - found}
    return "; ".join(f"{k} {', '.join(sorted(v))}" for k, v in sides.items() if v)
