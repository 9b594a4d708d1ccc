"""Feature extraction against direct computation, in one process and in two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from gersp_mm.evaluation import EvalImages, extract_features
from gersp_mm.evaluation.features import pool
from gersp_mm.utils.errors import UserError
from tests.smoke import write_classes

MEAN, STD = (100.0, 110.0, 120.0), (50.0, 40.0, 30.0)


class SmallBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.conv(x)
        return x, self.drop(self.norm(x).relu())


def make_backbone() -> SmallBackbone:
    torch.manual_seed(3)
    backbone = SmallBackbone()
    backbone.norm.running_mean.uniform_(-1, 1)
    backbone.norm.running_var.uniform_(0.5, 2)
    return backbone


def make_dataset(count: int = 11) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorDataset(images, torch.arange(count) % 4)


def by_hand(backbone: SmallBackbone, dataset: TensorDataset) -> np.ndarray:
    """Image by image, in float64, BatchNorm and ReLU written out."""
    conv = nn.Conv2d(3, 6, 3, padding=1).double()
    conv.load_state_dict({k: v.double() for k, v in backbone.conv.state_dict().items()})
    norm = {
        name: value.double().view(-1, 1, 1) for name, value in backbone.norm.state_dict().items()
    }
    rows = []
    for image, _ in dataset:
        x = (image.double() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        x = conv(x[None])[0]
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt()
        x = (x * norm["weight"] + norm["bias"]).clamp(min=0)
        rows.append(x.reshape(6, -1).sum(1).div(64).detach().numpy())
    return np.stack(rows)


def test_values_labels_and_untouched_model():
    backbone, dataset = make_backbone().train(), make_dataset()
    backbone.norm.eval()  # a frozen part of a model in training
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    features, labels = extract_features(
        backbone, dataset, mean=MEAN, std=STD, batch_size=4, progress=None
    )
    assert features.dtype == torch.float32 and not features.requires_grad
    np.testing.assert_allclose(features.numpy(), by_hand(backbone, dataset), rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [i % 4 for i in range(11)]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.training and backbone.drop.training and not backbone.norm.training


def test_modes_come_back_after_an_error():
    class Failing(SmallBackbone):
        def forward(self, x):
            raise RuntimeError("out of memory")

    backbone = Failing().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        extract_features(backbone, make_dataset(), progress=None)
    assert backbone.training and backbone.norm.training


def test_the_backbone_of_a_model_is_used():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = make_backbone()

        def forward(self, x):
            raise AssertionError("the whole model must not run")

    options = dict(mean=MEAN, std=STD, progress=None)
    whole = extract_features(Model(), make_dataset(), **options)[0]
    assert torch.equal(whole, extract_features(make_backbone(), make_dataset(), **options)[0])


def test_pooling():
    maps = torch.arange(12.0).view(1, 3, 2, 2)
    assert pool((maps * 0, maps)).tolist() == [[1.5, 5.5, 9.5]]
    assert pool([torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])]).tolist() == [[2.0, 4.0]]
    assert pool(torch.ones(2, 3, dtype=torch.float16)).dtype == torch.float32
    with pytest.raises(UserError, match=r"\(4,\).*N×D×H×W"):
        pool(torch.ones(4))


def test_empty_dataset():
    with pytest.raises(UserError, match="no images"):
        extract_features(make_backbone(), make_dataset(0), progress=None)


COUNTS = (1, 7)  # fewer images than ranks; a last uneven share


def _extract_in_process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    for count in COUNTS:
        result = extract_features(
            make_backbone(), make_dataset(count), mean=MEAN, std=STD, batch_size=2, progress=None
        )
        torch.save(result, f"{folder}/{count}_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_two_processes_give_the_whole_in_order(tmp_path: Path):
    mp.spawn(_extract_in_process, (2, str(tmp_path)), nprocs=2)
    for count in COUNTS:
        expected, labels = extract_features(
            make_backbone(), make_dataset(count), mean=MEAN, std=STD, progress=None
        )
        for rank in range(2):
            got, got_labels = torch.load(tmp_path / f"{count}_{rank}.pt", weights_only=True)
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(got_labels, labels)


def test_images_of_a_folder_and_of_a_list(tmp_path: Path):
    folder = write_classes(tmp_path / "classes with space", classes=2, per_class=3)
    images = EvalImages(folder, size=16)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    listing = tmp_path / "list.txt"
    lines = [f"{Path(p).relative_to(tmp_path)} {label + 7}" for p, label in images.samples]
    listing.write_text("\n".join([*lines, ""]))
    listed = EvalImages(listing, size=16)
    assert listed.labels.tolist() == [7, 7, 7, 8, 8, 8]
    for (a, _), (b, _) in zip(images, [listed[i] for i in range(6)]):
        assert a.dtype == torch.uint8 and torch.equal(a, b)
    assert EvalImages(folder, size=16, limit=2).labels.tolist() == [0, 1]


def test_preprocessing_is_resize_then_centre_crop(tmp_path: Path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255  # exactly the middle square
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    image, label = EvalImages(tmp_path, size=20)[0]
    assert (image.shape, label) == ((3, 20, 20), 0)
    assert (image == 255).all()
    resized, _ = EvalImages(tmp_path, size=20, resize=40)[0]
    assert (resized[:, :, 5:15] == 255).all()  # the middle half of the white square


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        ("", "lists no image"),
        ("a.jpg 1\nb.jpg\n", r"line 2: expected `path label`, found 'b.jpg'"),
        ("a.jpg cat\n", "line 1"),
    ],
)
def test_bad_lists(tmp_path: Path, content, expected):
    listing = tmp_path / "list.txt"
    if content is not None:
        listing.write_text(content)
    with pytest.raises(UserError, match=expected):
        EvalImages(listing)


def test_bad_folder_size_and_file(tmp_path: Path):
    with pytest.raises(UserError, match="one sub-folder of images a class"):
        EvalImages(tmp_path)
    folder = write_classes(tmp_path, classes=1, per_class=1)
    with pytest.raises(UserError, match="resize must be at least the size 64"):
        EvalImages(folder, size=64, resize=32)
    victim = next(folder.rglob("*.jpg"))
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{victim.name} cannot be read"):
        EvalImages(folder, size=16)[0]
