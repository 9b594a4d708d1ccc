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
from tests.support.runs import demo_config, train
from tests.support.smoke import write_pair

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
    assert f"listed in {tmp_path / 'run' / 'bad_images.txt'}: 3 (" in log


def test_run_stops_above_the_allowed_share(data, tmp_path):
    with pytest.raises(UserError) as error:
        train(config(data, tmp_path / "run", epochs=2, max_share=0.05))
    listing = tmp_path / "run" / "bad_images.txt"
    assert str(error.value) == (
        "2 of 24 remote-sensing images cannot be read, more than the allowed share of 5%: repair "
        f"or remove the files listed in {listing}, or raise default_hooks.bad_images.max_share"
    )
    reasons = dict(listed(tmp_path / "run"))
    assert reasons[str(data / "rs/002.jpg")] == "empty file [remote-sensing]"


def test_names_of_any_kind_are_one_line_each_in_list_and_log(tmp_path):
    odd = ["two\nlines.jpg", "caf\udce9.jpg", "a\ttab.jpg", "back\\slash.jpg", "\u2028.jpg"]
    hook, runner, log = process(tmp_path, total=1000)
    hook.after_train_iter(runner, 0, batch(*odd))
    text = (tmp_path / "bad_images.txt").read_bytes().decode("utf-8")
    assert len(text.splitlines()) == len(odd)
    assert "two\\nlines.jpg\twhy not [natural]\n" in text and "caf\\xe9.jpg\t" in text
    assert len(log) == len(odd)
    for line in log:
        assert len(line.encode("utf-8").splitlines()) == 1
    resumed, runner, log = process(tmp_path, iteration=3, total=1000)
    resumed.after_train_iter(runner, 3, batch(*odd, "new.jpg"))
    resumed.after_train(runner)
    assert len(listed(tmp_path)) == len(odd) + 1
    assert log[-1].endswith("bad_images.txt: 6 (6 natural)")


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (dict(remote_sensing=13), "13 of 100 remote-sensing images cannot be read"),
        (dict(natural=41), "41 of 800 natural images cannot be read"),
        (
            dict(remote_sensing=6, natural=41),
            "6 of 100 remote-sensing images and 41 of 800 natural images cannot be read",
        ),
        (dict(remote_sensing=5, natural=40), None),
    ],
)
def test_each_source_is_counted_by_itself(tmp_path, bad, expected):
    hook, runner, _ = process(tmp_path)
    hook.max_share = 0.05
    runner.train_dataloader.dataset.sizes = (100, 800)
    batches = [
        batch(*(f"{source}/{number}.jpg" for number in range(count)), source=source)
        for source, count in bad.items()
    ]
    together = dict(data_samples=[sample for b in batches for sample in b["data_samples"]])
    if expected is None:
        hook.after_train_iter(runner, 0, together)
    else:
        with pytest.raises(UserError, match=f"^{expected}, more than the allowed share of 5%"):
            hook.after_train_iter(runner, 0, together)


def batch(*paths: str, source: str = "natural") -> dict:
    bad = [(source, path, "why\n not") for path in paths]
    return dict(data_samples=[DataSample(metainfo=dict(bad_images=bad)), DataSample()])


def process(work_dir: Path, rank: int = 0, iteration: int = 0, total: int = 100):
    """A hook in a process of its own, as far as it can see, and what was logged there."""
    log: list[str] = []
    runner = SimpleNamespace(
        work_dir=str(work_dir),
        rank=rank,
        iter=iteration,
        logger=SimpleNamespace(warning=log.append),
        train_dataloader=SimpleNamespace(dataset=SimpleNamespace(sizes=(0, total))),
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
    assert listed(tmp_path) == [(name, "why not [natural]") for name in ("a.jpg", "b.jpg", "1.jpg")]
    resumed, runner, log = process(tmp_path, iteration=7)
    resumed.after_train_iter(runner, 7, batch("b.jpg"))
    resumed.after_train(runner)
    assert Counter(path for path, _ in listed(tmp_path)) == {"a.jpg": 1, "b.jpg": 1, "1.jpg": 1}
    assert log[-1].endswith("bad_images.txt: 3 (3 natural)")
    # the share counts what all of them found
    with pytest.raises(UserError, match="4 of 100 natural images cannot be read"):
        resumed.after_train_iter(runner, 8, batch("c.jpg"))


def test_a_new_run_starts_the_list_anew_and_good_images_leave_none(tmp_path):
    (tmp_path / "bad_images.txt").write_text("repaired.jpg\tempty file\n")
    hook, runner, log = process(tmp_path)
    hook.after_train_iter(runner, 0, batch("a.jpg"))
    assert listed(tmp_path) == [("a.jpg", "why not [natural]")]
    hook, runner, log = process(tmp_path)
    hook.after_train_iter(runner, 0, batch())
    hook.after_train(runner)
    assert log == [] and not (tmp_path / "bad_images.txt").exists()
