"""FrozenFeaturesLoop: the host's pipeline and metric around our features, kNN and few-shot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from gersp_mm.datasets.splits import few_shot
from gersp_mm.engine.config import apply_switches
from gersp_mm.evaluation import EvalImages, extract_features, knn_accuracy
from gersp_mm.evaluation.frozen import FrozenFeaturesLoop
from gersp_mm.evaluation.measurement import Measurement
from gersp_mm.resources import resource
from gersp_mm.utils.errors import UserError
from tests.support.downstream import downstream_twin, write_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("frozen") / "r50.pth")


def twin(downstream_data, tmp_path, backbone, **test_cfg):
    cfg = downstream_twin("eurosat/knn_r50_eurosat.py", downstream_data, tmp_path)
    cfg.pretrained = str(backbone)
    cfg.test_cfg.update(test_cfg)
    apply_switches(cfg)
    return cfg


def features(cfg, runner, part, tmp_path):
    """Read the same images without mmpretrain's pipeline."""
    root = cfg.test_dataloader.dataset.data_root
    lines = Path(root, f"splits/eurosat-gersp-1-incomplete/{part}.txt").read_text().split("\n")
    listing = tmp_path / f"{part}.txt"
    listing.write_text("\n".join(f"{root}/{line}" for line in lines if line))
    return extract_features(runner.model, EvalImages(listing, 64), progress=None)


def test_knn_and_few_shot_equal_a_direct_computation(downstream_data, tmp_path, backbone):
    cfg = twin(
        downstream_data, tmp_path, backbone,
        knn=dict(k=3, temperature=0.07), fewshot=dict(shots=(1, 2), draws=3),
    )  # fmt: skip
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()

    stored = torch.load(backbone, weights_only=True)["state_dict"]
    assert torch.equal(runner.model.backbone.conv1.weight, stored["backbone.conv1.weight"])
    train, test = (features(cfg, runner, part, tmp_path) for part in ("train", "test"))
    assert metrics["knn/accuracy/top1"] == pytest.approx(knn_accuracy(*train, *test, k=3), abs=1e-4)

    names = [runner.test_loop.memory.get_data_info(i)["img_path"] for i in range(len(train[1]))]
    x, x_test = (F.normalize(f, dim=1).numpy() for f in (train[0], test[0]))
    for shots in (1, 2):
        scores = []
        for draw in range(3):
            chosen = few_shot(names, train[1].tolist(), shots, draw)
            assert len(chosen) == 10 * shots
            model = LogisticRegression(max_iter=1000).fit(x[chosen], train[1].numpy()[chosen])
            scores.append(100 * model.score(x_test, test[1].numpy()))
        found = metrics[f"fewshot_{shots}/accuracy/top1"]
        assert found == pytest.approx(np.mean(scores), abs=1e-4)
        spread = metrics[f"fewshot_{shots}/accuracy/top1_std"]
        assert spread == pytest.approx(np.std(scores, ddof=1), abs=1e-4)


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(knn=dict(kk=2)), "test_cfg.knn has no kk. Choose among k, temperature."),
        (dict(fewshot=dict(shot=2)), "test_cfg.fewshot has no shot. Choose among shots, draws."),
    ],
)
def test_an_unknown_option_is_named(options, text):
    with pytest.raises(UserError) as caught:
        FrozenFeaturesLoop(None, None, None, "train.txt", **options)
    assert str(caught.value) == text


def test_metrics_that_the_test_does_not_give_are_refused_before_it():
    cfg = Config.fromfile(resource("configs", "downstream/eurosat/fewshot_r50_eurosat.py"))
    Measurement(cfg, "fewshot_r50_eurosat.py")
    cfg.test_cfg.fewshot.shots = (2, 5, 10, 50)
    with pytest.raises(UserError, match="names 'fewshot_1/accuracy/top1', but .*fewshot_2, fewsh"):
        Measurement(cfg, "fewshot_r50_eurosat.py")


def test_an_incomplete_backbone_is_refused(downstream_data, tmp_path, backbone):
    content = torch.load(backbone, weights_only=True)
    content["state_dict"].pop("backbone.layer2.0.conv1.weight")
    del content["meta"]["weights_sha256"]  # which would tell first that something was changed
    damaged = tmp_path / "damaged.pth"
    torch.save(content, damaged)
    cfg = twin(downstream_data, tmp_path, damaged)
    with pytest.raises(UserError, match="1 missing: layer2.0.conv1.weight"):
        Runner.from_cfg(cfg).test()


def test_nothing_to_evaluate_is_refused(downstream_data, tmp_path, backbone):
    cfg = twin(downstream_data, tmp_path, backbone, knn=None)
    with pytest.raises(UserError, match="neither knn nor fewshot"):
        Runner.from_cfg(cfg).test()
