"""Protocols: their sentences, and their fields from a config as it ran."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from gersp_mm.engine.changes import changes_of_run
from gersp_mm.engine.config import FROZEN_STAGES, read_config
from gersp_mm.evaluation.measurement import Measurement
from gersp_mm.results import Column, Protocol, SplitRef
from gersp_mm.results.protocol import (
    FROZEN,
    KINDS,
    Detection,
    FewShot,
    FineTuning,
    FrozenKNN,
    FrozenLinear,
    ImageInput,
    Segmentation,
    TrainingLog,
    Unparsed,
)
from gersp_mm.utils.errors import UserError
from tests.support.smoke import CONFIGS

IMAGE = ImageInput(size=64)


@pytest.mark.parametrize(
    "protocol, sentence, short",
    [
        (
            FrozenKNN(k=20, temperature=0.07, image=IMAGE),
            "Frozen features, weighted kNN (k = 20, T = 0.07), 64 px",
            "kNN",
        ),
        (
            FrozenLinear(
                solver="lbfgs", sweep=[0.01, 1], chosen_on="val",
                image=ImageInput(size=224, resize=256),
            ),
            "Frozen features, logistic regression, C of 0.01, 1 by the validation list, 224 px, "
            "resized to 256 px first",
            "linear",
        ),
        (
            FrozenLinear(solver="lbfgs", sweep=[1], chosen_on="train_fifth", image=IMAGE),
            "Frozen features, logistic regression, C of 1 by a fifth of train, 64 px",
            "linear",
        ),
        (
            FrozenLinear(solver="sgd", epochs=50, image=IMAGE),
            "Frozen features, linear layer by SGD, 50 epochs, 64 px",
            "linear",
        ),
        (
            FewShot(shots=5, draws=3, image=IMAGE),
            "Frozen features, logistic regression on 5 images per class (mean of 3 draws), 64 px",
            "5-shot",
        ),
        (
            FineTuning(epochs=6, frozen="stem_and_stage1", images_per_class=50, image=IMAGE),
            "Fine-tuning, 50 images per class, 6 epochs, 64 px, frozen: stem and stage1",
            "fine-tuned",
        ),
        (
            Detection(
                boxes="oriented", recipe="field", tile=1024, merged=True, epochs=12, frozen="none"
            ),
            "Oriented boxes, field's protocol (1024 px tiles, merged), 12 epochs",
            "",
        ),
        (
            Detection(boxes="horizontal", recipe="released", epochs=24, frozen="none"),
            "Horizontal boxes, released protocol, 24 epochs",
            "",
        ),
        (
            Segmentation(crop=512, iterations=80_000, frozen="none"),
            "Segmentation, 80,000 iterations, 512 px crops",
            "",
        ),
        (
            TrainingLog(window="the last epoch"),
            "Training log, mean over the last epoch",
            "log (the last epoch)",
        ),
        (Unparsed(text="As usual"), "As usual", ""),
    ],
)  # fmt: skip
def test_sentences(protocol, sentence, short):
    assert (protocol.sentence, protocol.short) == (sentence, short)


def test_every_kind_is_known_and_frozen_layers_have_one_name():
    assert set(KINDS) == {"knn", "linear", "fewshot", "finetune", "detection", "segmentation",
                          "training_log", "unparsed"}  # fmt: skip
    assert all(FROZEN[stages] == name for name, stages in FROZEN_STAGES.items())


EUROSAT, DOTA = "eurosat/finetune_r50_eurosat", "dota/retinanet_r50_fpn_24e_dota-released"
KNN, LINEAR, FEW = (f"eurosat/{name}_r50_eurosat" for name in ("knn", "linear", "fewshot"))
LOVEDA = "loveda/psanet_r50-d8_80k_loveda"


def column(name: str, *options: str, meta: dict | None = None) -> Column:
    path = CONFIGS / "downstream" / f"{name}.py"
    cfg = read_config(path, options)[0]
    changes = changes_of_run(Config.fromfile(path), cfg, meta)
    return next(iter(Measurement(cfg, str(path), meta, changes).columns.values()))


@pytest.mark.parametrize(
    "name, option, fields",
    [
        (KNN, "test_cfg.knn.k=200", dict(k=200)),
        (KNN, "test_cfg.knn.temperature=0.1", dict(temperature=0.1)),
        (KNN, "evaluation.measured_by.image.size=32", dict(image=ImageInput(size=32))),
        (FEW, "test_cfg.fewshot.draws=2", dict(draws=2)),
        (LINEAR, "train_cfg.max_epochs=10", dict(epochs=10)),
        (EUROSAT, "train_cfg.max_epochs=10", dict(epochs=10)),
        (EUROSAT, "frozen=stem_and_stage1", dict(frozen="stem_and_stage1")),
        (DOTA, "train_cfg.max_epochs=12", dict(epochs=12)),
        (DOTA, "frozen=all", dict(frozen="all")),
        (LOVEDA, "train_cfg.max_iters=40000", dict(iterations=40_000)),
    ],
)
def test_fields_come_from_the_config_as_it_ran(name, option, fields):
    usual, changed = column(name), column(name, option)
    assert changed.measured_by == usual.measured_by.model_copy(update=fields) != usual.measured_by
    assert changed != usual and changed.overrides == {}


@pytest.mark.parametrize(
    "name, option",
    [
        (KNN, "model.backbone.depth=18"),
        (KNN, "test_dataloader.dataset.ann_file=other.txt"),
        (KNN, "frozen=all"),
        (LINEAR, "frozen=none"),
        (EUROSAT, "optim_wrapper.optimizer.lr=0.5"),
        (EUROSAT, "train_dataloader.batch_size=8"),
        (EUROSAT, "param_scheduler.1.T_max=20"),
        (DOTA, "model.test_cfg.nms.iou_threshold=0.4"),
        (LOVEDA, "optim_wrapper.accumulative_counts=2"),
    ],
)
def test_an_option_that_no_field_holds_gives_a_column_of_its_own(name, option):
    usual, changed = column(name), column(name, option)
    assert changed.measured_by == usual.measured_by and changed != usual
    key, _, value = option.partition("=")
    if key == "frozen":
        key, value = "model.backbone.frozen_stages", str(FROZEN_STAGES[value])
    held = {name: str(inner) for name, inner in changed.overrides.items()}
    assert held == {key: value}
    assert f"changed: {key}={value}" in changed.sentence


def test_the_checkpoint_says_how_it_was_trained():
    path = CONFIGS / "downstream" / f"{EUROSAT}.py"
    trained = read_config(path, ["train_cfg.max_epochs=5", "frozen=all"])[0]
    meta = dict(cfg=trained.pretty_text, epoch=5)
    found = column(EUROSAT, meta=meta)
    assert (found.measured_by.epochs, found.measured_by.frozen) == (5, "all")
    assert found.overrides == {}
    assert column(EUROSAT, meta=dict(meta, epoch=2)).overrides == {"checkpoint": "epoch 2 of 5"}


def test_splits_in_words():
    assert str(SplitRef(name="s", sha256="ab12cd34", sizes=dict(train=3, test=2))) == (
        "s ab12cd34 (3 train, 2 test)"
    )
    assert str(SplitRef(name="s")) == "s, train to test"
    assert str(SplitRef(name="s", train="trainval", part="val")) == "s, trainval to val"
    assert str(SplitRef(name="s of mine", part=None)) == "s of mine"


def test_a_wrong_field_is_named_with_the_nearest_one():
    evaluation = dict(measured_by=dict(kind="knn", image=dict(size=64, rezise=2), q=1))
    with pytest.raises(UserError) as error:
        Protocol.of(dict(evaluation=evaluation))
    where = "evaluation.measured_by, filled from the config as it runs"
    assert str(error.value).splitlines() == [
        f"{where}: image.rezise is no field. Did you mean resize?",
        f"{where}: q is no field. The fields are kind, image, k, temperature.",
    ]
