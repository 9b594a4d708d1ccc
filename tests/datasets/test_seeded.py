"""Random numbers by place in the run, and passes that start in the middle."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DATASETS
from torch.utils.data import BatchSampler, DataLoader

from gersp_mm.datasets.seeded import (
    SampleIndex,
    SeededDataset,
    find_private_randomness,
    seed_samples,
)
from tests.support.smoke import write_classes


class Noisy:
    """Gives the index and one number of each generator; counts what is read."""

    metainfo = dict(classes=("a", "b"))

    def __init__(self, size=10):
        self.size = size
        self.read = []
        self.pipeline = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        if index == 3:  # cannot be used: another one is drawn, as MMEngine's datasets do
            index = np.random.randint(0, len(self))
        return int(index), random.random(), float(np.random.rand()), float(torch.rand(()))


class InPairs(BatchSampler):
    """Puts even and odd indices together, as mmdet's batch sampler does with image shapes."""

    def __iter__(self):
        waiting = {0: [], 1: []}
        for index in self.sampler:
            bucket = waiting[index % 2]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                yield list(bucket)
                bucket.clear()
        rest = waiting[0] + waiting[1]
        while rest:
            yield rest[: self.batch_size]
            rest = rest[self.batch_size :]


def loader_of(sampler=DefaultSampler, batch_sampler=None, **options):
    dataset = Noisy()
    drawn = sampler(dataset, seed=5)
    if batch_sampler is None:
        options.update(batch_size=4, sampler=drawn)
    else:
        options.update(batch_sampler=batch_sampler(drawn, 4, False))
    return DataLoader(dataset, collate_fn=list, **options)


def run(loader, start, count, by_epoch=True):
    """The batches from ``start`` on, of passes of three, or of one that does not end."""
    batches = seed_samples(loader)
    found = []
    number, done = divmod(start, 3) if by_epoch else batches.locate(start)
    while len(found) < count:
        if by_epoch:
            for sampler in (loader.sampler, getattr(batches, "sampler", None)):
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(number)
        batches.begin(0, number, done)
        for batch in loader:
            found.append(batch)
            if len(found) == count:
                break
        number, done = number + 1, 0
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_sampler", [None, InPairs])
def test_a_pass_goes_on_exactly_and_reads_nothing_before(workers, batch_sampler):
    whole = run(loader_of(batch_sampler=batch_sampler), 0, 6)
    assert len({sample for batch in whole for sample in batch}) == 20  # no two are the same
    torch.manual_seed(99)  # what was drawn before plays no part
    loader = loader_of(batch_sampler=batch_sampler, num_workers=workers)
    read = loader.dataset.read
    assert run(loader, 4, 2) == whole[4:]
    if not workers:
        assert len(read) == sum(map(len, whole[4:]))


@pytest.mark.parametrize("sampler", [InfiniteSampler, DefaultSampler])
def test_an_endless_run_goes_on_exactly_and_reads_nothing_before(sampler):
    def batches(start, count):
        loader = loader_of(sampler)
        found = run(loader, start, count, by_epoch=False)
        return found, len(loader.dataset.read)

    whole, _ = batches(0, 3)
    assert len({sample for batch in whole for sample in batch}) == sum(map(len, whole))
    rest, read = batches(1, 2)
    assert rest == whole[1:]
    assert read == sum(map(len, rest))
    _, read = batches(40_000, 1)
    assert read == 4


def test_the_main_process_keeps_its_random_states():
    dataset = SeededDataset(Noisy())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = Noisy()[0][1:]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    dataset[SampleIndex(3, (0, 1, 2))]
    assert Noisy()[0][1:] == expected


def test_a_sample_depends_on_each_of_its_numbers_and_on_nothing_else():
    dataset = SeededDataset(Noisy())
    numbers = [(0, 1, 2, 3), (9, 1, 2, 3), (0, 9, 2, 3), (0, 1, 9, 3), (0, 1, 2, 9)]
    samples = [dataset[SampleIndex(3, each)] for each in numbers]
    assert len(set(samples)) == 5
    assert dataset[SampleIndex(3, numbers[0])] == samples[0]  # with the other image drawn for it


def test_the_wrapped_dataset_shows_through():
    dataset = pickle.loads(pickle.dumps(SeededDataset(Noisy(7))))
    assert dataset.metainfo == Noisy.metainfo and len(dataset) == 7
    dataset.pipeline = ["another"]
    assert dataset._wrapped.pipeline == ["another"]
    assert not hasattr(dataset, "__getitems__") and not hasattr(dataset, "get_cat_ids")
    index = pickle.loads(pickle.dumps(SampleIndex(4, (1, 2))))
    assert index == 4 and index.numbers == (1, 2)


def test_transforms_with_a_memory_or_a_generator_of_their_own_are_named():
    class CachedMosaic:
        def __init__(self):
            self.results_cache = []

        def __call__(self, results):
            return results

    class Outside(CachedMosaic):
        def __init__(self):
            self.inner = [np.random.default_rng(0)]

    class Plain(CachedMosaic):
        def __init__(self):
            self.scale = (1, 2)

    dataset, around = Noisy(), Noisy()
    dataset.pipeline = [Plain(), CachedMosaic()]
    around.dataset, around.pipeline = dataset, [Outside()]
    assert sorted(find_private_randomness(SeededDataset(around))) == [
        "CachedMosaic keeps images of earlier samples",
        "Outside has its own random generator",
    ]
    around.pipeline, dataset.pipeline = [], [Plain()]
    assert find_private_randomness(around) == []


@pytest.mark.parametrize("wrapper", ["ConcatDataset", "RepeatDataset", "ClassBalancedDataset",
                                     "KFoldDataset", "MultiImageMixDataset"])  # fmt: skip
def test_samples_of_the_hosts_wrappers_depend_on_their_place_alone(wrapper, tmp_path):
    """A mosaic draws its other images; a flip is drawn for each of them."""
    write_classes(tmp_path / "images", per_class=2)
    host, steps = "mmpretrain", [dict(type="RandomFlip", prob=0.5), dict(type="PackInputs")]
    if wrapper == "MultiImageMixDataset":
        host, steps = "mmdet", [dict(type="mmpretrain.RandomFlip", prob=0.5), dict(type=BoxOfWhole)]
    pytest.importorskip(host)
    inner = dict(type="mmpretrain.CustomDataset", data_root=str(tmp_path / "images"),
                 pipeline=[dict(type="LoadImageFromFile"), *steps])  # fmt: skip
    around = {
        "ConcatDataset": dict(type="ConcatDataset", datasets=[inner, inner]),
        "RepeatDataset": dict(type="RepeatDataset", dataset=inner, times=3),
        "ClassBalancedDataset": dict(
            type="ClassBalancedDataset", dataset=inner, oversample_thr=0.9),
        "KFoldDataset": dict(type="mmpretrain.KFoldDataset", dataset=inner, num_splits=2),
        "MultiImageMixDataset": dict(
            type="mmdet.MultiImageMixDataset", dataset=inner,
            pipeline=[dict(type="mmdet.Mosaic", img_scale=(32, 32))]),
    }[wrapper]  # fmt: skip
    dataset = SeededDataset(DATASETS.build(around))

    def pixels(index, position):
        sample = dataset[SampleIndex(index, (0, 0, 0, position))]
        return np.asarray(sample["inputs"] if "inputs" in sample else sample["img"]).tobytes()

    first = [pixels(1, position) for position in range(12)]
    assert 1 < len(set(first)) <= 12
    np.random.rand(7), random.random(), torch.rand(3)
    assert [pixels(1, position) for position in reversed(range(12))] == first[::-1]


class BoxOfWhole:
    """Gives an image one box, as a mosaic needs it."""

    def __call__(self, results):
        height, width = results["img"].shape[:2]
        from mmdet.structures.bbox import HorizontalBoxes

        boxes = HorizontalBoxes(torch.tensor([[0.0, 0, width, height]]))
        return dict(results, gt_bboxes=boxes, gt_bboxes_labels=np.zeros(1, np.int64),
                    gt_ignore_flags=np.zeros(1, bool))  # fmt: skip
