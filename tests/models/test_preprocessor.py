"""Normalisation of batches."""

from __future__ import annotations

import pytest
import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmpretrain.structures import DataSample

from gersp_mm.datasets import ViewAugmentation, collate_pairs
from gersp_mm.models import PairedDataPreprocessor
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import seed_everything


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


def samples(count: int, **view) -> list[dict]:
    """What PairedDataset gives, of noise."""
    augment = ViewAugmentation("mocov2", size=16, **view)
    found = []
    for number in range(count):
        seed_everything(number)
        results = augment(dict(img=torch.randint(0, 256, (3, 24, 20), dtype=torch.uint8)))
        sample = dict(
            inputs=dict(natural=results["img"]),
            data_samples=DataSample().set_gt_label(10 * number),
        )
        found.append({**sample, "draw": dict(natural=results["draw"])} if view else sample)
    return found


def test_labels_travel_as_one_tensor_and_come_back():
    batch = collate_pairs(samples(5))
    assert all("gt_label" not in sample for sample in batch["data_samples"])
    assert batch["gt_label"].tolist() == [0, 10, 20, 30, 40]
    data = PairedDataPreprocessor()(batch)
    assert data.keys() == {"inputs", "data_samples"}
    assert [int(s.gt_label) for s in data["data_samples"]] == [0, 10, 20, 30, 40]
    again = PairedDataPreprocessor()(default_collate(samples(5)))
    assert torch.equal(again["inputs"]["natural"], data["inputs"]["natural"])
    assert [int(s.gt_label) for s in again["data_samples"]] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("collate", [collate_pairs, default_collate])
def test_colour_work_left_to_the_device_is_done(collate):
    done_here = PairedDataPreprocessor()(collate(samples(6, colour="device")))
    done_before = PairedDataPreprocessor()(collate(samples(6)))
    assert done_here.keys() == {"inputs", "data_samples"}
    preprocessor = PairedDataPreprocessor()
    levels = [data["inputs"]["natural"] * preprocessor.std for data in (done_here, done_before)]
    assert (levels[0] - levels[1]).abs().mean() < 0.3
    untouched = samples(6, colour="device")
    assert (
        levels[0] - collate(untouched)["inputs"]["natural"] + preprocessor.mean
    ).abs().mean() > 3


def test_batches_stay_channels_last():
    images = collate_pairs(samples(3))["inputs"]["natural"]
    assert images.is_contiguous(memory_format=torch.channels_last)
    normalised = PairedDataPreprocessor()(dict(inputs=images))["inputs"]
    assert normalised.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "collate",
    [pseudo_collate, list, lambda found: found[0], lambda found: dict(images=found)],
    ids=["pseudo", "list", "one sample", "other names"],
)
def test_a_batch_of_another_collate_function_names_ours(collate):
    with pytest.raises(UserError, match=r"N×3×H×W.*collate_fn=gersp_mm.collate_pairs"):
        PairedDataPreprocessor()(collate(samples(2)))
