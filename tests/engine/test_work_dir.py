"""One run in a work directory at a time, and disks that cannot be written to."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from gersp_mm.commands.options import run_tool
from gersp_mm.engine.runs import sole_run
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import replacing, save_atomically
from tests.commands.test_train import assert_one_error_line, call, environment, write_config
from tests.support.forked import run_ranks
from tests.support.smoke import ROOT

HOLDER = """
import os, sys, time
from gersp_mm.engine.runs import sole_run
with sole_run(sys.argv[1]):
    worker = os.fork()  # as data loaders do
    if worker == 0:
        time.sleep(60)
    print(worker, flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_killed_one_does_not_block(tmp_path):
    """Not even while a worker of the killed run is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        worker = int(holder.stdout.readline())
        try:
            for _ in range(2):
                with pytest.raises(UserError) as caught, sole_run(tmp_path):
                    pytest.fail("two runs at once")
                text = str(caught.value)
                assert text.startswith(
                    f"another run writes to {tmp_path}: process {holder.pid} on "
                )
                assert ", started 2" in text and "--work-dir" in text
            holder.kill()
            holder.wait()
            os.kill(worker, 0)  # still there
            with sole_run(tmp_path):
                assert f"process {os.getpid()} on" in (tmp_path / "run.lock").read_text()
        finally:
            os.kill(worker, signal.SIGKILL)
    with sole_run(tmp_path):
        pass  # given back at the end of a run


def test_the_tool_refuses_a_work_directory_in_use_and_writes_nothing(pair_data, tmp_path):
    config = write_config(pair_data, tmp_path)
    work_dir = tmp_path / "work"
    with sole_run(work_dir):
        done = call(config, "--work-dir", work_dir)
        assert_one_error_line(done, f"another run writes to {work_dir}: process {os.getpid()} on")
        assert [path.name for path in work_dir.iterdir()] == ["run.lock"]


@pytest.mark.dist
def test_two_ranks_are_refused_together(pair_data, tmp_path):
    config = write_config(pair_data, tmp_path)
    work_dir = tmp_path / "work"
    with sole_run(work_dir):
        command = (ROOT / "tools/train.py", config, "--work-dir", work_dir, "--launcher", "pytorch")
        ranks = run_ranks(*command, output=tmp_path, env=environment())
        assert [path.name for path in work_dir.iterdir()] == ["run.lock"]
    assert [rank.returncode for rank in ranks] == [2, 2]
    text = "".join(rank.stdout for rank in ranks)
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert f"process {os.getpid()} on" in line


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "work").write_text("a file")
    for folder in (tmp_path / "work", tmp_path / "work" / "below"):
        text = f"work directory {folder} cannot be written to"
        with pytest.raises(UserError, match=text), sole_run(folder):
            pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_work_directory_that_cannot_be_written_to(tmp_path, monkeypatch, number):
    def refuse(self, timeout):
        raise OSError(number, os.strerror(number), str(tmp_path / "run.lock"))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    text = rf"cannot be written to \({os.strerror(number)}\)"
    with pytest.raises(UserError, match=text), sole_run(tmp_path):
        pass


def test_a_file_system_without_locks_is_used(tmp_path, monkeypatch, capsys):
    def refuse(self, timeout):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with sole_run(tmp_path):
        pass
    assert "a file system without locks" in capsys.readouterr().out


def fail(number):
    def tool(args):
        raise OSError(number, os.strerror(number), "out/rows.jsonl")

    return tool


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_an_output_that_cannot_be_written_is_one_line(number, capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool(fail(number), argparse.Namespace())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"error: out/rows.jsonl cannot be written or opened ({os.strerror(number)})"
    )


def test_another_error_of_the_system_keeps_its_trace():
    with pytest.raises(FileNotFoundError):
        run_tool(fail(errno.ENOENT), argparse.Namespace())


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "backbone.pth"
    save_atomically(dict(a=1), path)
    old = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        save_atomically(dict(a=2), path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["backbone.pth"]


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        Path(tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
