"""Unreadable images in real runs: replaced, listed once, and fatal when they are many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmpretrain.structures import DataSample

from gersp_mm.engine.hooks.bad_images import BadImageHook
from gersp_mm.utils.errors import UserError
from tests.runs import demo_config, train
from tests.smoke import write_pair

REASONS = {
    "rs/002.jpg": "empty file",
    "rs/017.jpg": "not an image of a known format",
    "natural/class_1/005.jpg": "Premature end of JPEG file",
}


@pytest.fixture
def data(tmp_path) -> Path:
    """24 + 24 images, three of them damaged."""
    root = write_pair(tmp_path / "data")
    empty, text, truncated = (root / name for name in REASONS)
    empty.write_bytes(b"")
    text.write_text("no image")
    truncated.write_bytes(truncated.read_bytes()[:-200])
    return root


def config(data: Path, work_dir: Path, epochs: int = 1, max_share: float = 0.1) -> Config:
    cfg = demo_config(data, work_dir, iterations=6, epochs=epochs)  # of 4: each image once an epoch
    cfg.default_hooks.bad_images.max_share = max_share
    return cfg


def listed(work_dir: Path) -> list[tuple[str, str]]:
    return [
        tuple(line.split("\t")) for line in (work_dir / "bad_images.txt").read_text().splitlines()
    ]


def test_each_bad_file_is_listed_once_over_epochs_and_workers(data, tmp_path):
    cfg = config(data, tmp_path / "run", epochs=2)
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    runner = train(cfg)
    assert runner.iter == 12
    found = dict(listed(tmp_path / "run"))
    assert len(listed(tmp_path / "run")) == len(found) == 3
    for name, reason in REASONS.items():
        assert found[str(data / name)].startswith(reason)
    log = Path(runner.log_dir, f"{runner.timestamp}.log").read_text()
    for name in REASONS:
        assert log.count(f"unreadable image replaced by the next one: {data / name} (") == 1
    assert f"listed in {tmp_path / 'run' / 'bad_images.txt'}: 3" in log


def test_run_stops_above_the_allowed_share(data, tmp_path):
    with pytest.raises(UserError) as error:
        train(config(data, tmp_path / "run", epochs=2, max_share=0.05))
    listing = tmp_path / "run" / "bad_images.txt"
    assert str(error.value) == (
        "3 of 48 images cannot be read, more than the allowed share of 5%: mend or remove the "
        f"files listed in {listing}, or raise default_hooks.bad_images.max_share"
    )
    assert len(listed(tmp_path / "run")) == 3


def batch(*paths: str) -> dict:
    sample = DataSample(metainfo=dict(bad_images=[(path, "why\n not") for path in paths]))
    return dict(data_samples=[sample, DataSample()])


def process(work_dir: Path, rank: int = 0, iteration: int = 0, total: int = 100):
    """A hook in a process of its own, as far as it can see, and what was logged there."""
    log: list[str] = []
    runner = SimpleNamespace(
        work_dir=str(work_dir),
        rank=rank,
        iter=iteration,
        logger=SimpleNamespace(warning=log.append),
        train_dataloader=SimpleNamespace(dataset=SimpleNamespace(sizes=(total, 0))),
    )
    hook = BadImageHook(max_share=0.03)
    hook.before_train(runner)
    return hook, runner, log


def test_ranks_and_resumed_runs_share_one_list(tmp_path):
    hooks = [process(tmp_path, rank) for rank in range(2)]
    for hook, runner, _ in hooks:
        hook.after_train_iter(runner, 0, batch("a.jpg", "b.jpg"))
        hook.after_train_iter(
            runner, 1, batch("a.jpg", f"{runner.rank}.jpg") if runner.rank else batch()
        )
    assert listed(tmp_path) == [("a.jpg", "why not"), ("b.jpg", "why not"), ("1.jpg", "why not")]
    resumed, runner, log = process(tmp_path, iteration=7)
    resumed.after_train_iter(runner, 7, batch("b.jpg"))
    resumed.after_train(runner)
    assert Counter(path for path, _ in listed(tmp_path)) == {"a.jpg": 1, "b.jpg": 1, "1.jpg": 1}
    assert log[-1].endswith("bad_images.txt: 3")
    # the share counts what all of them found
    with pytest.raises(UserError, match="4 of 100 images cannot be read"):
        resumed.after_train_iter(runner, 8, batch("c.jpg"))


def test_a_new_run_starts_the_list_anew_and_good_images_leave_none(tmp_path):
    (tmp_path / "bad_images.txt").write_text("mended.jpg\tempty file\n")
    hook, runner, log = process(tmp_path)
    hook.after_train_iter(runner, 0, batch("a.jpg"))
    assert listed(tmp_path) == [("a.jpg", "why not")]
    hook, runner, log = process(tmp_path)
    hook.after_train_iter(runner, 0, batch())
    hook.after_train(runner)
    assert log == [] and not (tmp_path / "bad_images.txt").exists()
