"""Named splits: what the committed hashes stand for, and choices of few images."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from gersp_mm.datasets.known import EUROSAT, RESISC45
from gersp_mm.datasets.splits import EUROSAT_GERSP_1, RESISC45_GERSP_1, Split, few_shot
from gersp_mm.preparation.scenes import find_scenes
from gersp_mm.utils.errors import UserError
from tests.support.smoke import ROOT


def position(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def derived(name: str, sizes: dict[str, int], pattern: str, shares: list[int]) -> list[list[str]]:
    """Write the lists anew from the description of the split alone."""
    parts: list[list[str]] = [[], [], []]
    for label, (scene, size) in enumerate(sizes.items()):
        files = [f"{scene}/{pattern.format(scene, n)}" for n in range(1, size + 1)]
        files.sort(key=lambda file: position(f"{name}:{file}"))
        first, second = size * shares[0] // 100, size * (shares[0] + shares[1]) // 100
        for part, chosen in zip(parts, (files[:first], files[first:second], files[second:])):
            part += [f"{file} {label}" for file in sorted(chosen)]
    return parts


SIZES = {"AnnualCrop": 3000, "Forest": 3000, "HerbaceousVegetation": 3000, "Highway": 2500,
         "Industrial": 2500, "Pasture": 2000, "PermanentCrop": 2500, "Residential": 3000,
         "River": 2500, "SeaLake": 3000}  # fmt: skip


@pytest.mark.parametrize(
    ("split", "sizes", "pattern", "shares", "counts"),
    [
        (EUROSAT_GERSP_1, SIZES, "{}_{}.jpg", [60, 20, 20], [16200, 5400, 5400]),
        (
            RESISC45_GERSP_1,
            dict.fromkeys(RESISC45.classes, 700),
            "{}_{:03d}.jpg",
            [18, 2, 80],
            [5670, 630, 25200],
        ),
    ],
)
def test_committed_hash_is_that_of_the_described_lists(split, sizes, pattern, shares, counts):
    parts = derived(split.name, sizes, pattern, shares)
    assert [len(part) for part in parts] == counts
    text = "".join(
        f"{name} {line}\n" for name, part in zip(("train", "val", "test"), parts) for line in part
    )
    assert hashlib.sha256(text.encode()).hexdigest() == split.sha256
    cut = split.cut(reversed(split.paths()))  # whatever the order
    assert [[f"{e.path} {e.label}" for e in part] for part in cut.values()] == parts
    assert split.name_of(cut) == split.name


def test_hashes_are_for_ever():
    assert EUROSAT_GERSP_1.sha256.startswith("79ee5af894638118")
    assert RESISC45_GERSP_1.sha256.startswith("d65511fcc171794c")


def test_classes_are_sorted_so_that_labels_are_those_of_the_folders():
    assert list(EUROSAT.classes) == sorted(EUROSAT.classes) and len(EUROSAT.classes) == 10
    assert list(RESISC45.classes) == sorted(RESISC45.classes) and len(RESISC45.classes) == 45


@pytest.mark.parametrize("split", [EUROSAT_GERSP_1, RESISC45_GERSP_1])
def test_one_file_more_or_less_is_another_name(split):
    paths = split.paths()
    assert split.name_of(split.cut(paths[1:])) == f"{split.name}-incomplete"
    more = [*paths, f"{split.classes[0]}/copy.jpg"]
    assert split.name_of(split.cut(more)) == f"{split.name}-incomplete"


@pytest.mark.parametrize(
    ("images", "expected"),
    [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (4, [2, 1, 1]),
     (5, [3, 1, 1]), (10, [6, 2, 2]), (11, [7, 2, 2])],
)  # fmt: skip
def test_small_classes_get_into_every_part(images, expected):
    parts = EUROSAT_GERSP_1.cut([f"River/{n}.jpg" for n in range(images)])
    assert [len(part) for part in parts.values()] == expected
    assert sorted(e.path for part in parts.values() for e in part) == sorted(
        f"River/{n}.jpg" for n in range(images)
    )
    assert {e.label for part in parts.values() for e in part} <= {8}


def test_the_name_is_part_of_the_order():
    other = dataclasses.replace(EUROSAT_GERSP_1, name="eurosat-gersp-2")
    paths = EUROSAT_GERSP_1.paths()[:100]
    assert other.cut(paths)["test"] != EUROSAT_GERSP_1.cut(paths)["test"]


def test_real_eurosat_has_the_expected_files():
    data = ROOT / "data" / "EuroSAT"
    if not data.is_dir():
        pytest.skip("no EuroSAT in data/")
    files = find_scenes(data, EUROSAT.classes)
    assert EUROSAT_GERSP_1.name_of(EUROSAT_GERSP_1.cut(files)) == "eurosat-gersp-1"


def training_list(root: str, per_class: int = 8) -> tuple[list[str], list[int]]:
    names = [f"{root}class_{c}/{n:02d}.jpg" for n in range(per_class) for c in (2, 0, 1)]
    return names, [int(Path(name).parent.name[-1]) for name in names]


@pytest.mark.parametrize("draw", [0, 1])
def test_few_shot_chooses_by_hash(draw):
    names, labels = training_list("data/eurosat/2750/")
    expected = []
    for scene in ("class_0", "class_1", "class_2"):
        files = sorted(
            (f"{scene}/{n:02d}.jpg" for n in range(8)),
            key=lambda file: position(f"few-shot {draw}:{file}"),
        )
        expected += [f"data/eurosat/2750/{file}" for file in files[:3]]
    assert [names[i] for i in few_shot(names, labels, 3, draw)] == expected


def test_few_shot_is_nested_and_draws_differ():
    names, labels = training_list("")
    five = {draw: set(few_shot(names, labels, 5, draw)) for draw in range(4)}
    for draw, chosen in five.items():
        assert set(few_shot(names, labels, 1, draw)) < chosen
        assert sorted(labels[i] for i in chosen) == [0] * 5 + [1] * 5 + [2] * 5
    assert len({frozenset(chosen) for chosen in five.values()}) == 4


def test_few_shot_depends_neither_on_the_place_nor_on_the_order():
    names, labels = training_list("")
    chosen = {names[i] for i in few_shot(names, labels, 2, 7)}
    elsewhere = [f"C:\\data\\{name}".replace("/", "\\") for name in reversed(names)]
    again = few_shot(elsewhere, labels[::-1], 2, 7)
    assert {elsewhere[i][8:].replace("\\", "/") for i in again} == chosen


@pytest.mark.parametrize("shots", [0, 9])
def test_few_shot_of_too_few_is_refused(shots):
    names, labels = training_list("")
    with pytest.raises(UserError, match=f"class 0 has 8 training images, so {shots} shots cannot"):
        few_shot(names, labels, shots, 0)


def test_split_of_another_pattern():
    split = Split("s", {"b": 2, "a": 1}, "{c}-{n:02d}.png", dict(train=50, test=50), "")
    assert split.paths() == ["b/b-01.png", "b/b-02.png", "a/a-01.png"]
    assert split.classes == ("b", "a")
