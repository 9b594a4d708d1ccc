"""Images kept on the device: the run sees the same views as without, and says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from gersp_mm.utils.errors import UserError
from tests.support.runs import demo_config, resumed, train
from tests.support.smoke import write_images, write_pair


class Batches(Hook):
    """Notes what the model gets: images in grey levels, labels and reports of bad images."""

    def before_train(self, runner):
        self.found, self.labels, self.bad, self.raw = [], [], [], []
        preprocessor = runner.model.data_preprocessor
        forward = preprocessor.forward

        def noted(data, training=False):
            self.raw.append(data["inputs"])
            result = forward(data, training)
            grey = {
                name: images * preprocessor.std + preprocessor.mean
                for name, images in result["inputs"].items()
            }
            self.found.append(grey)
            self.labels.append([int(sample.gt_label) for sample in result["data_samples"]])
            self.bad.append([sample.bad_images for sample in result["data_samples"]])
            return result

        preprocessor.forward = noted


def run(data: Path, work_dir: Path, kept: bool, resume: Path | None = None, epochs: int = 2):
    cfg = demo_config(data, work_dir, iterations=3, epochs=epochs)
    dataset = cfg.train_dataloader.dataset
    dataset.rs_pipeline[0].update(colour="device", quarter_turns=True)
    dataset.natural_pipeline[0].update(colour="device")
    cfg.default_hooks.bad_images.max_share = 1.0
    if kept:
        cfg.default_hooks.device_images = dict(type="gersp_mm.DeviceImagesHook")
    batches = Batches()
    train(resumed(cfg, resume) if resume else cfg, batches)
    return batches


def assert_same(one: Batches, other: Batches) -> None:
    assert one.labels == other.labels and len(one.labels) == len(other.labels) > 0
    assert one.bad == other.bad
    for grey, other_grey in zip(one.found, other.found):
        assert set(grey) == set(other_grey) == {"rs_query", "rs_key", "natural"}
        for name, images in grey.items():
            off = (images - other_grey[name]).abs()
            # colours enlarge a rounding now and then
            assert off.mean() < 0.1 and (off < 1.5).float().mean() > 0.99


def test_views_labels_and_reports_are_those_of_the_workers(pair_data, tmp_path):
    plain = run(pair_data, tmp_path / "plain", kept=False)
    kept = run(pair_data, tmp_path / "kept", kept=True)
    assert_same(plain, kept)
    assert {name: values.shape for name, values in kept.raw[0].items()} == dict.fromkeys(
        ("rs_query", "rs_key", "natural"), (4, 3, 0, 0)
    )  # no pixel is sent by the workers
    again = run(pair_data, tmp_path / "kept", kept=True, resume=tmp_path / "kept" / "epoch_1.pth")
    assert again.labels == kept.labels[3:]
    for grey, before in zip(again.found, kept.found[3:]):
        assert all(torch.equal(grey[name], before[name]) for name in grey)
    saved = torch.load(tmp_path / "kept" / "epoch_2.pth", weights_only=False)["state_dict"]
    bare = torch.load(tmp_path / "plain" / "epoch_2.pth", weights_only=False)["state_dict"]
    assert set(saved) == set(bare)


def test_bad_images_are_replaced_and_reported_as_ever(tmp_path):
    data = write_pair(tmp_path / "data")
    for number in (3, 4, 11):
        (data / "rs" / f"{number:03d}.jpg").write_bytes(b"")
    (data / "natural" / "class_1" / "007.jpg").write_text("no image")  # class_2 stands in for it
    plain = run(data, tmp_path / "plain", kept=False)
    kept = run(data, tmp_path / "kept", kept=True)
    assert_same(plain, kept)
    assert any(reports for batch in kept.bad for reports in batch)
    listings = [
        set((tmp_path / name / "bad_images.txt").read_text().splitlines())
        for name in ("plain", "kept")
    ]
    assert listings[0] == listings[1] and listings[0]


def refused(cfg, text: str) -> None:
    cfg.default_hooks.device_images = {
        "type": "gersp_mm.DeviceImagesHook", **cfg.default_hooks.get("device_images", {})
    }  # fmt: skip
    with pytest.raises(UserError, match=text):
        train(cfg)


def test_images_of_several_sizes_are_refused(tmp_path):
    data = write_pair(tmp_path / "data")
    write_images(data / "rs" / "odd", 1, size=(40, 50))
    cfg = demo_config(data, tmp_path / "run", iterations=7)
    refused(cfg, r"images of one size in remote_sensing: .*odd.* has 50x40 pixels, .* 48x40")


def test_too_many_images_are_refused_before_they_are_read(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path, iterations=3)
    cfg.default_hooks.device_images = dict(max_gib=1e-6)
    refused(cfg, "12 images of remote_sensing like .* GiB, 0.0 GiB of max_gib=1e-06 are left")


def test_other_pipelines_and_data_are_refused(pair_data, tmp_path):
    cfg = demo_config(pair_data, tmp_path / "pipeline", iterations=3)
    cfg.train_dataloader.dataset.natural_pipeline = [dict(type="Resize", scale=(32, 32))]
    refused(cfg, r"one ViewAugmentation for dataset.natural, but it has \['Resize'\]")
