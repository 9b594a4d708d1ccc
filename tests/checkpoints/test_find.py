"""Which checkpoint a run is resumed from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gersp_mm.checkpoints import latest_checkpoint
from gersp_mm.checkpoints.find import read_progress
from gersp_mm.utils.errors import UserError


def write(folder, name, epoch, iteration, age=0, **changes):
    content = dict(
        state_dict=dict(weights=torch.zeros(1000)),
        optimizer=dict(state={}, param_groups=[]),
        message_hub={},
        meta=dict(epoch=epoch, iter=iteration),
    )
    path = folder / name
    torch.save({k: v for k, v in {**content, **changes}.items() if v is not None}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return str(path)


def damage(path, start, count=200):
    content = bytearray(Path(path).read_bytes())
    content[start : start + count] = bytes(255 - byte for byte in content[start : start + count])
    Path(path).write_bytes(content)


def test_no_folder_and_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("age", [0, 30, -30])
def test_the_one_furthest_in_training_whatever_its_time_name_or_note(tmp_path, age):
    """Times as after a copy without them, the other way round, and in order."""
    write(tmp_path, "epoch_9.pth", 9, 900, age=0)
    furthest = write(tmp_path, "epoch_10.pth", 10, 1000, age=age)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_9.pth"))
    assert latest_checkpoint(tmp_path) == furthest
    kept = str(tmp_path / "a_copy.pth")
    os.rename(furthest, kept)
    assert latest_checkpoint(tmp_path) == kept


def test_one_from_the_middle_of_an_epoch_and_one_of_its_end(tmp_path):
    write(tmp_path, "epoch_2.pth", 2, 20)
    middle = write(tmp_path, "iter_25.pth", 2, 25, age=50)
    assert latest_checkpoint(tmp_path) == middle
    write(tmp_path, "iter_30.pth", 2, 30)
    end = write(tmp_path, "epoch_3.pth", 3, 30, age=99)
    assert latest_checkpoint(tmp_path) == end


def test_the_last_attempt_comes_before_what_an_earlier_one_had_reached(tmp_path):
    """Resumed from an earlier checkpoint, or with a larger batch and so fewer iterations."""
    write(tmp_path, "epoch_2.pth", 2, 12)
    again = write(tmp_path, "iter_7.pth", 1, 7, meta=dict(epoch=1, iter=7, attempt=1), age=9)
    assert latest_checkpoint(tmp_path) == again
    end = write(tmp_path, "epoch_3.pth", 2, 9, meta=dict(epoch=2, iter=9, attempt=1), age=99)
    assert latest_checkpoint(tmp_path) == end


def test_exports_and_best_checkpoints_do_not_come_first(tmp_path):
    resumable = write(tmp_path, "epoch_1.pth", 1, 10)
    write(tmp_path, "demo_backbone.pth", 2, None)
    write(tmp_path, "best_acc_epoch_2.pth", 2, 20, optimizer=None)
    write(tmp_path, ".epoch_4.pth.x1.tmp", 4, 40)
    assert latest_checkpoint(tmp_path) == resumable
    os.remove(resumable)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "best_acc_epoch_2.pth")


@pytest.mark.parametrize("kind", ["cut off", "empty", "bytes changed", "text"])
def test_damaged_ones_are_passed_over_and_named(tmp_path, kind):
    whole = write(tmp_path, "epoch_1.pth", 1, 10)
    bad = write(tmp_path, "epoch_2.pth", 2, 20)
    content = Path(bad).read_bytes()
    if kind == "bytes changed":
        damage(bad, content.index(bytes(4000)) + 1000)
        assert read_progress(bad) == (True, 2, 20, None, 0)
    else:
        parts = {"cut off": content[: len(content) // 2], "empty": b"", "text": b"hello\n"}
        Path(bad).write_bytes(parts[kind])
    told = []
    assert latest_checkpoint(tmp_path, warn=told.append) == whole
    assert len(told) == 1 and bad in told[0] and "damaged" in told[0]
    os.remove(whole)
    with pytest.raises(UserError, match="no checkpoint in .* can be read: .*epoch_2.pth"):
        latest_checkpoint(tmp_path)


def test_a_damaged_one_that_is_behind_is_no_reason_to_warn_twice(tmp_path):
    """What is verified is what is used; the tensors of the others are not read."""
    old = write(tmp_path, "epoch_1.pth", 1, 10)
    damage(old, Path(old).read_bytes().index(bytes(4000)) + 1000)
    newest = write(tmp_path, "epoch_2.pth", 2, 20)
    told = []
    assert latest_checkpoint(tmp_path, warn=told.append) == newest and told == []


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_no_code_of_a_candidate_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = write(tmp_path, "epoch_1.pth", 1, 10)
    write(tmp_path, "epoch_2.pth", 2, 20, state_dict=Attack())
    told = []
    assert latest_checkpoint(tmp_path, warn=told.append) == whole
    assert len(told) == 1 and not (tmp_path / "attacked").exists()
    assert "passed over a checkpoint that may hold code" in told[0] and "damaged" not in told[0]
    assert "--trust" not in told[0]  # which a run does not have


def meta(epoch, run_id):
    return dict(epoch=epoch, iter=10 * epoch, run_id=run_id)


def test_checkpoints_of_several_runs_in_two_folders(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path, "epoch_1.pth", 0, 0, meta=meta(1, "one"))
    furthest = write(tmp_path / "out", "epoch_2.pth", 0, 0, meta=meta(2, "one"))
    folders = (tmp_path, tmp_path / "out", tmp_path)
    assert latest_checkpoint(*folders) == furthest
    write(tmp_path, "best_of_another.pth", 0, 0, meta=meta(3, "two"), optimizer=None)
    assert latest_checkpoint(*folders) == furthest  # weights alone are not resumed
    write(tmp_path / "out", "epoch_3.pth", 0, 0, meta=meta(3, "two"))
    text = r"of 2 runs: run one \(epoch_1.pth to epoch_2.pth, epoch 2"
    with pytest.raises(UserError, match=text):
        latest_checkpoint(*folders)
