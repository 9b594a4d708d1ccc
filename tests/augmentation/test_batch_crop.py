from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gersp_mm.augmentation.device import crop_batch
from gersp_mm.augmentation.draw import VIEW_DRAW, unpack
from gersp_mm.datasets import ViewAugmentation
from gersp_mm.datasets.resident import ResidentView


def noise(height: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def records(*crops: tuple[int, ...]) -> np.ndarray:
    """Draws of nothing but image, top, left, height, width and turns."""
    draws = np.zeros(len(crops), VIEW_DRAW)
    for name, values in zip(VIEW_DRAW.names, zip(*crops)):
        draws[name] = values
    return draws


@pytest.mark.parametrize(
    ("height", "width", "size", "turns"),
    [(64, 64, 64, True), (64, 64, 32, False), (50, 90, 40, True), (33, 20, 96, False)],
)
def test_equals_the_views_of_the_workers(height, width, size, turns):
    images = torch.stack([noise(height, width, seed) for seed in range(3)])
    view = ViewAugmentation(size=size, colour="device", quarter_turns=turns)
    wanted, draws = [], []
    for number in range(24):
        random.seed(number)
        wanted.append(view(dict(img=images[number % 3]))["img"])
        random.seed(number)
        draws.append(ResidentView(view)(dict(shape=(height, width), number=number % 3))["draw"])
    draws, wanted = unpack(np.stack(draws)), torch.stack(wanted).int()
    assert len({tuple(draw)[1:5] for draw in draws.tolist()}) > 20
    assert (set(draws["turns"]) == {0, 1, 2, 3}) == turns
    views = crop_batch(images, draws, size).int()
    off = (views - wanted).abs()
    assert off.max() <= 2  # of noise, the hardest image; PyTorch's weights have 16 bits
    assert (off <= 1).float().mean() > 0.9999
    assert (off == 0).float().mean() > 0.96


def test_whole_image_of_the_same_size_is_the_image():
    images = torch.stack([noise(12, 12, seed) for seed in range(2)])
    views = crop_batch(images, records((1, 0, 0, 12, 12, 0), (0, 0, 0, 12, 12, 2)), 12)
    assert torch.equal(views[0], images[1])
    assert torch.equal(views[1], images[0].flip(1, 2))


def test_pixels_beside_the_crop_do_not_shine_in():
    images = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = 7
    views = crop_batch(images, records((0, 4, 4, 8, 8, 0)), 20)
    assert torch.equal(views, torch.full_like(views, 7))
