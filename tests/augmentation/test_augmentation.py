"""The views: the presets against torchvision's own operations, and against what they promise."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageFilter
from scipy.stats import chisquare, ks_2samp
from torchvision import transforms as T
from torchvision.transforms import functional as F

from gersp_mm.augmentation import view as augmentation
from gersp_mm.augmentation.device import blur_kernel, recolour_batch
from gersp_mm.augmentation.draw import HUE, NOTHING, draw_crop, draw_view, unpack
from gersp_mm.augmentation.host import apply_compiled, apply_with_pil
from gersp_mm.augmentation.view import PRESETS
from gersp_mm.datasets import ViewAugmentation
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


# The pipelines that the presets stand for, in torchvision's transforms: train_pipeline of the
# released configs/selfsup/GeRSP/GeRSP.py up to normalisation, and MoCo v2's.
REFERENCES: dict[str, Any] = {
    "released": T.Compose([
        T.RandomResizedCrop(32, scale=(0.2, 1.0)),
        T.RandomGrayscale(p=0.2),
        T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4),
        T.RandomHorizontalFlip(),
        T.PILToTensor(),
    ]),
    "mocov2": T.Compose([
        T.RandomResizedCrop(32, scale=(0.2, 1.0)),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([lambda x: x.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))], 0.5),
        T.RandomHorizontalFlip(),
        T.PILToTensor(),
    ]),
}  # fmt: skip


def same_distribution(ours: Any, reference: Any) -> bool:
    """Kolmogorov and Smirnov see no difference; one in 10,000 tests would be wrong."""
    return ks_2samp(np.asarray(ours, float), np.asarray(reference, float)).pvalue > 1e-4


@pytest.mark.parametrize(("height", "width"), [(90, 120), (300, 60)])
def test_crops_have_torchvisions_distribution(height, width):
    seed_everything(0)
    image = torch.empty(3, height, width)
    ours = [draw_crop(height, width, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    get_params = T.RandomResizedCrop.get_params
    theirs = [get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    for number in range(4):
        assert same_distribution([o[number] for o in ours], [t[number] for t in theirs]), number
    areas = [[h * w for _, _, h, w in crops] for crops in (ours, theirs)]
    assert same_distribution(*areas)
    assert all(t >= 0 and le >= 0 and t + h <= height and le + w <= width for t, le, h, w in ours)


def test_no_crop_fits_takes_torchvisions_central_one():
    for height, width in ((10, 1000), (1000, 10), (7, 11)):
        scale = (5.0, 6.0)  # larger than the image, whatever the shape
        expected = T.RandomResizedCrop.get_params(
            torch.empty(3, height, width), list(scale), [3 / 4, 4 / 3]
        )
        assert tuple(draw_crop(height, width, scale, (3 / 4, 4 / 3))) == expected


def test_jitter_has_torchvisions_distribution():
    seed_everything(0)
    ours = [draw_view(90, 120, PRESETS["released"]) for _ in range(4000)]
    jitter = T.ColorJitter(0.4, 0.4, 0.4, 0.4)
    ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    theirs = [T.ColorJitter.get_params(*ranges) for _ in range(4000)]
    for operation in range(4):
        assert same_distribution(
            [o["factors"][operation] for o in ours], [t[1 + operation] for t in theirs]
        )
    first = [Counter(o["order"][0] for o in ours)[code] for code in range(4)]
    orders = {tuple(o["order"]) for o in ours}
    assert chisquare(first).pvalue > 1e-4 and len(orders) == 24


@pytest.mark.parametrize("preset", ["released", "mocov2"])
@pytest.mark.parametrize("where", ["numba", "pil", "device"])
def test_views_have_the_references_distribution(image, preset, where):
    count = 700
    if where == "device":
        ours = ViewAugmentation(preset, size=32, colour="device")
        seed_everything(1)
        results = [ours(dict(img=image)) for _ in range(count)]
        images = torch.stack([r["img"] for r in results])
        views = recolour_batch(images, unpack(np.stack([r["draw"] for r in results])))
    else:
        views = torch.stack(draw(ViewAugmentation(preset, size=32, engine=where), image, count))
    seed_everything(2)
    reference = torch.stack([REFERENCES[preset](image) for _ in range(count)])
    for measure in (
        lambda x: x[:, 0].mean((1, 2)),  # red
        lambda x: x[:, 2].mean((1, 2)),  # blue
        lambda x: x.std((1, 2, 3)),  # contrast
        lambda x: (x.amax(1) - x.amin(1)).mean((1, 2)),  # colourfulness
        lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),  # sharpness
        lambda x: (x[..., 16:] - x[..., :16]).mean((1, 2, 3)),  # left against right: flips
    ):
        assert same_distribution(measure(views.float()), measure(reference.float()))


def draws(preset: str, count: int) -> np.ndarray:
    seed_everything(3)
    parts = {**PRESETS[preset], "vertical_flip_prob": 0.5}
    return np.stack([draw_view(90, 120, parts) for _ in range(count)])


@pytest.mark.parametrize("preset", ["released", "mocov2"])
def test_compiled_colours_are_pils_to_the_last_bit(image, preset):
    rng = np.random.default_rng(0)
    real = np.asarray(image)
    for draw in draws(preset, 60):
        for pixels in (real, rng.integers(0, 256, (37, 601, 3), dtype=np.uint8)):
            expected = np.asarray(apply_with_pil(Image.fromarray(pixels), draw))
            assert np.array_equal(apply_compiled(pixels.copy(), draw), expected), draw


def test_hue_is_pils_for_every_colour_of_a_grid():
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(52, -1, 3)
    draw = draws("released", 1)[0]
    draw["order"], draw["grayscale"] = [HUE, NOTHING, NOTHING, NOTHING], 0
    for hue in (-0.5, -0.37, -0.001, 0.0, 0.004, 0.25, 0.5):
        draw["factors"][HUE] = hue
        expected = np.asarray(apply_with_pil(Image.fromarray(grid), draw))
        assert np.array_equal(apply_compiled(grid.copy(), draw), expected), hue


@pytest.mark.parametrize(("preset", "beyond"), [("released", 0.001), ("mocov2", 0.003)])
def test_device_colours_are_pils_within_two_grey_levels(image, preset, beyond):
    chosen = draws(preset, 80)
    images = torch.stack([F.pil_to_tensor(image)] * 80)
    before = images.clone()
    views = recolour_batch(images, chosen)
    assert torch.equal(images, before)
    expected = torch.stack([F.pil_to_tensor(apply_with_pil(image, d)) for d in chosen])
    difference = (views.int() - expected.int()).abs()
    assert (difference > 2).float().mean() < beyond
    assert difference.float().mean() < 0.2


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.93, 1.4, 2.0])
def test_blur_kernel_is_pils_response_to_a_point(sigma):
    point = np.zeros((41, 41), np.uint8)
    point[:, 20] = 255
    response = np.asarray(Image.fromarray(point).filter(ImageFilter.GaussianBlur(sigma)))[20] / 255
    kernel = blur_kernel(sigma)
    padded = np.pad(kernel, 20 - len(kernel) // 2)
    assert abs(kernel.sum() - 1) < 1e-12
    assert np.abs(padded - response).max() < 1.6 / 255 * 3


def test_fast_path_is_the_reference_within_two_grey_levels():
    """Same draws, whole view: decoded crop, torch's resize, the colours."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((256, 240), Image.BICUBIC)
    for preset in PRESETS:
        differences = []
        for seed in range(40):
            views = []
            for engine in ("numba", "pil"):
                seed_everything(seed)
                view = ViewAugmentation(preset, size=96, engine=engine)
                views.append(view(dict(img=image))["img"].int())
            differences.append((views[0] - views[1]).abs().flatten())
        assert (torch.cat(differences) <= 2).float().mean() > 0.99


def test_a_view_is_a_function_of_the_random_state_alone(image):
    view = ViewAugmentation("mocov2", size=24)
    seed_everything(4)
    first = view(dict(img=image))["img"]
    seed_everything(4)
    assert torch.equal(view(dict(img=F.pil_to_tensor(image)))["img"], first)
    assert not torch.equal(view(dict(img=image))["img"], first)


def test_where_the_colours_are_done(image, monkeypatch):
    monkeypatch.setattr(augmentation, "get_device", lambda: "cuda")
    there = ViewAugmentation("released", size=16)
    seed_everything(0)
    results = there(dict(img=image))
    assert there.on_device and "on the device" in repr(there)
    assert unpack(results["draw"][None])["order"].shape == (1, 4)
    assert not ViewAugmentation("released", colour="workers").on_device
    monkeypatch.setattr(augmentation, "get_device", lambda: "cpu")
    here = ViewAugmentation("released", size=16)
    seed_everything(0)
    finished = here(dict(img=image))
    assert "draw" not in finished
    batch = recolour_batch(results["img"][None], unpack(results["draw"][None]))[0]
    assert (batch.int() - finished["img"].int()).abs().float().mean() < 0.2


def test_without_numba_pil_does_the_same(image, monkeypatch):
    seed_everything(0)
    compiled = ViewAugmentation("released", size=16)(dict(img=image))["img"]
    monkeypatch.setattr(augmentation, "has_numba", lambda: False)
    with pytest.raises(UserError, match="pip install numba"):
        ViewAugmentation("released", engine="numba")
    plain = ViewAugmentation("released", size=16)
    assert not plain.compiled
    seed_everything(0)
    assert torch.equal(plain(dict(img=image))["img"], compiled)


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
def test_the_stated_share_of_the_views_is_grey(tiny, preset):
    # also where greyscale comes first: hue and saturation mean nothing to grey
    views = draw(ViewAugmentation(preset, size=8), tiny, 1000)
    stated = PRESETS[preset]["grayscale_prob"]
    assert stated in (0.1, 0.2)
    assert abs(share(map(is_grey, views)) - stated) < tolerance(stated, len(views)) + 0.01


@pytest.mark.parametrize("colour", ["workers", "device"])
def test_quarter_turns_turn_the_same_view(image, colour):
    plain = dict(preset="released", size=24, colour=colour, horizontal_flip_prob=0.0)
    found = []
    for seed in range(40):
        views = []
        for turns in (False, True):
            seed_everything(seed)
            view = ViewAugmentation(**plain, quarter_turns=turns)(dict(img=image))["img"]
            assert view.permute(1, 2, 0).is_contiguous()
            views.append(view.int())
        found.append(
            [
                k
                for k in range(4)
                # a grey level: sums of the contrast's mean are taken in another order
                if (torch.rot90(views[0], k, (1, 2)) - views[1]).abs().max() <= 1
            ]
        )
    assert all(len(k) == 1 for k in found)
    counts = [found.count([k]) for k in range(4)]
    assert chisquare(counts).pvalue > 0.01, counts


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
    with pytest.raises(UserError, match="'released', 'mocov2', 'overhead', got 'simclr'"):
        ViewAugmentation("simclr")


def test_unknown_part_lists_the_known():
    with pytest.raises(UserError, match="has no blur, solarize; it has .*blur_prob"):
        ViewAugmentation("mocov2", solarize=0.1, blur=0.5)


def test_built_by_name_and_says_what_it_does():
    cfg = dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=96, blur_prob=0.1)
    text = repr(TRANSFORMS.build(cfg))
    assert "mocov2" in text and "'blur_prob': 0.1" in text and "size=96" in text
