"""Files that are whole or not there, and a list that several processes write."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest
import torch

from gersp_mm.utils.files import (
    append_missing_entries,
    escape_name,
    file_sha256,
    remove_temporaries,
    replacing,
    save_atomically,
    unescape_name,
)


def test_content_appears_only_when_the_block_is_done(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["a.txt"]


def test_failure_keeps_the_old_content_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.txt")]
    assert modes[0] == modes[1]


def test_save_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_atomically(dict(x=torch.arange(3)), path)

    def dies_half_way(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", dies_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_atomically(dict(x=torch.zeros(3)), path)
    assert torch.load(path, weights_only=True)["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.pth"]


def test_same_content_gives_the_same_file(tmp_path):
    for name in ("a.pth", "b.pth", "a.pth"):
        save_atomically(dict(x=torch.arange(3), meta=dict(epoch=1)), tmp_path / name)
    save_atomically(dict(x=torch.arange(3), meta=dict(epoch=2)), tmp_path / "c.pth")
    a, b, c = (file_sha256(tmp_path / f"{name}.pth") for name in "abc")
    assert a == b != c


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "kept.pth").touch()
    (tmp_path / "mine.tmp").touch()
    writer = replacing(tmp_path / "iter_5.pth")
    writer.__enter__().write_text("half")  # and killed: nothing more is run
    assert len(os.listdir(tmp_path)) == 3
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["kept.pth", "mine.tmp"]


def test_each_key_is_appended_once(tmp_path):
    path = tmp_path / "list.txt"
    assert append_missing_entries(path, {"a.jpg": "empty", "b.jpg": "text"}) == {
        "a.jpg": "empty", "b.jpg": "text"
    }  # fmt: skip
    assert append_missing_entries(path, {"b.jpg": "another reason", "c.jpg": "empty"}) == {
        "a.jpg": "empty", "b.jpg": "text", "c.jpg": "empty"
    }  # fmt: skip
    assert len(append_missing_entries(path, {})) == 3
    assert path.read_text() == "a.jpg\tempty\nb.jpg\ttext\nc.jpg\tempty\n"


def test_keys_may_be_any_file_names(tmp_path):
    path = tmp_path / "list.txt"
    odd = ["with space.jpg", "tab\there.jpg", "Zürich.jpg", "line\u2028sep.jpg", "form\x0cfeed.jpg"]
    odd += [os.fsdecode(b"latin-\xfc.jpg"), "two\nlines\\n.jpg"]
    entries = dict.fromkeys(odd, "broken")
    for _ in range(2):
        assert append_missing_entries(path, entries) == entries
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines == [
        "with space.jpg\tbroken", "tab\\there.jpg\tbroken", "Zürich.jpg\tbroken",
        "line\\u2028sep.jpg\tbroken", "form\\u000cfeed.jpg\tbroken", "latin-\\xfc.jpg\tbroken",
        "two\\nlines\\\\n.jpg\tbroken",
    ]  # fmt: skip


def test_escaped_names_come_back():
    odd = ["\\n", "\n\\", "\\\\x41", "\udce9\udcff", "a\\udce9", "\t\r\x00\x85\ufeff", ""]
    for name in ("a.jpg", *odd):
        text = escape_name(name)
        assert text.encode("utf-8").decode().splitlines() == ([text] if text else [])
        assert unescape_name(text) == name


def test_goes_on_after_a_line_cut_short(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg\tempty\nb.j")
    assert append_missing_entries(path, {"a.jpg": "empty", "b.jpg": "empty"}) == {
        "a.jpg": "empty", "b.jpg": "empty"
    }  # fmt: skip
    assert path.read_text() == "a.jpg\tempty\nb.j\nb.jpg\tempty\n"


def _append(path: Path, first: int, start) -> None:
    start.wait()
    for number in range(first, first + 150):
        append_missing_entries(path, {f"{number % 200}.jpg": f"seen by {first}"})


def test_two_processes_at_once_list_each_key_once(tmp_path):
    path = tmp_path / "list.txt"
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=_append, args=(path, f, start)) for f in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    keys = [line.split("\t")[0] for line in path.read_text().splitlines()]
    assert sorted(keys) == sorted(f"{number}.jpg" for number in range(200))
