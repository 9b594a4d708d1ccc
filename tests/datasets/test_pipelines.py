"""Transforms of other libraries in the pipelines of pairs."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gersp_mm.datasets import PairedDataset, PairIndex, collate_pairs
from gersp_mm.engine.preflight.pipelines import check_pipelines
from gersp_mm.utils.errors import UserError

RESIZE = dict(type="torchvision/Resize", size=(16, 16))
ALBUMENTATIONS = pytest.mark.skipif(
    importlib.util.find_spec("albumentations") is None, reason="needs albumentations"
)


def albumentations(*kinds: str) -> dict[str, Any]:
    return dict(type="Albumentations", transforms=[dict(type=kind, p=0.5) for kind in kinds])


MMPRETRAIN = [
    dict(type="RandomResizedCrop", scale=24),
    dict(type="RandomCrop", crop_size=24),
    dict(type="CenterCrop", crop_size=24),
    dict(type="ResizeEdge", scale=24),
    dict(type="Resize", scale=(24, 24)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4),
    dict(type="RandomGrayscale", prob=0.5, keep_channels=True),
    dict(type="Solarize", thr=128, prob=0.5),
    dict(type="RandomErasing", erase_prob=0.5),
    dict(type="RandAugment", policies="timm_increasing", num_policies=2, magnitude_level=9),
    dict(type="AutoAugment", policies="imagenet"),
    dict(
        type="RandomApply",
        transforms=[dict(type="Equalize", prob=0.5), dict(type="torchvision/ColorJitter", hue=0.2)],
        prob=0.5,
    ),
]
TORCHVISION = [
    dict(type=f"torchvision/{kind}", **arguments)
    for kind, arguments in (
        ("RandomResizedCrop", dict(size=24)),
        ("RandomCrop", dict(size=24)),
        ("CenterCrop", dict(size=24)),
        ("RandomHorizontalFlip", {}),
        ("RandomVerticalFlip", {}),
        ("ColorJitter", dict(brightness=0.4)),
        ("RandomGrayscale", dict(p=0.5, )),
        ("GaussianBlur", dict(kernel_size=3)),
        ("RandomRotation", dict(degrees=30)),
        ("RandomSolarize", dict(threshold=128)),
        ("RandomErasing", {}),
        ("TrivialAugmentWide", {}),
    )
]  # fmt: skip
ALBUMENTATIONS_KINDS = (
    "HorizontalFlip", "VerticalFlip", "RandomRotate90", "Affine", "RandomBrightnessContrast",
    "HueSaturationValue", "GaussianBlur", "GaussNoise", "CLAHE", "ColorJitter", "ToGray",
    "CoarseDropout",
)  # fmt: skip
TRANSFORMS = [
    *(pytest.param(cfg, id=cfg["type"]) for cfg in (*MMPRETRAIN, *TORCHVISION)),
    *(
        pytest.param(albumentations(kind), id=f"albumentations-{kind}", marks=ALBUMENTATIONS)
        for kind in ALBUMENTATIONS_KINDS
    ),
]


def dataset_of(data, *pipeline: Any) -> PairedDataset:
    return PairedDataset(
        remote_sensing=dict(type="gersp_mm.MillionAID", data_root=str(data / "rs")),
        natural=dict(type="CustomDataset", data_root=str(data / "natural")),
        rs_pipeline=pipeline,
        natural_pipeline=pipeline,
    )


def finding(dataset: PairedDataset) -> str:
    loader = SimpleNamespace(dataset=dataset, batch_size=2)
    found = check_pipelines(SimpleNamespace(train_dataloader=loader))
    return "\n".join(finding.text for finding in found)


@pytest.mark.parametrize("cfg", TRANSFORMS)
def test_a_sample_is_a_function_of_its_index(pair_data, cfg):
    pairs = [PairIndex(number, number, 40 + number) for number in range(4)]
    dataset = dataset_of(pair_data, cfg, RESIZE)
    assert finding(dataset) == ""
    first = [dataset[pair]["inputs"] for pair in pairs]
    resumed = dataset_of(pair_data, cfg, RESIZE)  # in the middle
    for pair, views in list(zip(pairs, first, strict=True))[2:]:
        again = resumed[pair]["inputs"]
        assert all(torch.equal(views[name], again[name]) for name in views)


@pytest.mark.parametrize("cfg", TRANSFORMS)
def test_two_workers_draw_what_the_main_process_draws(pair_data, cfg):
    dataset = dataset_of(pair_data, cfg, RESIZE)
    pairs = [PairIndex(1, 1, seed) for seed in range(4)]
    here, there = (
        list(DataLoader(dataset, sampler=pairs, num_workers=workers, collate_fn=collate_pairs))
        for workers in (0, 2)
    )
    for one, other in zip(here, there, strict=True):
        assert one["inputs"].keys() == other["inputs"].keys() >= {"rs_query", "rs_key", "natural"}
        assert all(
            torch.equal(one["inputs"][name], other["inputs"][name]) for name in one["inputs"]
        )


def test_another_index_draws_another_view(pair_data):
    dataset = dataset_of(pair_data, dict(type="ColorJitter", brightness=0.4), RESIZE)
    first, second = (dataset[PairIndex(1, 1, seed)]["inputs"]["rs_query"] for seed in (0, 1))
    assert not torch.equal(first, second)


class Noise:
    """Noise from a generator of the transform's own, or from one that nobody can reach."""

    hidden = np.random.default_rng()

    def __init__(self, generator: Any = None) -> None:
        self.inner = dict(parts=[generator])

    def __call__(self, results: dict) -> dict:
        generator = self.inner["parts"][0]
        if isinstance(generator, torch.Generator):
            number = int(torch.randint(0, 256, (), generator=generator))
        elif isinstance(generator, random.Random):
            number = generator.randrange(256)
        else:
            number = int((generator or type(self).hidden).integers(256))
        pixels = np.asarray(results["img"]).copy()
        pixels[0] = number
        return {**results, "img": pixels}


@pytest.mark.parametrize(
    "make", [torch.Generator, random.Random, np.random.default_rng], ids=["torch", "py", "numpy"]
)
def test_generators_that_a_transform_keeps_are_seeded(pair_data, make):
    dataset = dataset_of(pair_data, Noise(make()))
    assert finding(dataset) == ""
    rows = [int(dataset[PairIndex(0, 0, seed)]["inputs"]["rs_query"][0, 0, 0]) for seed in range(9)]
    assert len(set(rows)) > 4


def test_a_generator_out_of_reach_is_refused_by_the_name_of_its_transform(pair_data):
    text = finding(dataset_of(pair_data, RESIZE, Noise()))
    assert "dataset.rs_pipeline.1 (Noise) gives two results for the same image and seed" in text
    assert "dataset.natural_pipeline.1 (Noise)" in text


@ALBUMENTATIONS
def test_two_flips_of_albumentations_are_independent(pair_data):
    dataset = dataset_of(pair_data, albumentations("HorizontalFlip", "VerticalFlip"))
    views = {dataset[(0, 0, seed)]["inputs"]["natural"].numpy().tobytes() for seed in range(30)}
    assert len(views) == 4


@pytest.mark.parametrize(
    ("cfg", "text"),
    [
        (dict(type="LoadImageFromFile"), "decoded already. Remove it"),
        (dict(type="gersp_mm.LoadImage"), "decoded already. Remove it"),
        (dict(type="PackInputs"), "packs the views itself. Remove it"),
        (dict(type="MultiView", num_views=[2], transforms=[[RESIZE]]), "runs twice"),
        (dict(type="RandomApply", transforms=[dict(type="LoadImageFromFile")]), "decoded already"),
    ],
)
def test_transforms_without_a_place_are_refused(pair_data, cfg, text):
    with pytest.raises(UserError, match=rf"^dataset\.rs_pipeline\.0.*{text}"):
        dataset_of(pair_data, cfg, RESIZE)


@pytest.mark.parametrize(
    ("pipeline", "text"),
    [
        ([dict(type="torchvision/RandomApply", transforms=[], p=2), lambda results: None],
         "leaves NoneType"),
        ([dict(type="torchvision/Normalize", mean=[0], std=[1])],
         r"rs_pipeline.0 (torchvision/Normalize) fails on a PIL RGB image"),
        ([lambda results: {**results, "img": np.zeros((8, 8, 3), np.uint8)}], "does not use"),
        ([Noise(np.random.default_rng()),
          lambda results: {**results, "img": results["img"][: 8 + results["img"][0, 0, 0] % 2]}],
         "views of varying size"),
    ],
)  # fmt: skip
def test_what_makes_no_view_is_found_before_the_first_step(pair_data, pipeline, text):
    assert text in finding(dataset_of(pair_data, *pipeline))


@pytest.mark.parametrize(
    "name", ["mmpretrain", "torchvision", pytest.param("albumentations", marks=ALBUMENTATIONS)]
)
def test_documented_pipelines_give_views_of_one_size(pair_data, name):
    page = Path(__file__).parents[2] / "docs/guide/augmentation.md"
    text = page.read_text("utf-8").split(f"<!-- run: augmentation-{name} -->")[1]
    block: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], block)
    dataset = dataset_of(pair_data, *block["pipeline"])
    assert finding(dataset) == ""
    assert dataset[PairIndex(0, 0, 1)]["inputs"]["rs_key"].shape == (3, 224, 224)
