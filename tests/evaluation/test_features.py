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
from gersp_mm.evaluation import features as features_module
from gersp_mm.evaluation.features import UnreadableImage, pool, read_parts
from gersp_mm.utils.errors import UserError
from tests.support.smoke import write_classes, write_images

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


class FailingImages(TensorDataset):
    """Items 1 and 4 cannot be read."""

    def __getitem__(self, index):
        if index in (1, 4):
            raise UnreadableImage(f"{index}.jpg", "empty file")
        return super().__getitem__(index)

    def leave_out(self, unreadable: dict[int, str]) -> None:
        self.left_out = unreadable


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
    failing = FailingImages(*make_dataset(6).tensors)
    result = extract_features(
        make_backbone(), failing, mean=MEAN, std=STD, batch_size=2, progress=None
    )
    torch.save((*result, failing.left_out), f"{folder}/failing_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_two_processes_give_the_whole_in_order(tmp_path: Path):
    mp.start_processes(_extract_in_process, (2, str(tmp_path)), nprocs=2, start_method="fork")
    for count in COUNTS:
        expected, labels = extract_features(
            make_backbone(), make_dataset(count), mean=MEAN, std=STD, progress=None
        )
        for rank in range(2):
            got, got_labels = torch.load(tmp_path / f"{count}_{rank}.pt", weights_only=True)
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(got_labels, labels)
    whole = extract_features(make_backbone(), make_dataset(6), mean=MEAN, std=STD, progress=None)
    for rank in range(2):
        found = torch.load(tmp_path / f"failing_{rank}.pt", weights_only=True)
        assert found[2] == {1: "empty file", 4: "empty file"}
        for got, expected in zip(found, whole):
            torch.testing.assert_close(got, expected[[0, 2, 3, 5]], rtol=1e-5, atol=1e-6)


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


# ----------------------------------------------------------------------------- several parts


def write_parts(folder: Path, train: str = "abc", test: str = "abc") -> dict[str, Path]:
    """Write two folders with a sub-folder of different pictures for each letter."""
    for number, (part, names) in enumerate((("train", train), ("test", test))):
        for name in names:
            write_images(folder / part / name, 3, seed=10 * ord(name) + number)
    return {part: folder / part for part in ("train", "test")}


def rows(images: EvalImages, root: Path) -> list[tuple[str, int]]:
    return [(Path(path).relative_to(root).parts[1], label) for path, label in images.samples]


def as_list(folder: Path, numbers: dict[str, int]) -> Path:
    """Write a list of the images of a part, its classes numbered as said."""
    listing = folder.with_suffix(".txt")
    paths = sorted(folder.glob("*/*.jpg"))
    listing.write_text(
        "".join(f"{p.relative_to(folder.parent)} {numbers[p.parent.name]}\n" for p in paths)
    )
    return listing


def test_a_test_part_is_numbered_by_the_classes_of_training(tmp_path: Path):
    sources = write_parts(tmp_path, "abcd", "bd")
    images = read_parts(sources, size=16)
    assert sorted(set(rows(images["test"], tmp_path))) == [("b", 1), ("d", 3)]
    assert images["train"].labels.unique().tolist() == [0, 1, 2, 3]
    # by a list of the training images, whose folders name the classes
    numbers = dict(a=7, b=5, c=3, d=1)
    by_list = read_parts(dict(sources, train=as_list(sources["train"], numbers)), size=16)
    assert sorted(set(rows(by_list["test"], tmp_path))) == [("b", 5), ("d", 1)]
    assert len(read_parts(sources, size=16, limit=4)["test"]) == 4


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path: Path):
    sources = write_parts(tmp_path, "abc", "abx")
    with pytest.raises(UserError, match="classes that the train images lack: x. Remove"):
        read_parts(sources)
    (tmp_path / "test" / "x").rename(tmp_path / "x")
    (tmp_path / "test" / "empty").mkdir()  # a folder without images is no class to be tested
    assert read_parts(sources)["test"].labels.unique().tolist() == [0, 1]
    (tmp_path / "some.txt").write_text("test/b/000.jpg 1\ntest/b/001.jpg 4\n")
    with pytest.raises(UserError, match="have the label 4, which no train image has: .*b/001.jpg"):
        read_parts(dict(sources, test=tmp_path / "some.txt"))


def test_lists_that_were_numbered_apart_are_refused(tmp_path: Path):
    sources = write_parts(tmp_path, "abc", "bc")
    apart = as_list(sources["test"], dict(b=0, c=1))  # as the folders of test by themselves
    for train in (sources["train"], as_list(sources["train"], dict(a=0, b=1, c=2))):
        with pytest.raises(UserError, match="give the class [bc] the label [01], the train images"):
            read_parts(dict(train=train, test=apart))
    right = read_parts(dict(sources, test=as_list(sources["test"], dict(b=1, c=2))))
    assert right["test"].labels.unique().tolist() == [1, 2]


def test_folders_beside_a_list_without_names_are_refused_unless_they_agree(tmp_path: Path):
    sources = write_parts(tmp_path, "abc", "bc")
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((tmp_path / "train").glob("*/*.jpg"))):
        path.rename(flat / f"{number}.jpg")
    listing = tmp_path / "flat.txt"
    listing.write_text("".join(f"flat/{number}.jpg {number // 3}\n" for number in range(9)))
    with pytest.raises(
        UserError, match="have 2 class folders, but the train images have 3 labels without"
    ):
        read_parts(dict(train=listing, test=sources["test"]))


def test_pictures_in_both_parts_are_refused_or_said(tmp_path: Path):
    sources = write_parts(tmp_path)
    for name in "abc":
        with Image.open(tmp_path / f"train/{name}/000.jpg") as image:
            image.save(tmp_path / f"test/{name}/000.png")
        (tmp_path / f"test/{name}/000.jpg").unlink()
    with pytest.raises(UserError, match="3 of 9 test images are also in train"):
        read_parts(sources)
    assert len(read_parts(sources, refuse_shared=False)["test"]) == 9


# ------------------------------------------------------------------------------ unreadable images


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_left_out_and_the_rest_stays_aligned(
    tmp_path: Path, num_workers, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr(features_module, "print_log", lambda text, **_: said.append(text))
    folder = write_classes(tmp_path, classes=3, per_class=4)
    options = dict(mean=MEAN, std=STD, batch_size=2, progress=None)
    whole = EvalImages(folder, size=16)
    expected, labels = extract_features(make_backbone(), whole, **options)
    bad = {0: b"", 4: b"no image", 5: None, 11: Path(whole.samples[11][0]).read_bytes()[:300]}
    for index, content in bad.items():  # a whole batch is among them
        path = Path(whole.samples[index][0])
        path.unlink() if content is None else path.write_bytes(content)
    images = EvalImages(folder, size=16)
    images.samples = list(whole.samples)
    found, found_labels = extract_features(
        make_backbone(), images, num_workers=num_workers, **options
    )
    kept = [index for index in range(12) if index not in bad]
    torch.testing.assert_close(found, expected[kept], rtol=1e-5, atol=1e-6)
    assert found_labels.tolist() == labels[kept].tolist() == images.labels.tolist()
    assert [path for path, _ in images.samples] == [whole.samples[index][0] for index in kept]
    assert [index for index, _, _ in images.left_out] == list(bad)
    (text,) = said
    assert text.startswith("4 of 12 images cannot be read and are left out of the evaluation: ")
    assert f"{whole.samples[0][0]} (empty file), " in text and text.endswith(" and 1 more")
    # the next evaluation has the same images and says nothing any more
    again, _ = extract_features(make_backbone(), images, **options)
    assert len(again) == 8 and len(said) == 1


def test_a_class_of_which_nothing_can_be_read_is_an_error(tmp_path: Path):
    folder = write_classes(tmp_path, classes=2, per_class=2)
    for path in (folder / "class_1").iterdir():
        path.write_bytes(b"no image")
    images = EvalImages(folder, size=16)
    with pytest.raises(UserError, match=r"2 of 4 .*all of a class \(2 of label 1\): .*class_1/000"):
        extract_features(make_backbone(), images, progress=None)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="None of the 4 images can be read, .*: empty file"):
        extract_features(make_backbone(), EvalImages(folder, size=16), progress=None)


def test_bad_folder_size_and_file(tmp_path: Path):
    with pytest.raises(UserError, match="one sub-folder of images per class"):
        EvalImages(tmp_path)
    folder = write_classes(tmp_path, classes=1, per_class=1)
    with pytest.raises(UserError, match="resize must be at least the size 64"):
        EvalImages(folder, size=64, resize=32)
    victim = next(folder.rglob("*.jpg"))
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{victim.name} cannot be read"):
        EvalImages(folder, size=16)[0]
