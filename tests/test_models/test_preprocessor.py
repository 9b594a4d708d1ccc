"""Normalisation of batches."""

from __future__ import annotations

import pytest
import torch

from gersp_mm.models import PairedDataPreprocessor


@pytest.mark.parametrize("autocast", [False, True])
def test_values_of_every_entry(autocast):
    preprocessor = PairedDataPreprocessor(mean=[10, 20, 30], std=[2, 4, 5])
    image = torch.tensor([12, 28, 40], dtype=torch.uint8).view(1, 3, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        data = preprocessor(dict(inputs=dict(a=image, b=image.repeat(2, 1, 1, 1)), data_samples=[]))
    expected = torch.tensor([1.0, 2.0, 2.0]).view(1, 3, 1, 1)
    assert data["inputs"]["a"].dtype == torch.float32
    assert torch.equal(data["inputs"]["a"], expected)
    assert torch.equal(data["inputs"]["b"], expected.repeat(2, 1, 1, 1))


def test_a_plain_tensor_and_the_default_statistics():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    normalised = PairedDataPreprocessor()(dict(inputs=images))["inputs"]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(normalised, (images / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_statistics_are_no_part_of_a_checkpoint():
    assert not PairedDataPreprocessor().state_dict()
