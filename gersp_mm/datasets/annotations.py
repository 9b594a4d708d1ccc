"""Checks that a config's annotation files exist and have the classes of the config."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from gersp_mm.images.listing import ImageList, is_passed_over, require_entries
from gersp_mm.utils.errors import UserError, listed, nearest

PARTS = ("train", "val", "test")
FOLDER_DATASETS = ("CustomDataset", "ImageNet", "LabelledImages")


def check_data(cfg: Config, parts: Sequence[str] = PARTS) -> list[str]:
    """Check the annotation files of a downstream config before any data set is built.

    COCO files, also those of evaluators, may hold more classes than ``metainfo.classes``, but they
    have to hold all of its classes in the same order, because mmdet numbers classes in the order of
    the file and skips names that the file lacks. DOTA folders are compared by names, ``path label``
    lists by labels, and data sets of mmseg with the classes of their type. Folders must not be
    empty. Class folders have to be the same in all parts, because each part numbers its own
    folders.

    Args:
        cfg: A config with ``<part>_dataloader.dataset``, which may be wrapped.
        parts: Loaders to check.

    Returns:
        Sentences on the classes that the config omits.

    Raises:
        UserError: A file does not exist, or has other classes.
    """
    folders: dict[str, tuple[str, list[str]]] = {}
    notes: list[str] = []
    scope = cfg.get("default_scope") or "mmengine"
    for part in parts:
        loader = cfg.get(f"{part}_dataloader")
        classes: tuple[str, ...] = ()
        for dataset in leaves((loader or {}).get("dataset")):
            classes = _classes_of(dataset, scope)
            notes += _check_dataset(dataset, classes, scope, cfg.get("data_preparation"))
            if (found := _class_folders(dataset)) is not None:
                folders.setdefault(part, found)
        for evaluator in _as_list(cfg.get(f"{part}_evaluator")):
            path = Path(evaluator.get("ann_file") or "")
            if classes and path.suffix == ".json" and path.is_file():
                notes += _check_coco(path, classes, None)
    _compare_folders(folders)
    return list(dict.fromkeys(notes))


def _as_list(value: Any) -> list[Any]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in values if isinstance(item, Mapping)]


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the configs of the data sets inside all wrappers."""
    if not dataset:
        return
    inner = dataset.get("dataset") or dataset.get("datasets")
    for part in inner if isinstance(inner, (list, tuple)) else [inner]:
        if part:
            yield from leaves(part)
    if not inner:
        yield dataset


def _classes_of(dataset: Any, scope: str) -> tuple[str, ...]:
    """Return a data set's class names from its config, or else from its type."""
    metainfo = dataset.get("metainfo")
    classes = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise UserError(
                f"metainfo.classes={classes!r} is a string, and each letter would be a class. "
                f"Write ('{classes}',)."
            )
        classes = Path(classes).read_text(encoding="utf-8").splitlines()
    return tuple(classes or ()) or _classes_of_type(dataset, scope)


def _classes_of_type(dataset: Any, scope: str) -> tuple[str, ...]:
    """Return the classes of a data set's type, in detection or segmentation."""
    if scope == "mmpretrain":  # mmpretrain's labels are numbers.
        return ()
    return tuple((getattr(_kind(dataset, scope), "METAINFO", None) or {}).get("classes") or ())


def _is_coco(dataset: Any, scope: str) -> bool:
    kind = _kind(dataset, scope)
    lvis = "LVIS" in getattr(kind, "__name__", "")  # LVIS numbers its classes in another way.
    return kind is None or (hasattr(kind, "COCOAPI") and not lvis)


def _kind(dataset: Any, scope: str) -> Any:
    kind = dataset.get("type")
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind)


def _check_dataset(
    dataset: Any, classes: tuple[str, ...], scope: str, preparation: str | None
) -> list[str]:
    root = Path(dataset.get("data_root") or "")
    ann_file = dataset.get("ann_file")
    prefix = dataset.get("data_prefix") or {}
    prefix = prefix if isinstance(prefix, Mapping) else {"img_path": prefix}
    prefixes = prefix.values() if not ann_file else ()
    named = [root / path for path in (ann_file, *prefixes) if path]
    for path in named:
        if not path.exists() or (path.is_dir() and next(os.scandir(path), None) is None):
            how = f"Prepare the data with: {preparation}" if preparation else "Correct data_root"
            raise UserError(
                f"{path} does not exist or is empty. {how}   (GERSP_DATA=DIR in the environment "
                "names the folder of the data sets, by default data/)"
            )
    if not classes:
        return []
    if prefix.get("seg_map_path"):
        return _check_label_map(dataset, classes)
    if not ann_file:
        return []
    path = named[0]
    folder = os.path.join(root, prefix.get("img_path") or prefix.get("img") or "")
    if path.suffix == ".json":
        return _check_coco(path, classes, folder) if _is_coco(dataset, scope) else []
    if path.is_dir():
        return _check_dota(path, classes)
    if path.suffix == ".txt" and scope not in (
        "mmdet",
        "mmrotate",
        "mmseg",
    ):  # Their annotation files hold only names.
        ours = str(dataset.get("type", "")).startswith("gersp_mm.")
        return _check_labels(path, classes, folder, ours)
    return []


@functools.cache  # so that a file is read once
def _check_coco(path: Path, classes: tuple[str, ...], folder: str | None) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        images = [str(image["file_name"]) for image in content.get("images", ())]
        boxes = Counter(box["category_id"] for box in content.get("annotations", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a COCO annotation file ({type(error).__name__}: {error}). "
            "Write it again."
        ) from None
    if folder is not None:
        require_entries(path, images, folder)
    found = tuple(names.values())  # mmdet numbers classes in this order and ignores their ids.
    if unknown := [name for name in classes if name not in found]:
        raise UserError(
            f"the categories of {path} are not the classes of the config, and labels would be "
            f"shifted: {_difference(set(found), set(classes))}. {_correction(unknown[0], found)}"
        )
    kept = tuple(name for name in found if name in classes)
    if kept != classes:
        raise UserError(
            f"the categories of {path} are in another order: {', '.join(kept)}. mmdet numbers "
            "classes in the order of the file, and labels would be shifted. Set metainfo.classes "
            "to this order."
        )
    left_out = {name: boxes[number] for number, name in names.items() if name not in classes}
    if not left_out:
        return []
    counts = [f"{name} ({count:,} boxes)" for name, count in left_out.items()]
    return [
        f"{path}: metainfo.classes leaves out {len(left_out)} of {len(found)} classes with "
        f"{sum(left_out.values()):,} of {boxes.total():,} boxes: {listed(counts, 20)}"
    ]


@functools.cache
def _check_dota(folder: Path, classes: tuple[str, ...]) -> list[str]:
    known = set(classes)
    for file in sorted(folder.glob("*.txt")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            name = line.split()[8:9]
            if name and name[0] not in known:
                raise UserError(
                    f"{file}, line {number}: the class {name[0]!r} is not in the config's "
                    f"metainfo.classes ({', '.join(classes)}), and mmrotate cannot leave classes "
                    "out. Name all classes of the files there, or remove the others from the files."
                )
    return []


def _check_label_map(dataset: Any, classes: tuple[str, ...]) -> list[str]:
    """Compare classes with those of a data set's type in mmseg, in any order."""
    known = _classes_of_type(dataset, "mmseg")
    if unknown := [name for name in classes if known and name not in known]:
        raise UserError(
            f"metainfo.classes names {listed(unknown)}, which {dataset['type']} does not have. "
            f"{_correction(unknown[0], known)}"
        )
    left_out = [name for name in known if name not in classes]
    if not left_out:
        return []
    return [
        f"metainfo.classes leaves out {len(left_out)} of {len(known)} classes of {dataset['type']}"
        f": {listed(left_out, 20)}. Their pixels are ignored."
    ]


def _correction(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known)
    if close:
        return f"Write {close!r} in place of {name!r} in metainfo.classes."
    return f"Set metainfo.classes to some of: {listed(known, 30)}."


def _class_folders(dataset: Any) -> tuple[str, list[str]] | None:
    """Return the folder and the sub-folders of a data set that takes labels from folders."""
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
    given = (dataset.get("metainfo") or {}).get("classes")
    classes = [] if isinstance(given, str) else list(given or ())  # The host reads a file.
    if classes and len(classes) != len(names):
        raise UserError(
            f"{folder} has {len(names)} class folders ({listed(names)}), metainfo.classes has "
            f"{len(classes)} classes, and {kind} uses all folders. Leave metainfo.classes out, "
            "or give a list of images as ann_file."
        )
    if classes != names and set(classes) == set(names):
        raise UserError(
            f"metainfo.classes names the class folders of {folder} in another order, and {kind} "
            f"numbers them as {listed(names)}. Leave metainfo.classes out."
        )
    return str(folder), names


def _compare_folders(folders: Mapping[str, tuple[str, list[str]]]) -> None:
    for part, (folder, names) in list(folders.items())[1:]:
        first, (known_in, known) = next(iter(folders.items()))
        if names != known:
            sides = {f"only {first} has": set(known) - set(names)}
            sides[f"only {part} has"] = set(names) - set(known)
            texts = "; ".join(f"{k} {listed(sorted(v))}" for k, v in sides.items() if v)
            raise UserError(
                f"The class folders of {known_in} and {folder} differ ({texts}), and each part "
                "numbers its own, so that labels would be shifted. Give both the same folders, or "
                "lists as ann_file."
            )


@functools.cache
def _check_labels(path: Path, classes: tuple[str, ...], folder: str, ours: bool) -> list[str]:
    images = ImageList.read(path, path.parent)
    if images.oddities and not ours:
        raise UserError(
            f"{path} has {' and '.join(images.oddities)}, which mmpretrain does not read. Save it "
            "as UTF-8 without a byte-order mark, and write / in its paths."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    for name, label in zip(images.paths, images.labels or ()):
        if label >= len(classes):
            raise UserError(
                f"{path}: {name!r} has the label {label}, but the {len(classes)} classes of the "
                f"config's metainfo.classes have labels 0 to {len(classes) - 1}. To leave classes "
                "out, write a list without them."
            )
        named = os.path.basename(os.path.dirname(name))
        if numbers.get(named, label) != label:
            raise UserError(
                f"{path}: {name!r} has the label {label}, which is {classes[label]!r} in the "
                "config's metainfo.classes. Write the classes in the order of the labels."
            )
    require_entries(path, images.paths, folder)
    return []


def _difference(found: set[str], wanted: set[str]) -> str:
    sides = {"only the file has": found - wanted, "only the config has": wanted - found}
    return "; ".join(f"{k} {listed(sorted(v), 20)}" for k, v in sides.items() if v)
