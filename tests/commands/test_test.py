"""tools/test.py: results, pictures and submissions of every host, and what it refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.commands import test as tool
from gersp_mm.engine import launch
from gersp_mm.evaluation.submission import Submission
from gersp_mm.results.store import read_rows
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization import boxes
from tests.engine.test_pretrained_check import detector, mmseg_model
from tests.support.smoke import CONFIGS

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PRETRAINED = dict(path="/x/b.pth", sha256="ab12", method="GeRSP", arch="ResNet-18", epoch=2)


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds in every run: versions of compilers, layout of config files."""
    monkeypatch.setattr(Runner, "_log_env", lambda *_: None)
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))


class Task:
    """A config file and a checkpoint of random weights, and calls of the tool with them."""

    def __init__(self, folder: Path, cfg: Any, name: str = "small_r18_1x_data") -> None:
        self.folder = folder
        self.cfg = Config(cfg) if isinstance(cfg, dict) else cfg
        self.cfg.log_level = "WARNING"
        self.config = folder / f"{name}.py"
        self.checkpoint = folder / "epoch_1.pth"
        self.write()
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            importlib.import_module(f"{self.cfg.default_scope}.models")
            torch.manual_seed(0)
            model = MODELS.build(self.cfg.model)
        self.state = model.state_dict()
        self.save()

    def write(self) -> None:
        self.cfg.dump(self.config)

    def save(self, state: dict | None = None, **meta: Any) -> None:
        meta = dict(seed=5, pretrained=PRETRAINED, **meta)
        torch.save(dict(state_dict=self.state if state is None else state, meta=meta),
                   self.checkpoint)  # fmt: skip

    def run(self, *options: str | Path) -> None:
        work_dir = str(self.folder / "work")
        arguments = [self.config, self.checkpoint, "--work-dir", work_dir, *options]
        tool.run(tool.parse_args(list(map(str, arguments))))


def loader(**dataset: Any) -> dict:
    return dict(
        batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(dataset, test_mode=True),
    )  # fmt: skip


def write_image(path: Path, colour: Any = (200, 30, 60), side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)
    return path


# ------------------------------------------------------------------------------- classification

FINE_TUNING = "Fine-tuning, 1 epoch, 32 px, halves, train to test"
COLOURS = dict(field=(40, 200, 60), roof=(220, 40, 40), water=(30, 40, 210))


@pytest.fixture
def classifier(tmp_path: Path) -> Task:
    """Three classes whose images have the same names."""
    for name, colour in COLOURS.items():
        for number in range(2):
            write_image(tmp_path / "data" / name / f"{number}.png", colour)
    cfg = dict(
        default_scope="mmpretrain",
        model=dict(
            type="ImageClassifier",
            backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=3, in_channels=64, topk=(1,)),
            data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True, num_classes=3),
        ),
        test_dataloader=loader(
            type="CustomDataset",
            data_root=str(tmp_path / "data"),
            pipeline=[dict(type="LoadImageFromFile"), dict(type="PackInputs")],
        ),
        test_evaluator=dict(type="Accuracy", topk=(1,)),
        test_cfg=dict(),
        evaluation=dict(
            dataset="Colours",
            measured_by=dict(kind="finetune", image=dict(size=32), epochs=1),
            split="halves",
            metrics={"accuracy/top1": "top-1"},
        ),
    )
    return Task(tmp_path, cfg)


def test_results_are_named_and_appended(classifier, tmp_path, capsys):
    classifier.run("--results", tmp_path / "r.jsonl")
    classifier.run("--results", tmp_path / "r.jsonl")
    first, second = read_rows(tmp_path / "r.jsonl")
    out = capsys.readouterr().out
    assert f"Colours, {FINE_TUNING}: top-1 {first.value:.2f}\n" in out
    assert out.count(f"appended to {tmp_path / 'r.jsonl'}: 1 row\n") == 2
    # random weights give all images of a colour one label: 0, 1, 2 or 3 of three classes are right
    assert first.value in [pytest.approx(100 * right / 3, abs=1e-3) for right in range(4)]
    assert first.metric == "top-1" and first.protocol == FINE_TUNING
    assert first.seed == 5  # of the training, not of the test's config
    assert first.pretraining == "GeRSP, 2 epochs" and first.checkpoint_sha256 == "ab12"
    assert first.model == "ResNet-18" and first.config == "small_r18_1x_data.py"
    assert first.seconds > 0 and "mmpretrain" in first.versions
    assert str(tmp_path) not in json.dumps(first.as_dict())
    assert first.model_copy(update=dict(seconds=second.seconds)) == second


def test_a_folder_for_the_results_is_refused_before_the_test(classifier, tmp_path):
    with pytest.raises(UserError, match=f"--results: {tmp_path} is a folder. Name a file"):
        classifier.run("--results", tmp_path)


def test_a_changed_option_gives_a_column_of_its_own(classifier, tmp_path, capsys):
    classifier.run("--results", tmp_path / "r.jsonl", "--cfg-options", "test_evaluator.topk=[1,2]",
                   "test_dataloader.num_workers=0")  # fmt: skip
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert row.overrides == {"test_evaluator.topk": [1, 2]}
    changed = "changed: test_evaluator.topk=[1,2], halves, train to test: "
    assert f"Colours, Fine-tuning, 1 epoch, 32 px, {changed}" in capsys.readouterr().out


def test_pictures_of_images_with_one_name_are_all_there_in_true_colours(
    classifier, tmp_path, capsys
):
    classifier.run("--show-dir", tmp_path / "pictures")
    written = {
        p.relative_to(tmp_path / "pictures").as_posix() for p in tmp_path.glob("pictures/*/*")
    }
    assert written == {f"{name}/{number}.png" for name in COLOURS for number in range(2)}
    assert f"pictures drawn into {tmp_path / 'pictures'}: 6\n" in capsys.readouterr().out
    for name, colour in COLOURS.items():
        with Image.open(tmp_path / "pictures" / name / "0.png") as picture:
            assert min(picture.size) >= 256  # the text is readable
            pixels = np.array(picture.convert("RGB"))
        assert (pixels == colour).all(-1).mean() > 0.3


def test_so_many_pictures_of_all_classes(classifier, tmp_path):
    classifier.run("--show-dir", tmp_path / "p", "--max-pictures", "3")
    assert len(list(tmp_path.glob("p/*/*.png"))) == 3
    assert {path.parent.name for path in tmp_path.glob("p/*/*.png")} == set(COLOURS)


def test_a_config_without_evaluation_still_gives_its_values(classifier, capsys):
    classifier.cfg.evaluation = None
    classifier.write()
    classifier.run()
    assert "accuracy/top1 " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--results: .* has no evaluation=dict\(dataset="):
        classifier.run("--results", "r.jsonl")


def no_file(task: Task) -> None:
    task.checkpoint.unlink()


def garbage(task: Task) -> None:
    task.checkpoint.write_bytes(b"<html>404</html>")


def list_of_tensors(task: Task) -> None:
    torch.save([1], task.checkpoint)


def backbone_only(task: Task) -> None:
    task.save({name: t for name, t in task.state.items() if name.startswith("backbone.")})


def other_head(task: Task) -> None:
    task.save({**task.state, "head.fc.weight": torch.zeros(10, 64)})


def other_model(task: Task) -> None:
    task.save({f"x.{name}": tensor for name, tensor in task.state.items()})


def more_layers(task: Task) -> None:
    """A deeper network holds all tensors of this one."""
    task.save({**task.state, "backbone.layer4.2.conv1.weight": torch.zeros(64, 64, 3, 3)})


def not_a_number(task: Task) -> None:
    task.save({**task.state, "head.fc.bias": torch.tensor([0.0, float("nan"), 0.0])})


def other_mean(task: Task) -> None:
    half = [127.5] * 3
    task.save(normalisation=dict(mean=half, std=half, channel_order="RGB"))


def other_mean_of_old(task: Task) -> None:
    task.save(cfg=f"model = dict(data_preprocessor=dict(mean={MEAN}, std=[1, 1, 1], to_rgb=True))")


def other_order_of_old(task: Task) -> None:
    task.save(cfg=f"data_preprocessor = dict(mean={MEAN}, std={STD})")


def no_tensors(task: Task) -> None:
    task.save({})


def below_model(task: Task) -> None:
    torch.save(dict(model=task.state, epoch=2), task.checkpoint)


def frozen_otherwise(task: Task) -> None:
    task.cfg.frozen = "none"
    task.cfg.model.backbone.frozen_stages = -1
    task.write()
    task.save(cfg="model = dict()\nfrozen = 'stem_and_stage1'\n")


def no_evaluator(task: Task) -> None:
    task.cfg.test_evaluator = None
    task.write()


def unknown_metric(task: Task) -> None:
    task.cfg.evaluation.metrics = {"f1": "F1"}
    task.write()


def unknown_submission(task: Task) -> None:
    task.cfg.submission = dict(kind="ade", test_dataloader=dict(), test_evaluator=dict())
    task.write()


def unknown_scope(task: Task) -> None:
    task.cfg.default_scope = "mmengine"
    task.write()


REFUSED = {
    no_file: ([], r"there is no checkpoint .*epoch_1\.pth"),
    garbage: ([], r"epoch_1\.pth \(16 bytes\) is a web page \(HTML\)"),
    list_of_tensors: ([], r"holds a list, no dict of weights: save its state_dict"),
    backbone_only: ([], r"epoch_1\.pth does not fit .*_data\.py: 2 missing: head\.fc\.weight, "
                        r"head\.fc\.bias .*This is a backbone file\. Start a training"),
    other_head: ([], r"1 of another shape: head\.fc\.weight is 10x64 instead of 3x64 .*another co"),
    other_model: ([], r"missing: backbone\.conv1\.weight, .* and \d+ more; .*"
                      r"Its names start with 'x\.', which MMEngine does not remove"),
    more_layers: ([], r"1 unexpected: backbone\.layer4\.2\.conv1\.weight .*another config"),
    not_a_number: ([], r"epoch_1\.pth: 1 tensor holds NaN or infinity \(head\.fc\.bias\)"),
    other_mean: ([], r"was trained with mean=\[127\.5, 127\.5, 127\.5\] \(RGB\), but .* has \[123"),
    other_mean_of_old: ([], r"was trained with std=\[1\.0, 1\.0, 1\.0\] \(RGB\), but .* has \[58"),
    other_order_of_old: ([], r"was trained on BGR images, but model\.data_preprocessor gives RGB"),
    no_tensors: ([], r"epoch_1\.pth holds no tensors; it has nothing"),
    below_model: ([], r"holds its weights below 'model', where MMEngine does not look"),
    frozen_otherwise: ([], r"was trained with frozen=stem_and_stage1, not none: add --cfg-options"),
    no_evaluator: ([], r"has a test_dataloader but no test_evaluator"),
    unknown_metric: ([], r"evaluation\.metrics: whether 'f1'"),
    unknown_submission: (["--submission"], r"kind of .* must be 'dota' or 'loveda', got 'ade'"),
    unknown_scope: (["--show-dir", "p"], r"default_scope of .* is 'mmengine', not one of mmpret"),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED, ids=lambda f: f.__name__)
def test_refused_before_anything_is_tested(classifier, change, monkeypatch):
    options, text = REFUSED[change]
    change(classifier)
    monkeypatch.setattr(Runner, "test", lambda self: pytest.fail("was tested"))
    with pytest.raises(UserError, match=text):
        classifier.run(*options)


def test_options_that_lead_nowhere(classifier):
    with pytest.raises(UserError, match="--max-pictures without --show-dir"):
        classifier.run("--max-pictures", "2")
    with pytest.raises(UserError) as error:
        classifier.run("--submission")
    text = str(error.value)
    assert "small_r18_1x_data.py has no `submission`. Choose a config with one: " in text
    named = text.rpartition(": ")[2].split(", ")
    assert "configs/downstream/loveda/psanet_r50-d8_80k_loveda.py" in named
    assert "configs/downstream/dota/oriented-rcnn_le90_r50_fpn_1x_dota-field.py" in named
    assert all("loveda" in name or "dota-field" in name for name in named)


def test_frozen_features_start_from_the_backbone_file(classifier, tmp_path, capsys):
    cfg = classifier.cfg
    lines = [f"{name}/{number}.png {label}" for label, name in enumerate(COLOURS)
             for number in range(2)]  # fmt: skip
    (tmp_path / "data" / "list.txt").write_text("\n".join(lines))
    cfg.pretrained = "not-given"
    cfg.model.backbone.init_cfg = dict(
        type="Pretrained", checkpoint="not-given", prefix="backbone."
    )
    cfg.test_dataloader.dataset.ann_file = "list.txt"
    cfg.test_cfg = dict(
        type="gersp_mm.FrozenFeaturesLoop", train_ann_file="list.txt",
        knn=dict(k=1, temperature=0.07),
    )  # fmt: skip
    cfg.evaluation = dict(
        dataset="Colours", split="halves", measured_by=dict(kind="knn", image=dict(size=32)),
        metrics={"knn/accuracy/top1": "top-1"},
    )  # fmt: skip
    cfg.default_hooks = dict(pretrained_check=dict(type="gersp_mm.PretrainedCheckHook"))
    cfg.randomness = dict(seed=3)
    classifier.write()
    path = classifier.checkpoint = tmp_path / "backbone.pth"
    export_backbone(classifier.state, path, "ResNet-18", "GeRSP", MEAN, STD, epoch=100)
    classifier.run("--results", tmp_path / "r.jsonl")
    sentence = "Frozen features, weighted kNN (k = 1, T = 0.07), 32 px, halves, train to test"
    assert f"Colours, {sentence}: top-1 100.00" in capsys.readouterr().out
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert row.value == 100  # each image is its own nearest neighbour
    assert row.pretraining == "GeRSP, 100 epochs" and row.seed == 3
    classifier.run("--results", tmp_path / "r.jsonl", "--cfg-options", "test_cfg.knn.k=2")
    assert "weighted kNN (k = 2, T = 0.07)" in capsys.readouterr().out
    other = read_rows(tmp_path / "r.jsonl")[1]
    assert other.measured_by.k == 2 and other.overrides == {} and other.column != row.column
    assert row.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="--show-dir: .* features of all images at once"):
        classifier.run("--show-dir", tmp_path / "p")


def test_images_are_loaded_by_the_scale_of_the_checkpoint(classifier, capsys):
    kind = "4 bands x uint16"
    scale = dict(scale="percentile", bands=[3, 2, 1], limits={kind: [[0, 900]] * 3}, fill={})
    classifier.save(pixel_scale=scale)
    with mock.patch.object(launch, "build_runner", wraps=launch.build_runner) as build:
        classifier.run()
    assert f"Colours, {FINE_TUNING}: top-1" in capsys.readouterr().out  # nothing was changed
    first = build.call_args.args[0].test_dataloader.dataset.pipeline[0]
    assert first.type == "gersp_mm.LoadImage" and first.pixel_scale.limits == scale["limits"]
    classifier.cfg.test_dataloader.dataset.pipeline[0] = dict(type="gersp_mm.LoadImage")
    classifier.write()
    with pytest.raises(
        UserError, match=f"was trained on {kind}.* stretches each image by its own values"
    ):
        classifier.run()


# ------------------------------------------------------------------------------------ detection


def write_coco(folder: Path) -> None:
    images, boxes = [], []
    for number, part in enumerate(("a", "b"), 1):
        write_image(folder / part / "1.jpg", (90, 90, 90), 64)
        images.append(dict(id=number, file_name=f"{part}/1.jpg", width=64, height=64))
        boxes.append(dict(id=number, image_id=number, category_id=1, bbox=[10, 10, 30, 30],
                          area=900, iscrowd=0))  # fmt: skip
    categories = [dict(id=number, name=f"c{number}") for number in (1, 2, 3)]
    content = dict(images=images, annotations=boxes, categories=categories)
    (folder / "coco.json").write_text(json.dumps(content))


def test_boxes_are_drawn_beside_the_ground_truth(tmp_path, capsys):
    data = tmp_path / "data"
    write_coco(data)
    model = detector()
    model.bbox_head.num_classes = 3
    model.test_cfg.update(score_thr=0.0, max_per_img=5)
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(64, 64), keep_ratio=True),
        dict(type="LoadAnnotations", with_bbox=True),
        dict(type="PackDetInputs",
             meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ]  # fmt: skip
    task = Task(tmp_path, dict(
        default_scope="mmdet",
        model=model,
        test_dataloader=loader(
            type="CocoDataset", data_root=str(data), ann_file="coco.json",
            metainfo=dict(classes=("c1", "c2", "c3")), data_prefix=dict(img=""), pipeline=pipeline,
        ),
        test_evaluator=dict(type="CocoMetric", ann_file=str(data / "coco.json"), metric="bbox"),
        test_cfg=dict(),
        evaluation=dict(
            dataset="Squares", split="halves",
            measured_by=dict(kind="detection", boxes="horizontal", recipe="demo", epochs=1),
            metrics={"coco/bbox_mAP_50": "AP50", "coco/bbox_mAP": "AP50:95"},
        ),
    ))  # fmt: skip
    shown = tmp_path / "pictures"
    task.run("--show-dir", shown, "--score-thr", "0.001", "--results", tmp_path / "r.jsonl")
    out = capsys.readouterr().out
    assert f"pictures drawn into {shown}: 2\n" in out
    sentence = "Horizontal boxes, demo's protocol, 1 epoch, halves, train to test"
    assert f"Squares, {sentence}: AP50" in out
    rows = read_rows(tmp_path / "r.jsonl")
    assert {row.metric for row in rows} == {"AP50", "AP50:95"}
    assert [row.model for row in rows] == 2 * ["small_r18"]
    files = sorted(p.relative_to(shown).as_posix() for p in shown.rglob("*") if p.is_file())
    assert files == ["a/1.jpg", "b/1.jpg"]
    left, right = halves(shown / "a" / "1.jpg")
    assert is_drawn(left, boxes.ANNOTATED) and not is_drawn(left, boxes.FALSE)
    assert is_drawn(right, boxes.FALSE)


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The two panels of a picture, without the legend at its foot."""
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"), int)[: int(0.7 * picture.height)]
    middle = pixels.shape[1] // 2
    return pixels[:, :middle], pixels[:, middle:]


def is_drawn(pixels: np.ndarray, colour: str) -> bool:
    """Whether there are lines of a colour, which JPEG changes a little."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(-1) < 60).sum()) > 20


def rotated_model(cfg: Config) -> None:
    """Make a shipped rotated RetinaNet small, and find objects everywhere."""
    cfg.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=5)
    cfg.pretrained = None


@pytest.fixture
def dota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The field's protocol on three tiles of two images."""
    monkeypatch.setenv("GERSP_DATA", str(tmp_path / "data"))
    images = tmp_path / "data" / "dota" / "tiles_1024_200" / "test" / "images"
    for name in ("P0001__1024__0___0", "P0001__1024__824___0", "P0002__1024__0___0"):
        write_image(images / f"{name}.png", side=64)
    name = "rotated-retinanet_le90_r50_fpn_1x_dota-field"
    cfg = Config.fromfile(CONFIGS / "downstream" / "dota" / f"{name}.py")
    rotated_model(cfg)
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    return Task(tmp_path, cfg, name)


def test_dota_submission_is_written_checked_and_replaces_the_old_one_when_it_is_whole(
    dota, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "mine" / "Task1"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("not ours to replace")
    with pytest.raises(UserError, match=r"Task1 holds thesis\.txt too: choose another"):
        dota.run("--submission", folder.parent)
    (folder / "thesis.txt").rename(folder / "Task1_plane.txt")
    path = folder / "Task1.zip"
    path.write_text("the old one")

    with monkeypatch.context() as patch:  # the new one fails in the middle
        patch.setattr(zipfile.ZipFile, "write", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dota.run("--submission", folder.parent)
    assert path.read_text() == "the old one"

    dota.run("--submission", folder.parent)
    assert f"to submit: {path}\n" in capsys.readouterr().out
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["Task1"]
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 15
        lines = [
            line.split() for name in archive.namelist()
            for line in archive.read(name).decode().splitlines()
        ]  # fmt: skip
    assert {line[0] for line in lines} == {"P0001", "P0002"}
    assert "not ours" not in (folder / "Task1_plane.txt").read_text()


def test_dota_of_the_field_has_only_a_submission_and_shows_rotated_boxes(dota, tmp_path, capsys):
    dota.run("--show-dir", tmp_path / "p", "--score-thr", "0.001", "--max-pictures", "1")
    out = capsys.readouterr().out
    assert "can only write a submission, so --submission is assumed" in out
    assert f"to submit: {tmp_path / 'work' / 'submission' / 'Task1' / 'Task1.zip'}\n" in out
    left, right = halves(tmp_path / "p" / "P0001__1024__0___0.png")
    # No ground truth: the bare image beside the boxes.
    shares = [(half == (200, 30, 60)).all(-1).mean() for half in (left, right)]
    assert shares[0] > 0.4 and shares[1] < shares[0] - 0.01
    with pytest.raises(UserError, match="--results: a submission gives no values"):
        dota.run("--results", "r.jsonl")


def test_options_of_an_evaluator_leave_a_submission_a_submission(dota, tmp_path, capsys):
    dota.run("--cfg-options", "test_evaluator.iou_thr=0.2", "test_dataloader.batch_size=1")
    dota.run("--cfg-options", "test_evaluator.iou_thr=0.2")  # once more
    out = capsys.readouterr().out
    assert out.count(f"to submit: {tmp_path / 'work' / 'submission' / 'Task1' / 'Task1.zip'}") == 2
    for option, message in {
        "test_evaluator.outfile_prefix=/tmp/x": "does not apply to a submission. Use",
        "test_evaluator.merge_patches=False": "gives no submission.*submission.only=False",
        "submission.only=perhaps": "submission.only cannot be 'perhaps'. Set it to True or False",
    }.items():
        with pytest.raises(UserError, match=message):
            dota.run("--cfg-options", option)


def test_a_submission_of_unmerged_tiles_is_refused(tmp_path):
    image = write_image(tmp_path / "P0001__1024__0___0.png")
    written = Submission("dota", tmp_path / "s")
    (written.partial / "Task1").mkdir(parents=True)
    with zipfile.ZipFile(written.partial / "Task1" / "Task1.zip", "w") as archive:
        archive.writestr("Task1_plane.txt", "P0001__1024__0___0 0.5 1 1 2 1 2 2 1 2\n")
    with pytest.raises(UserError, match="is the name of a tile"):
        written.finish(OneImage([str(image)]))


class OneImage(list):
    """A data set of paths."""

    def get_data_info(self, number: int) -> dict:
        return dict(img_path=self[number])


def test_rotated_boxes_are_drawn_beside_the_ground_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("GERSP_DATA", str(tmp_path / "data"))
    root = tmp_path / "data" / "dior"
    write_image(root / "JPEGImages-test" / "11726.jpg", (90, 90, 90), 64)
    (root / "obb" / "test").mkdir(parents=True)
    (root / "obb" / "test" / "11726.txt").write_text("10 10 40 10 40 40 10 40 windmill 0\n")
    name = "rotated-retinanet_le90_r50_fpn_1x_dior-r"
    cfg = Config.fromfile(CONFIGS / "downstream" / "dior" / f"{name}.py")
    rotated_model(cfg)
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    # the evaluation itself starts processes, which takes long
    cfg.test_evaluator.update(format_only=True, outfile_prefix=str(tmp_path / "boxes"))
    cfg.evaluation.metrics = {}
    task = Task(tmp_path, cfg, name)
    task.run("--show-dir", tmp_path / "p", "--score-thr", "0.001")
    assert is_drawn(halves(tmp_path / "p" / "11726.jpg")[0], boxes.ANNOTATED)  # the windmill


# --------------------------------------------------------------------------------- segmentation


@pytest.fixture
def loveda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The shipped LoveDA data with a small network, in small images."""
    monkeypatch.setenv("GERSP_DATA", str(tmp_path / "data"))
    root = tmp_path / "data" / "loveda"
    for number, part in enumerate(("val", "val", "test", "test", "test")):
        write_image(root / "img_dir" / part / f"{number}.png", (90, 90, 90))
        if part == "val":
            labels = np.tile(np.arange(8, dtype=np.uint8).repeat(4), (32, 1))  # 0 is no-data
            (root / "ann_dir" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(root / "ann_dir" / part / f"{number}.png")
    name = "psanet_r50-d8_80k_loveda"
    cfg = Config.fromfile(CONFIGS / "downstream" / "loveda" / f"{name}.py")
    cfg.model = mmseg_model()
    cfg.model.backbone.frozen_stages = -1
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 7
    cfg.pretrained = None
    for part in (cfg, cfg.submission):
        part.test_dataloader.num_workers = 0
        part.test_dataloader.dataset.pipeline[1].scale = (32, 32)
    return Task(tmp_path, cfg, name)


def test_loveda_submission_holds_what_was_predicted(loveda, tmp_path, capsys):
    bias = loveda.state["decode_head.conv_seg.bias"]
    bias[6] = 1e6  # the last class everywhere
    loveda.save()
    loveda.run("--submission", "--show-dir", tmp_path / "p")
    path = tmp_path / "work" / "submission" / "LoveDA_submission.zip"
    out = capsys.readouterr().out
    assert f"to submit: {path}\n" in out
    assert "not LoveDA's 1,796 test images" in out
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["2.png", "3.png", "4.png"]
        for name in archive.namelist():
            with archive.open(name) as file, Image.open(file) as image:
                assert image.mode == "L" and image.size == (32, 32)
                assert set(np.unique(image)) == {6}
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["2.png", "3.png", "4.png"]


def test_options_reach_the_submission_or_are_refused(loveda, tmp_path):
    def submit(*options: str) -> None:
        loveda.run("--submission", "--cfg-options", *options)

    with pytest.raises(UserError, match="/nowhere/img_dir/test does not exist"):
        submit("test_dataloader.dataset.data_root=/nowhere")
    with pytest.raises(UserError, match="/there/img_dir/test does not exist"):
        submit(
            "test_dataloader.dataset.data_root=/nowhere",
            "submission.test_dataloader.dataset.data_root=/there",
        )
    with pytest.raises(UserError, match="test_evaluator.iou_metrics belongs to the test with"):
        submit("test_evaluator.iou_metrics=[mDice]")
    with pytest.raises(UserError, match="test_evaluator.output_dir does not apply to a submission"):
        submit("submission.test_evaluator.output_dir=elsewhere")
    other = tmp_path / "other" / "img_dir" / "test"
    write_image(other / "9.png", (90, 90, 90))
    submit(f"test_dataloader.dataset.data_root={tmp_path / 'other'}")
    with zipfile.ZipFile(tmp_path / "work" / "submission" / "LoveDA_submission.zip") as archive:
        assert archive.namelist() == ["9.png"]


def test_segmentation_pictures_and_results(loveda, tmp_path, capsys):
    loveda.run("--show-dir", tmp_path / "p", "--results", tmp_path / "r.jsonl")
    out = capsys.readouterr().out
    crops = "512 px crops, official split, train to val: mIoU val "
    assert f"LoveDA, Segmentation, 80,000 iterations, {crops}" in out
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert row.metric == "mIoU val" and 0 <= row.value <= 100
    assert row.model == "psanet_r50-d8"
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["0.png", "1.png"]
    with Image.open(tmp_path / "p" / "0.png") as picture:
        colours = {tuple(map(int, c)) for c in np.unique(np.array(picture).reshape(-1, 3), axis=0)}
    # building, road, water of the data set's palette, and what is not evaluated
    assert {(255, 0, 0), (255, 255, 0), (0, 0, 255), (96, 96, 96)} <= colours
