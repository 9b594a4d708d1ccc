"""Pairs: what an epoch draws, and what a sample holds."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATA_SAMPLERS, DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from gersp_mm.datasets import (
    MillionAID,
    PairedDataset,
    PairedSampler,
    PairIndex,
    collate_pairs,
    paired,
    reading,
)
from gersp_mm.datasets import (
    sampler as sampler_module,
)
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.randomness import seed_everything
from tests.support.smoke import write_images, write_pair

VIEW = dict(type="gersp_mm.ViewAugmentation", preset="mocov2", size=16)


def sampler_of(rs: int, natural: int, **kwargs: Any) -> PairedSampler:
    kwargs.setdefault("seed", 3)
    return PairedSampler(SimpleNamespace(sizes=(rs, natural)), **kwargs)


def epoch_of(sampler: PairedSampler, epoch: int = 0) -> list[PairIndex]:
    sampler.set_epoch(epoch)
    return list(sampler)


def columns(pairs: list[PairIndex]) -> tuple[list[int], list[int], list[int]]:
    return tuple(map(list, zip(*pairs)))


# --- the sampler -----------------------------------------------------------------------------


@pytest.mark.parametrize(("rs", "natural"), [(50, 17), (17, 50), (30, 30), (50, 1)])
def test_an_epoch_takes_the_longer_source_once_and_the_shorter_evenly(rs, natural):
    pairs = epoch_of(sampler_of(rs, natural))
    assert len(pairs) == len(sampler_of(rs, natural)) == max(rs, natural)
    longer, shorter = columns(pairs)[:2] if rs >= natural else columns(pairs)[1::-1]
    assert sorted(longer) == list(range(max(rs, natural)))
    assert longer != sorted(longer)
    times = Counter(shorter)
    assert set(times) == set(range(min(rs, natural)))
    assert max(times.values()) - min(times.values()) <= 1


def test_sources_are_permuted_independently_and_anew_in_every_epoch():
    sampler = sampler_of(40, 40)
    epochs = [columns(epoch_of(sampler, epoch)) for epoch in range(4)]
    orders = [order for rs, natural, _ in epochs for order in (rs, natural)]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            # two independent permutations agree in one place on average
            assert sum(a == b for a, b in zip(order, other)) < 8
    partners = [dict(zip(rs, natural)) for rs, natural, _ in epochs]
    assert all(len({partner[i] for partner in partners}) > 1 for i in range(20))


def test_draws_are_a_function_of_seed_and_epoch():
    one, same = sampler_of(25, 60), sampler_of(25, 60)
    late = epoch_of(one, 5)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert epoch_of(same, 5) == late  # whichever epochs were drawn before
    assert epoch_of(one, 4) != late
    assert epoch_of(sampler_of(25, 60, seed=4), 5) != late
    seeds = [seed for epoch in range(3) for seed in columns(epoch_of(one, epoch))[2]]
    assert len(set(seeds)) == len(seeds)
    assert all(type(number) is int and number >= 0 for pair in late for number in pair)


def test_a_seed_is_drawn_where_none_is_given():
    sampler = sampler_of(30, 30, seed=None)
    assert isinstance(sampler.seed, int)
    assert epoch_of(sampler) == epoch_of(sampler_of(30, 30, seed=sampler.seed))


@pytest.mark.parametrize(("total", "ranks"), [(48, 4), (50, 4), (7, 7)])
def test_ranks_share_the_pairs_of_one_process(monkeypatch, total, ranks):
    alone = epoch_of(sampler_of(total, total // 2), 2)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(sampler_module, "get_dist_info", lambda rank=rank: (rank, ranks))
        sampler = sampler_of(total, total // 2)
        assert len(sampler) == total // ranks
        shares.append(epoch_of(sampler, 2))
    union = [pair for share in shares for pair in share]
    assert len(set(union)) == len(union) == total // ranks * ranks
    assert set(union) == set(alone[: len(union)])
    # step k of all ranks together is step k of one process with the whole batch
    assert [share[0] for share in shares] == alone[:ranks]


def test_fewer_pairs_than_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(sampler_module, "get_dist_info", lambda: (0, 8))
    with pytest.raises(UserError, match="5 pairs cannot be shared by 8 ranks"):
        sampler_of(5, 3)


def test_locked_pairs_follow_the_modulo_rule_of_the_released_code():
    sampler = sampler_of(7, 20, pairing="locked")
    for epoch in range(3):
        rs, natural, _ = columns(epoch_of(sampler, epoch))
        assert sorted(natural) == list(range(20)) and natural != sorted(natural)
        assert rs == [number % 7 for number in natural]
    rs, natural, _ = columns(epoch_of(sampler_of(20, 7, pairing="locked")))
    assert natural == [number % 7 for number in rs]


def test_short_epochs_of_locked_pairs_reach_every_image():
    sampler = sampler_of(6, 20, pairing="locked", epoch_length="remote_sensing")
    seen = set()
    for epoch in range(60):
        rs, natural, _ = columns(epoch_of(sampler, epoch))
        assert len(set(natural)) == 6 and rs == [number % 6 for number in natural]
        seen.update(natural)
    assert seen == set(range(20))


@pytest.mark.parametrize(
    ("epoch_length", "length"),
    [("longer", 20), ("shorter", 6), ("remote_sensing", 6), ("natural", 20)],
)
def test_epoch_length(epoch_length, length):
    sampler = sampler_of(6, 20, epoch_length=epoch_length)
    rs, natural, _ = columns(epoch_of(sampler))
    assert len(sampler) == len(rs) == length
    assert sorted(rs)[::-1][: length // 6] == [5] * (length // 6)
    assert len(set(natural)) == length


def test_one_source_alone():
    rs, _, _ = columns(epoch_of(sampler_of(9, 0, epoch_length="shorter")))
    assert sorted(rs) == list(range(9))
    _, natural, _ = columns(epoch_of(sampler_of(0, 9)))
    assert sorted(natural) == list(range(9))


def test_without_shuffling_both_sources_go_in_order():
    rs, natural, _ = columns(epoch_of(sampler_of(3, 7, shuffle=False), 4))
    assert natural == list(range(7))
    assert rs == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(pairing="loose"), "pairing must be 'independent' or 'locked', got 'loose'"),
        (dict(epoch_length="both"), "epoch_length must be one of 'longer'.*'natural'.*got 'both'"),
    ],
)
def test_unknown_choices_list_the_known(kwargs, message):
    with pytest.raises(UserError, match=message):
        sampler_of(5, 5, **kwargs)


def test_epoch_of_a_source_that_is_left_out_is_refused():
    with pytest.raises(UserError, match="name a source that the dataset has, got 'natural'"):
        sampler_of(5, 0, epoch_length="natural")


# --- the dataset -----------------------------------------------------------------------------


def config(data: Path, **kwargs: Any) -> dict[str, Any]:
    return {
        "remote_sensing": dict(type="gersp_mm.MillionAID", data_root=str(data / "rs")),
        "natural": dict(type="CustomDataset", data_root=str(data / "natural")),
        "rs_pipeline": [VIEW],
        "natural_pipeline": [VIEW],
        **kwargs,
    }


def test_built_by_name_with_its_sampler(pair_data):
    dataset = DATASETS.build(dict(type="gersp_mm.PairedDataset", **config(pair_data)))
    sampler = DATA_SAMPLERS.build(
        dict(type="gersp_mm.PairedSampler"), default_args=dict(dataset=dataset, seed=1)
    )
    assert (len(dataset), dataset.sizes, len(sampler)) == (24, (24, 24), 24)
    assert dataset.metainfo["classes"] == ("class_0", "class_1", "class_2")


def test_sample_holds_two_views_of_one_file_and_the_labelled_image(pair_data):
    dataset = PairedDataset(**config(pair_data))
    sample = dataset[PairIndex(5, 20, seed=1)]
    inputs, data_sample = sample["inputs"], sample["data_samples"]
    assert list(inputs) == ["rs_query", "rs_key", "natural"]
    for view in inputs.values():
        assert view.dtype == torch.uint8 and view.shape == (3, 16, 16)
    assert not torch.equal(inputs["rs_query"], inputs["rs_key"])
    assert data_sample.gt_label.tolist() == [2]  # 20 of three classes of 8
    assert Path(data_sample.rs_path) == pair_data / "rs" / "005.jpg"
    assert Path(data_sample.natural_path) == pair_data / "natural" / "class_2" / "004.jpg"
    assert data_sample.bad_images == []


def test_sample_is_a_function_of_its_index_and_leaves_the_global_states_alone(pair_data):
    dataset = PairedDataset(**config(pair_data))
    first = dataset[PairIndex(5, 20, seed=1)]["inputs"]
    seed_everything(8)
    expected = random.random(), np.random.random(), torch.rand(()).item()
    seed_everything(8)
    again, other = dataset[(5, 20, 1)]["inputs"], dataset[PairIndex(5, 20, seed=2)]["inputs"]
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_plain_numbers_are_pairs_of_the_same_number(tmp_path):
    dataset = PairedDataset(**config(write_pair(tmp_path, 5, classes=2, per_class=4)))
    for index, rs, natural in [(0, 0, 0), (7, 2, 7), (np.int64(6), 1, 6), (-1, 2, 7)]:
        sample = dataset[index]["data_samples"]
        assert sample.rs_path.endswith(f"{rs:03d}.jpg")
        assert sample.gt_label.item() == natural // 4
    assert len(list(iter(dataset))) == len(dataset) == 8
    with pytest.raises(IndexError):
        dataset[8]


def test_each_file_is_decoded_once(pair_data, monkeypatch):
    opened = Counter()

    def counting(path, **kwargs):
        opened[path] += 1
        return load_pixels(path, **kwargs)

    load_pixels = paired.load_pixels
    monkeypatch.setattr(paired, "load_pixels", counting)
    sample = PairedDataset(**config(pair_data))[PairIndex(3, 9, seed=0)]["data_samples"]
    assert opened == {sample.rs_path: 1, sample.natural_path: 1}


def batches(dataset: PairedDataset, workers: int, epochs: int = 2) -> list[dict[str, Any]]:
    sampler = PairedSampler(dataset, seed=11)
    loader = DataLoader(
        dataset,
        batch_size=5,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_pairs,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        iterator = iter(loader)  # PyTorch itself draws a number here
        seed_everything(123)
        found += iterator
        drawn = random.random(), np.random.random(), torch.rand(()).item()
        seed_everything(123)
        assert drawn == (random.random(), np.random.random(), torch.rand(()).item())
    return found


@pytest.fixture(scope="module")
def loaded_by_main(pair_data) -> list[dict[str, Any]]:
    return batches(PairedDataset(**config(pair_data)), 0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_loads_the_same(pair_data, loaded_by_main, workers):
    loaded = batches(PairedDataset(**config(pair_data)), workers)
    assert len(loaded) == len(loaded_by_main) == 10
    for batch, expected in zip(loaded, loaded_by_main):
        assert batch["inputs"].keys() == expected["inputs"].keys()
        for name, images in expected["inputs"].items():
            assert torch.equal(batch["inputs"][name], images)
        assert torch.equal(batch["gt_label"], expected["gt_label"])
        for one, other in zip(batch["data_samples"], expected["data_samples"]):
            assert (one.rs_path, one.natural_path) == (other.rs_path, other.natural_path)


def test_epochs_augment_differently(loaded_by_main):
    first, second = (
        {
            sample.rs_path: view
            for batch in part
            for sample, view in zip(batch["data_samples"], batch["inputs"]["rs_query"])
        }
        for part in (loaded_by_main[:5], loaded_by_main[5:])
    )
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[path], second[path]) for path in first)


def test_without_natural_images(pair_data):
    dataset = PairedDataset(**config(pair_data, natural=None))
    sample = dataset[PairIndex(5, 0, seed=1)]
    assert list(sample["inputs"]) == ["rs_query", "rs_key"]
    assert "gt_label" not in sample["data_samples"]
    assert dataset.sizes == (24, 0) and dataset.metainfo == {}
    # the views are those of the same pair with a natural image
    both = PairedDataset(**config(pair_data))[PairIndex(5, 0, seed=1)]
    assert torch.equal(sample["inputs"]["rs_key"], both["inputs"]["rs_key"])


def test_without_remote_sensing_images(pair_data):
    dataset = PairedDataset(**config(pair_data, remote_sensing=None))
    sample = dataset[PairIndex(0, 10, seed=1)]
    assert list(sample["inputs"]) == ["natural"]
    assert sample["data_samples"].gt_label.tolist() == [1]
    assert dataset.sizes == (0, 24)


def test_without_any_source_is_refused():
    with pytest.raises(UserError, match="needs remote_sensing, natural or both"):
        PairedDataset()


def test_natural_images_without_labels_are_refused(pair_data):
    unlabelled = dict(type="gersp_mm.MillionAID", data_root=str(pair_data / "natural"))
    with pytest.raises(UserError, match=r"natural images \(MillionAID\) have no gt_label. Use"):
        PairedDataset(**config(pair_data, natural=unlabelled))


@pytest.mark.parametrize("field", ["remote_sensing", "natural"])
def test_source_that_is_not_there_names_the_field(pair_data, tmp_path, field):
    missing = dict(type="CustomDataset", data_root=str(tmp_path / "nowhere"))
    expected = rf"dataset\.{field} cannot be listed \(.*\). Check its data_root '.*nowhere'"
    with pytest.raises(UserError, match=expected):
        PairedDataset(**config(pair_data, **{field: missing}))


@pytest.mark.parametrize(
    "pipeline",
    [
        [dict(type="torchvision/Resize", size=(16, 16)), dict(type="torchvision/PILToTensor")],
        [dict(type="torchvision/Resize", size=(16, 16))],
        [dict(type="torchvision/Resize", size=(16, 16)), dict(type="PILToNumpy")],
        # the same through mmpretrain's own transforms, which work on arrays
        [
            dict(type="torchvision/Resize", size=(16, 16)),
            dict(type="PILToNumpy"),
            dict(type="RandomFlip", prob=1.0),
            dict(type="RandomFlip", prob=1.0),
            dict(type="CenterCrop", crop_size=16),
        ],
    ],
    ids=["tensor", "PIL", "array", "mmpretrain"],
)
def test_host_transforms_make_rgb_uint8_views(pair_data, pipeline):
    dataset = PairedDataset(**config(pair_data, rs_pipeline=pipeline))
    view = dataset[PairIndex(4, 0, seed=0)]["inputs"]["rs_query"]
    with Image.open(pair_data / "rs" / "004.jpg") as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    assert view.dtype == torch.uint8
    assert np.array_equal(view.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("pipeline", "what"),
    [
        ([dict(type="torchvision/ToTensor")], r"torch.float32 values of shape \(3, 40, 48\)"),
        ([dict(type="torchvision/Grayscale")], r"torch.uint8 values of shape \(1, 40, 48\)"),
    ],
)
def test_pipeline_that_leaves_something_else_is_refused(pair_data, pipeline, what):
    dataset = PairedDataset(**config(pair_data, natural_pipeline=pipeline))
    with pytest.raises(UserError, match=rf"dataset\.natural_pipeline gives {what}. End it with"):
        dataset[PairIndex(0, 0, seed=0)]


def test_crops_of_huge_images_are_not_taken_for_an_attack(pair_data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    dataset = PairedDataset(**config(pair_data))
    for seed in range(5):
        assert dataset[PairIndex(0, 0, seed)]["data_samples"].bad_images == []
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Remote-sensing images 3, 4 and the last, and the first natural image, are unreadable."""
    write_pair(tmp_path, 12, classes=2, per_class=6)
    (tmp_path / "rs/003.jpg").write_bytes(b"")
    (tmp_path / "rs/004.jpg").write_text("no image")
    content = (tmp_path / "rs/011.jpg").read_bytes()
    (tmp_path / "rs/011.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "natural/class_0/000.jpg").unlink()
    (tmp_path / "natural/class_0/000.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def test_bad_images_are_replaced_by_the_next_and_named(damaged):
    dataset = PairedDataset(**config(damaged))
    sample = dataset[PairIndex(3, 1, seed=4)]
    assert sample["data_samples"].rs_path.endswith("005.jpg")
    assert sample["data_samples"].bad_images == [
        ("remote_sensing", str(damaged / "rs/003.jpg"), "empty file"),
        ("remote_sensing", str(damaged / "rs/004.jpg"), "not an image of a known format"),
    ]
    good = dataset[PairIndex(5, 1, seed=4)]
    assert good["data_samples"].bad_images == []
    for name, image in good["inputs"].items():
        assert torch.equal(sample["inputs"][name], image)
    # the last is followed by the first; labels belong to the image that is used
    sample = dataset[PairIndex(11, 0, seed=0)]["data_samples"]
    assert sample.rs_path.endswith("000.jpg")
    assert sample.natural_path.endswith("class_0/001.jpg") and sample.gt_label.item() == 0
    found = [(source, Path(path).name) for source, path, _ in sample.bad_images]
    assert found == [("remote_sensing", "011.jpg"), ("natural", "000.jpg")]


def test_label_goes_with_the_image_that_is_used(damaged):
    for image in (damaged / "natural/class_0").iterdir():
        image.write_bytes(b"")
    sample = PairedDataset(**config(damaged))[PairIndex(0, 2, seed=0)]["data_samples"]
    assert len(sample.bad_images) == 4
    assert sample.gt_label.item() == 1 and sample.natural_path.endswith("class_1/000.jpg")


def test_too_many_bad_images_in_a_row_stop_the_run(damaged):
    for image in (damaged / "rs").iterdir():
        image.write_bytes(b"")
    expected = r"12 images of MillionAID in a row cannot be read, the last one .*\.jpg \(empty file"
    with pytest.raises(UserError, match=expected):
        next(iter(DataLoader(PairedDataset(**config(damaged)), 4)))


def test_how_many_in_a_row_depends_on_the_size_of_the_source(tmp_path, monkeypatch):
    root = tmp_path / "rs"
    write_images(root, 1)
    (root / "000.jpg").rename(root / "999.jpg")
    for number in range(59):
        (root / f"{number:03d}.jpg").touch()
    monkeypatch.setattr(reading, "MAX_BAD_IN_A_ROW", 10)
    dataset = PairedDataset(remote_sensing=MillionAID(str(root)), rs_pipeline=[VIEW])
    assert len(dataset[PairIndex(50, 0, 0)]["data_samples"].bad_images) == 9
    with pytest.raises(UserError, match="10 images of MillionAID in a row"):
        dataset[PairIndex(20, 0, 0)]
    monkeypatch.setattr(reading, "MAX_BAD_SHARE_IN_A_ROW", 0.8)  # of 60: 48
    assert len(dataset[PairIndex(20, 0, 0)]["data_samples"].bad_images) == 39
    with pytest.raises(UserError, match="48 images of MillionAID in a row"):
        dataset[PairIndex(0, 0, 0)]


def test_cached_images_are_decoded_once_and_the_oldest_forgotten(pair_data, monkeypatch):
    opened = Counter()

    def counting(path, **kwargs):
        opened[path] += 1
        return load_pixels(path, **kwargs)

    load_pixels = paired.load_pixels
    plain = PairedDataset(**config(pair_data))
    expected = [plain[PairIndex(number, number, seed=7)] for number in range(3)]
    monkeypatch.setattr(paired, "load_pixels", counting)
    dataset = PairedDataset(**config(pair_data), cache_images=4)
    for _ in range(2):
        for number in range(2):
            sample = dataset[PairIndex(number, number, seed=7)]
            for name, view in expected[number]["inputs"].items():
                assert torch.equal(sample["inputs"][name], view)
    assert set(opened.values()) == {1} and len(opened) == 4
    dataset[PairIndex(2, 2, seed=7)]  # makes room by forgetting the first pair
    dataset[PairIndex(1, 1, seed=7)]
    assert set(opened.values()) == {1}
    dataset[PairIndex(0, 0, seed=7)]
    assert sorted(opened.values()) == [1, 1, 1, 1, 2, 2]
