from __future__ import annotations

import os

import torch

from gersp_mm.checkpoints import latest_checkpoint


def write(folder, name, age, content=None):
    path = folder / name
    if content is None:
        torch.save(dict(weights=torch.zeros(100)), path)
    else:
        path.write_bytes(content)
    os.utime(path, (1e9 - age, 1e9 - age))
    return str(path)


def test_no_folder_and_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None
    assert latest_checkpoint(tmp_path) is None


def test_newest_by_time_of_either_kind(tmp_path):
    write(tmp_path, "epoch_2.pth", age=30)
    iteration = write(tmp_path, "iter_25.pth", age=20)
    assert latest_checkpoint(tmp_path) == iteration
    epoch = write(tmp_path, "epoch_10.pth", age=10)
    assert latest_checkpoint(tmp_path) == epoch


def test_broken_and_foreign_files_are_passed_over(tmp_path):
    whole = write(tmp_path, "epoch_1.pth", age=50)
    full = (tmp_path / "epoch_1.pth").read_bytes()
    write(tmp_path, "epoch_2.pth", age=40, content=full[: len(full) // 2])
    write(tmp_path, "epoch_3.pth", age=30, content=b"")
    write(tmp_path, ".epoch_4.pth.x1.tmp", age=20)
    write(tmp_path, "demo_backbone.pth", age=10)
    (tmp_path / "last_checkpoint").write_text("epoch_3.pth")
    assert latest_checkpoint(tmp_path) == whole
