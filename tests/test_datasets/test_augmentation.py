"""The views: the presets against torchvision's own operations, and against what they promise."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageFilter
from torchvision import transforms as T
from torchvision.transforms import functional as F

from gersp_mm.datasets import ViewAugmentation
from gersp_mm.datasets.augmentation import PRESETS
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import seed_everything


@pytest.fixture
def image() -> Image.Image:
    """Smooth colours with some noise, 90×120."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:90, 0:120]
    base = np.stack([x * 2, y * 2.5, 255 - x - y], -1) + rng.normal(0, 6, (90, 120, 3))
    return Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))


@pytest.fixture
def tiny() -> Image.Image:
    """Strong colours, 8×8: quick to draw thousands of views of."""
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), dtype=np.uint8)
    pixels[..., 0] //= 2
    return Image.fromarray(pixels)


def draw(augmentation: ViewAugmentation, image: Image.Image, count: int) -> list[torch.Tensor]:
    seed_everything(1)
    return [augmentation(dict(img=image))["img"] for _ in range(count)]


def share(hits) -> float:
    return float(np.mean([bool(hit) for hit in hits]))


def tolerance(prob: float, count: int) -> float:
    """Four standard deviations of a share."""
    return 4 * (prob * (1 - prob) / count) ** 0.5


def is_grey(view: torch.Tensor) -> bool:
    return torch.equal(view[0], view[1]) and torch.equal(view[1], view[2])


# Only the crop is left, and it takes the whole 8×8 image.
STILL = dict(
    scale=(1.0, 1.0),
    jitter_prob=0,
    grayscale_prob=0,
    blur_prob=0,
    horizontal_flip_prob=0,
    vertical_flip_prob=0,
)


def test_released_is_the_torchvision_pipeline_of_the_released_config(image):
    # train_pipeline of the released configs/selfsup/GeRSP/GeRSP.py, up to normalisation
    released = T.Compose(
        [
            T.RandomResizedCrop(224, scale=(0.2, 1.0)),
            T.RandomGrayscale(p=0.2),
            T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
        ]
    )
    ours = ViewAugmentation("released", size=224)
    for seed in range(20):
        seed_everything(seed)
        expected = (released(image) * 255).round().to(torch.uint8)
        seed_everything(seed)
        assert torch.equal(ours(dict(img=image))["img"], expected), seed


def test_mocov2_is_its_recipe_step_by_step(image):
    ours = ViewAugmentation("mocov2", size=64)
    seen = set()
    for seed in range(40):
        seed_everything(seed)
        view = T.RandomResizedCrop(64, scale=(0.2, 1.0))(image)
        jittered = torch.rand(1) < 0.8
        if jittered:
            view = T.ColorJitter(0.4, 0.4, 0.4, 0.1)(view)
        grey = torch.rand(1) < 0.2
        if grey:
            view = F.to_grayscale(view, num_output_channels=3)
        blurred = torch.rand(1) < 0.5
        if blurred:
            view = view.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        flipped = torch.rand(1) < 0.5
        if flipped:
            view = F.hflip(view)
        seed_everything(seed)
        assert torch.equal(ours(dict(img=image))["img"], F.pil_to_tensor(view)), seed
        seen.add((bool(jittered), bool(grey), bool(blurred), bool(flipped)))
    assert len(seen) > 8  # of the 16 ways through


@pytest.mark.parametrize(
    ("part", "prob"),
    [("horizontal_flip_prob", 0.5), ("vertical_flip_prob", 0.3), ("grayscale_prob", 0.2)],
)
def test_probability_of_one_part(tiny, part, prob):
    views = draw(ViewAugmentation("mocov2", size=8, **{**STILL, part: prob}), tiny, 1500)
    original = F.pil_to_tensor(tiny)
    changed = {
        "horizontal_flip_prob": original.flip(2),
        "vertical_flip_prob": original.flip(1),
        "grayscale_prob": F.pil_to_tensor(F.to_grayscale(tiny, 3)),
    }[part]
    hits = [torch.equal(view, changed) for view in views]
    assert all(hit or torch.equal(view, original) for hit, view in zip(hits, views))
    assert abs(share(hits) - prob) < tolerance(prob, len(views))


@pytest.mark.parametrize(("part", "prob"), [("jitter_prob", 0.8), ("blur_prob", 0.5)])
def test_probability_of_jitter_and_blur(tiny, part, prob):
    views = draw(ViewAugmentation("mocov2", size=8, **{**STILL, part: prob}), tiny, 1000)
    original = F.pil_to_tensor(tiny)
    # the weakest blurs (sigma below 0.25 of the range 0.1 to 2) leave every 8-bit value alone
    slack = 0.05 if part == "blur_prob" else 0.01
    changed = share(not torch.equal(view, original) for view in views)
    assert abs(changed - prob) < tolerance(prob, len(views)) + slack
    if part == "blur_prob":
        variances = [float(view.float().var()) for view in views]
        assert max(variances) == pytest.approx(float(original.float().var()))
        assert min(variances) < 0.5 * max(variances)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_fifth_of_the_views_is_grey(tiny, preset):
    # also where greyscale comes first: hue and saturation mean nothing to grey
    views = draw(ViewAugmentation(preset, size=8), tiny, 1000)
    assert abs(share(map(is_grey, views)) - 0.2) < tolerance(0.2, len(views)) + 0.01


def test_released_always_jitters_never_blurs_never_turns_upside_down(tiny):
    parts = PRESETS["released"]
    assert parts["jitter_prob"] == 1 and parts["blur_prob"] == parts["vertical_flip_prob"] == 0
    still = dict(scale=(1.0, 1.0), grayscale_prob=0, horizontal_flip_prob=0)
    views = draw(ViewAugmentation("released", size=8, **still), tiny, 100)
    original = F.pil_to_tensor(tiny)
    assert share(not torch.equal(view, original) for view in views) > 0.97


def test_crop_takes_the_stated_share_of_the_area():
    # a picture whose values are its coordinates tells which part a view shows
    y, x = np.mgrid[0:256, 0:256].astype(np.uint8)
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1))
    views = draw(ViewAugmentation("mocov2", size=64, **{**STILL, "scale": (0.2, 1.0)}), image, 400)
    areas = [
        float(view[0].max() - view[0].min() + 1.0) * float(view[1].max() - view[1].min() + 1.0)
        for view in views
    ]
    areas = np.array(areas) / 256**2
    assert 0.17 < areas.min() < 0.25 and 0.9 < areas.max() <= 1
    assert 0.5 < areas.mean() < 0.65


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(40, 300), (7, 5), (224, 224)])
def test_output_is_uint8_of_the_stated_size(preset, size):
    image = Image.fromarray(np.full((*size, 3), 77, np.uint8))
    results = ViewAugmentation(preset, size=32)(dict(img=image, img_path="a.jpg", gt_label=3))
    assert results["img"].dtype == torch.uint8 and results["img"].shape == (3, 32, 32)
    assert (results["img_path"], results["gt_label"]) == ("a.jpg", 3)


def test_the_input_is_left_alone(tiny):
    before, given = np.asarray(tiny).copy(), dict(img=tiny)
    ViewAugmentation("mocov2", size=8)(given)
    assert given["img"] is tiny and np.array_equal(np.asarray(tiny), before)


def test_unknown_preset_lists_the_known():
    with pytest.raises(UserError, match="released, mocov2.*got 'simclr'"):
        ViewAugmentation("simclr")


def test_unknown_part_lists_the_known():
    with pytest.raises(UserError, match="has no blur, solarize; it has .*blur_prob"):
        ViewAugmentation("mocov2", solarize=0.1, blur=0.5)


def test_built_by_name_and_says_what_it_does():
    cfg = dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=96, blur_prob=0.1)
    text = repr(TRANSFORMS.build(cfg))
    assert "mocov2" in text and "GaussianBlur(sigma=(0.1, 2.0))" in text and "(96, 96)" in text
