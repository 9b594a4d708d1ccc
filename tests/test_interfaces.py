"""The hosts' own interfaces give what tools/test.py gives, on the twin of each shipped config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import gersp_mm
from gersp_mm.commands import test as tool
from gersp_mm.engine import launch
from gersp_mm.engine.config import apply_switches
from gersp_mm.evaluation.features import EvalImages, extract_features, pool
from gersp_mm.evaluation.submission import Submission
from gersp_mm.utils.errors import UserError
from tests.support.downstream import TREES, downstream_twin, trained_cases
from tests.support.runs import build, load
from tests.support.smoke import forget_runs, narrow, smoke_twin

QUICK = [TREES, "eurosat/finetune_r18_eurosat.py", "loveda/psanet_r50-d8_80k_loveda.py",
         "dior/rotated-retinanet_le90_r50_fpn_1x_dior-r.py"]  # fmt: skip
CASES = trained_cases(QUICK)


class Tested(NamedTuple):
    """What tools/test.py predicted."""

    config: str
    checkpoint: str
    predict: Callable[..., dict[str, Any]]  # by image, with options of the tool

    @property
    def samples(self) -> dict[str, Any]:
        return self.predict()


class Collect(Hook):
    """Keep what a test predicts."""

    def __init__(self, samples: dict[str, Any]) -> None:
        self.samples = samples

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.samples.update((sample.img_path, sample) for sample in outputs)


@pytest.fixture
def tested(request, downstream_data, tmp_path, monkeypatch) -> Tested:
    """Train the twin of a config for an iteration and test it by the tool."""
    cfg = downstream_twin(request.param, downstream_data, tmp_path, iterations=1)
    config = tmp_path / Path(request.param).name
    cfg.pop("work_dir")
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.dump(config)
    trained = Config(dict(cfg, pretrained=None, work_dir=str(tmp_path)))
    apply_switches(trained)
    build(trained).train()
    (checkpoint,) = [*tmp_path.glob("epoch_1.pth"), *tmp_path.glob("iter_1.pth")]
    forget_runs()
    samples: dict[str, Any] = {}
    real = launch.build_runner

    def predict(*options: str) -> dict[str, Any]:
        samples.clear()
        arguments = [config, checkpoint, "--work-dir", tmp_path / "test", *options]
        tool.run(tool.parse_args(list(map(str, arguments))))
        forget_runs()
        DefaultScope._instance_dict.clear()  # as in a fresh process
        return dict(samples)

    def with_hook(cfg: Config) -> Runner:
        runner = real(cfg)
        runner.register_hook(Collect(samples), priority="VERY_LOW")
        runner.test_evaluator  # noqa: B018
        runner.test_loop.evaluator.metrics.clear()  # their values are tested elsewhere
        return runner

    monkeypatch.setattr(launch, "build_runner", with_hook)
    monkeypatch.setattr(Submission, "finish", lambda *_: None)
    monkeypatch.setattr(Runner, "_log_env", lambda *_: None)
    monkeypatch.setattr(tool, "check_evaluation", lambda *_: None)
    return Tested(str(config), str(checkpoint), predict)


def plain(boxes: Any) -> np.ndarray:
    return np.asarray(getattr(boxes, "tensor", boxes))


def classification(tested: Tested, scope: str) -> None:
    from mmpretrain import FeatureExtractor, ImageClassificationInferencer

    samples = tested.samples
    model = ImageClassificationInferencer(tested.config, tested.checkpoint, device="cpu")
    features = FeatureExtractor(tested.config, tested.checkpoint, device="cpu")
    for path, sample in list(samples.items())[:3]:
        (result,) = model(path)
        assert np.allclose(result["pred_scores"], sample.pred_score.numpy(), atol=1e-5)
        assert result["pred_label"] == int(sample.pred_label)
        assert result["pred_class"] == model.classes[result["pred_label"]]
        (vector,) = features(path, stage="neck")
        scores = torch.softmax(features.model.head((vector[-1][None],)), -1)[0]
        assert torch.allclose(scores, sample.pred_score, atol=1e-5)


def detection(tested: Tested, scope: str) -> None:
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    samples = tested.samples
    model = init_detector(tested.config, tested.checkpoint, device="cpu")
    inferencer = DetInferencer(
        tested.config, tested.checkpoint, device="cpu", scope=scope, show_progress=False
    )
    assert any(len(sample.pred_instances) for sample in samples.values())
    for path, sample in list(samples.items())[:2]:
        expected = sample.pred_instances
        found = inference_detector(model, path).pred_instances
        assert torch.equal(found.labels, expected.labels)
        assert np.allclose(plain(found.bboxes), plain(expected.bboxes), atol=1e-3)
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
        (result,) = inferencer(path, no_save_vis=True)["predictions"]
        assert result["labels"] == expected.labels.tolist()
        assert np.allclose(result["bboxes"], plain(expected.bboxes), atol=1e-3)


def segmentation(tested: Tested, scope: str) -> None:
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    samples = tested.samples
    model = init_model(tested.config, tested.checkpoint, device="cpu")
    assert len(model.dataset_meta["classes"]) == 7
    inferencer = MMSegInferencer(tested.config, tested.checkpoint, device="cpu")
    for path, sample in list(samples.items())[:2]:
        expected = sample.pred_sem_seg.data
        assert torch.equal(inference_model(model, path).pred_sem_seg.data, expected)
        assert np.array_equal(inferencer(path)["predictions"], expected[0].numpy())


INTERFACES = dict(
    mmpretrain=classification, mmdet=detection, mmrotate=detection, mmseg=segmentation
)


@pytest.mark.parametrize("tested", CASES, indirect=True)
def test_hosts_interfaces(tested):
    scope = Config.fromfile(tested.config).default_scope
    INTERFACES[scope](tested, scope)


# ---------------------------------------------------------------------- test-time augmentation


@pytest.mark.parametrize("tested", ["eurosat/finetune_r18_eurosat.py"], indirect=True)
def test_scores_of_mirrored_scenes_are_averaged(tested):
    from mmpretrain import ImageClassificationInferencer

    samples = tested.predict("--tta")
    model = ImageClassificationInferencer(tested.config, tested.checkpoint, device="cpu")
    for path, sample in list(samples.items())[:2]:
        image = mmcv.imread(path)
        mirrored = [image, mmcv.imflip(image), mmcv.imflip(image, "vertical")]
        scores = [result["pred_scores"] for result in model(mirrored)]
        assert np.allclose(np.mean(scores, 0), sample.pred_score.numpy(), atol=1e-5)


@pytest.mark.parametrize("tested", ["loveda/psanet_r50-d8_80k_loveda.py"], indirect=True)
def test_scores_of_mirrored_pixels_are_averaged(tested):
    from mmseg.apis import inference_model, init_model

    samples = tested.predict("--tta")
    model = init_model(tested.config, tested.checkpoint, device="cpu")
    path, sample = next(iter(samples.items()))
    image = mmcv.imread(path)
    plain, mirrored = (
        inference_model(model, np.ascontiguousarray(one)).seg_logits.data.softmax(0)
        for one in (image, mmcv.imflip(image))
    )
    expected = (plain + mirrored.flip(-1)).argmax(0)
    assert (sample.pred_sem_seg.data == expected).float().mean() > 0.999


@pytest.mark.parametrize("tested", [TREES], indirect=True)
def test_boxes_of_mirrored_images_are_put_together(tested):
    from mmdet.apis import inference_detector, init_detector

    samples = tested.predict("--tta")
    model = init_detector(tested.config, tested.checkpoint, device="cpu")
    path, sample = next(iter(samples.items()))
    image = mmcv.imread(path)
    boxes = plain(inference_detector(model, image).pred_instances.bboxes)
    mirrored = plain(inference_detector(model, mmcv.imflip(image)).pred_instances.bboxes)
    mirrored = np.stack([128 - mirrored[:, 2], mirrored[:, 1], 128 - mirrored[:, 0],
                         mirrored[:, 3]], 1)  # fmt: skip
    found = plain(sample.pred_instances.bboxes)
    gaps = np.abs(found[:, None] - np.concatenate([boxes, mirrored])).max(-1)
    nearest = gaps.argmin(1)
    assert (gaps.min(1) < 0.01).all()
    assert (nearest < len(boxes)).any() and (nearest >= len(boxes)).any()


@pytest.mark.parametrize("tested", ["dior/rotated-retinanet_le90_r50_fpn_1x_dior-r.py"],
                         indirect=True)  # fmt: skip
def test_mmrotate_has_none(tested):
    with pytest.raises(UserError, match="--tta: mmrotate has no test-time augmentation. Leave"):
        tested.predict("--tta")


# -------------------------------------------------------------------------------- pre-training


@pytest.mark.parametrize("name", ["gersp_r18_demo.py", "baselines/simsiam_r18_demo.py"])
def test_features_by_a_config_of_pre_training(name, pair_data, tmp_path):
    cfg = smoke_twin(name, pair_data, tmp_path, 1)
    narrow(cfg.model)
    cfg.train_cfg.max_epochs = 1
    cfg.log_level = "WARNING"
    runner = build(cfg)
    runner.train()
    path = str(next(tmp_path.glob("epoch_1.pth")))
    extractor = gersp_mm.FeatureExtractor(Config.fromfile(next(tmp_path.glob("*.py"))), path)
    images = EvalImages(str(pair_data / "natural"), size=extractor.pipeline.transforms[1].size[0])
    expected, _ = extract_features(runner.model, images, progress=None)
    paths = [path for path, _ in images.samples[:5]]
    found = torch.stack([pool(one[-1][None])[0] for one in extractor(paths, batch_size=2)])
    assert torch.allclose(found, expected[:5], atol=1e-5)
    (single,) = extractor(mmcv.imread(paths[0]))
    assert torch.allclose(pool(single[-1][None])[0], found[0], atol=1e-5)
    network = load(path)["state_dict"]
    network.pop("backbone.conv1.weight")
    torch.save(dict(state_dict=network), path)
    with pytest.raises(UserError, match="1 missing: backbone.conv1.weight"):
        gersp_mm.FeatureExtractor(Config.fromfile(next(tmp_path.glob("*.py"))), path)
