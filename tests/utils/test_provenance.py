"""Where a number comes from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

from gersp_mm.utils import provenance
from gersp_mm.utils.provenance import Provenance


def test_all_facts_at_once():
    found = Provenance.now()
    assert found.threads == torch.get_num_threads() and found.hardware == provenance.hardware()
    assert {"python", "gersp_mm", "torch", "mmengine"} <= set(found.versions)


def git(folder: Path, *command: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *settings, "-C", str(folder), *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit_says_when_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "resource_root", lambda: tmp_path)
    assert provenance.commit() is None  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "rows.jsonl").write_text("")
    git(tmp_path, "add", "a.py", "results")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert re.fullmatch("[0-9a-f]{40}", provenance.commit())
    assert provenance.commit() == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "work.log").write_text("untracked files are no part of the code")
    (tmp_path / "results" / "rows.jsonl").write_text("what a run adds is none either")
    assert not provenance.commit().endswith("-dirty")
    (tmp_path / "a.py").write_text("2")
    assert provenance.commit() == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "resource_root", lambda: tmp_path / "site-packages")
    assert provenance.commit() is None  # the surrounding repository is another project
