from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gersp_mm.augmentation.device import crop_batch
from gersp_mm.datasets import ViewAugmentation


def noise(height: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("height", "width", "size", "turns"),
    [(64, 64, 64, True), (64, 64, 32, False), (50, 90, 40, True), (33, 20, 96, False)],
)
def test_equals_the_views_of_the_workers(height, width, size, turns):
    images = torch.stack([noise(height, width, seed) for seed in range(3)])
    view = ViewAugmentation(size=size, colour="device", quarter_turns=turns)
    wanted, crops = [], []
    for number in range(24):
        empty = torch.empty(images.shape[1:], dtype=torch.uint8, device="meta")
        for image in (images[number % 3], empty):
            random.seed(number)
            found = view(dict(img=image, kept_as=number % 3))
            (crops if image.is_meta else wanted).append(found["crop" if image.is_meta else "img"])
    crops, wanted = np.stack(crops), torch.stack(wanted).int()
    assert len({tuple(row[1:5]) for row in crops}) > 20
    assert (set(crops[:, 5]) == {0, 1, 2, 3}) == turns
    views = crop_batch(images, crops, size).int()
    off = (views - wanted).abs()
    assert off.max() <= 2  # of noise, the hardest image; PyTorch's weights have 16 bits
    assert (off <= 1).float().mean() > 0.9999
    assert (off == 0).float().mean() > 0.96


def test_whole_image_of_the_same_size_is_the_image():
    images = torch.stack([noise(12, 12, seed) for seed in range(2)])
    crops = np.array([[1, 0, 0, 12, 12, 0], [0, 0, 0, 12, 12, 2]])
    views = crop_batch(images, crops, 12)
    assert torch.equal(views[0], images[1])
    assert torch.equal(views[1], images[0].flip(1, 2))


def test_pixels_beside_the_crop_do_not_shine_in():
    images = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = 7
    views = crop_batch(images, np.array([[0, 4, 4, 8, 8, 0]]), 20)
    assert torch.equal(views, torch.full_like(views, 7))
