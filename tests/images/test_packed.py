"""Images inside LMDB databases are read like files, from any process."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from mmpretrain.datasets import CustomDataset
from PIL import Image

from gersp_mm.datasets import BadImageError, MillionAID, PairedDataset, load_rgb
from gersp_mm.images import packed as packed_files
from gersp_mm.images.packed import read_file
from gersp_mm.utils.errors import UserError

KEYS = ("P1.png", "sub/a b.png", "Zürich/влтава.png", "inner.lmdb/x.png")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (value, 2 * value, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_database(folder: Path, entries: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as writer:
        for key, content in entries.items():
            writer.put(key.encode(), content)
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed folder of four images, whose first pixel is 10, 20, 30 and 40 red."""
    folder = tmp_path / "packed"
    entries = {key: png(10 * number) for number, key in enumerate(KEYS, 1)}
    write_database(folder / "images.lmdb", entries)
    (folder / "images.txt").write_text("".join(f"images.lmdb/{key}\n" for key in KEYS))
    labelled = "".join(f"images.lmdb/{key} {number}\n" for number, key in enumerate(KEYS))
    (folder / "labelled.txt").write_text(labelled)
    return folder


def red(dataset, index: int) -> int:
    return load_rgb(dataset.get_data_info(index)["img_path"]).getpixel((0, 0))[0]


def test_entries_are_read_like_files(packed, tmp_path, monkeypatch):
    for number, key in enumerate(KEYS, 1):
        assert read_file(str(packed / "images.lmdb" / key)) == png(10 * number)
    (tmp_path / "link.lmdb").symlink_to(packed / "images.lmdb")
    assert read_file(f"{tmp_path}/link.lmdb/P1.png") == png(10)  # one database, two names
    monkeypatch.chdir(packed)
    assert read_file("images.lmdb//P1.png") == png(10)
    (tmp_path / "plain.lmdb").write_bytes(b"a file with that ending")
    assert read_file(str(tmp_path / "plain.lmdb")) == b"a file with that ending"


def test_what_is_not_there_is_a_bad_image(packed):
    with pytest.raises(BadImageError, match=r"no entry 'P2.png' in .*images\.lmdb"):
        load_rgb(str(packed / "images.lmdb" / "P2.png"))
    with pytest.raises(BadImageError, match=r"there is no database .*other\.lmdb"):
        load_rgb(str(packed / "other.lmdb" / "P1.png"))


def test_without_the_package_the_remedy_is_named(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match="pip install lmdb"):
        load_rgb(str(packed / "images.lmdb" / "P1.png"))


def test_packed_folder_is_a_data_root(packed):
    dataset = MillionAID(str(packed))
    assert [red(dataset, index) for index in range(4)] == [10, 20, 30, 40]
    assert [red(MillionAID(str(packed), ann_file="images.txt"), i) for i in (0, 3)] == [10, 40]
    prefixed = MillionAID(str(packed.parent), data_prefix="packed")
    assert [red(prefixed, index) for index in range(4)] == [10, 20, 30, 40]
    labelled = CustomDataset(data_root=str(packed), ann_file="labelled.txt")
    assert [red(labelled, index) for index in range(4)] == [10, 20, 30, 40]
    assert list(labelled.get_gt_labels()) == [0, 1, 2, 3]


def test_folder_that_is_not_packed_to_the_end_is_refused(packed):
    (packed / "images.txt").unlink()
    with pytest.raises(UserError, match=r"images\.txt is not a list"):
        MillionAID(str(packed))


def test_parent_and_forked_workers_each_read_on(packed):
    dataset = PairedDataset(dict(type="gersp_mm.MillionAID", data_root=str(packed)))
    assert [red(dataset.remote_sensing, index) for index in range(4)] == [10, 20, 30, 40]
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        sampler=[*range(4)] * 5,
        num_workers=2,
        multiprocessing_context="fork",
        collate_fn=lambda sample: int(sample["inputs"]["rs_query"][0, 0, 0]),
    )
    seen = []
    for number, value in enumerate(loader):
        seen.append(value)
        assert red(dataset.remote_sensing, number % 4) == value  # here, between theirs
    assert seen == [10, 20, 30, 40] * 5


def test_child_closes_nothing_of_its_parent(packed):
    path = str(packed / "images.lmdb" / "P1.png")
    assert read_file(path) == png(10)
    child = os.fork()
    if child == 0:  # it must not use what its parent opened
        os._exit(0 if not packed_files._opened and read_file(path) == png(10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_file(path) == png(10)


def test_paths_are_one_array_and_survive_pickling_and_cutting(tmp_path):
    names = [f"{number % 7}/ä {number}.jpg" for number in range(500)]
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    (tmp_path / "0").mkdir()
    (tmp_path / names[0]).touch()
    dataset = MillionAID(str(tmp_path), ann_file="list.txt")
    assert len(dataset) == 500
    assert dataset.data_bytes.nbytes == sum(len(name.encode()) for name in names)
    expected = [f"{tmp_path}/{name}" for name in names]

    def paths(part: MillionAID) -> list[str]:
        return [part.get_data_info(index)["img_path"] for index in range(len(part))]

    assert paths(dataset) == paths(pickle.loads(pickle.dumps(dataset))) == expected
    assert paths(dataset.get_subset(3)) == expected[:3]
    assert paths(dataset.get_subset([499, 0])) == [expected[499], expected[0]]
    assert paths(MillionAID(str(tmp_path), ann_file="list.txt", serialize_data=False)) == expected
    info = dataset.get_data_info(np.int64(-1))
    assert info == dict(img_path=expected[-1], sample_idx=499)
    with pytest.raises(IndexError):
        dataset.get_data_info(500)
