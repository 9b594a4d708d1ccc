"""Result rows: names and scale of values, where they come from, and the file they are in."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from gersp_mm.evaluation import metrics
from gersp_mm.resources import list_configs, resource
from gersp_mm.results import store
from gersp_mm.utils import provenance
from gersp_mm.utils.errors import UserError
from tests.smoke import ROOT

DIOR = dict(
    dataset="DIOR",
    protocol="horizontal boxes, released protocol",
    split="trainval to test",
    metrics={"coco/bbox_mAP_50": "AP50", "coco/bbox_mAP": "AP50:95"},
)
HOST = {"coco/bbox_mAP": 0.38, "coco/bbox_mAP_50": 0.612, "coco/bbox_mAP_s": -1.0}


def evaluation(**metrics) -> dict:
    return dict(DIOR, metrics=metrics)


def row(**changes) -> dict:
    return {**dict.fromkeys(store.FIELDS, "x"), "value": 1.5, "versions": {}, **changes}


def test_summary_names_data_protocol_split_and_metrics():
    text = "DIOR, horizontal boxes, released protocol, trainval to test: AP50 61.2, AP50:95 38.0"
    assert metrics.summary(DIOR, HOST) == text


@pytest.mark.parametrize(
    "key, value, per_cent, text",
    [
        ("coco/bbox_mAP_75", 0.123, 12.3, "12.3"),
        ("coco/storage-tank_precision", 0.5, 50.0, "50.0"),
        ("dota/mAP", 0.70512, 70.512, "70.5"),
        ("dota/AP50", 0.705, 70.5, "70.5"),
        ("accuracy/top1", 97.875, 97.875, "97.88"),
        ("knn/accuracy/top1", 52.2, 52.2, "52.20"),
        ("fewshot_10/accuracy/top1_std", 1.25, 1.25, "1.25"),
        ("mIoU", 48.39, 48.39, "48.39"),
    ],
)
def test_values_are_per_cent_whichever_host_gave_them(key, value, per_cent, text):
    one = evaluation(**{key: "name"})
    assert metrics.in_per_cent(one, {key: value, "other": 3}) == {"name": pytest.approx(per_cent)}
    assert metrics.summary(one, {key: value}).endswith(f"name {text}")


def test_an_unknown_metric_needs_its_scale():
    with pytest.raises(UserError, match=r"'f1' is a fraction or per cent is not known; write"):
        metrics.wanted_metrics(evaluation(f1="F1"))
    known = evaluation(f1=dict(name="F1", scale=100))
    assert metrics.in_per_cent(known, dict(f1=0.25)) == {"F1": 25.0}


def test_a_metric_that_was_not_measured_is_an_error_and_an_undefined_one_no_row():
    with pytest.raises(UserError, match="gave no coco/bbox_mAP_50, only dota/mAP"):
        metrics.in_per_cent(DIOR, {"dota/mAP": 0.5})
    small = evaluation(**{"coco/bbox_mAP_s": "AP small", "mIoU": "mIoU"})
    values = dict(HOST, mIoU=math.nan)
    assert metrics.in_per_cent(small, values) == {"AP small": None, "mIoU": None}
    assert metrics.summary(small, values).endswith(": AP small undefined, mIoU undefined")
    assert metrics.result_rows(small, values, **SOURCE) == []


def test_a_detector_that_finds_nothing_has_an_ap_of_zero(tmp_path):
    coco_metric = pytest.importorskip("mmdet.evaluation.metrics").CocoMetric
    boxes = [dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 5, 5], area=25, iscrowd=0)]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", width=20, height=20)],
        annotations=boxes, categories=[dict(id=1, name="ship")],
    )  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    host = coco_metric(ann_file=str(tmp_path / "coco.json"), metric="bbox")
    host.dataset_meta = dict(classes=("ship",))
    nothing = dict(
        bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long)
    )
    host.process({}, [dict(img_id=1, ori_shape=(20, 20), pred_instances=nothing)])
    measured = host.evaluate(1)
    assert measured == {}
    sizes = dict(DIOR["metrics"], **{"coco/bbox_mAP_s": "AP small"})
    wanted = dict(DIOR, metrics=sizes)
    assert metrics.in_per_cent(wanted, measured) == {"AP50": 0.0, "AP50:95": 0.0, "AP small": None}
    assert metrics.summary(DIOR, measured).endswith(": AP50 0.0, AP50:95 0.0")
    assert [r["value"] for r in metrics.result_rows(DIOR, measured, **SOURCE)] == [0.0, 0.0]


def test_nothing_measured_is_no_zero_elsewhere():
    for key in ("dota/mAP", "accuracy/top1", "mIoU"):
        with pytest.raises(UserError, match=f"gave no {key}, only nothing"):
            metrics.in_per_cent(evaluation(**{key: "name"}), {})
    with pytest.raises(UserError, match="gave no coco/bbox_mAP_50, only coco/AR"):
        metrics.in_per_cent(DIOR, {"coco/AR@100": 0.5})


def test_evaluation_without_split_is_refused():
    with pytest.raises(UserError, match="evaluation has no protocol, split"):
        metrics.wanted_metrics(dict(dataset="DIOR", metrics={}))


def test_the_metrics_of_every_shipped_config_are_known():
    measured = 0
    for name in (name for name in list_configs() if name.startswith("downstream/")):
        cfg = Config.fromfile(resource("configs", name))
        measured += len(metrics.wanted_metrics(cfg.evaluation))
        assert metrics.model_name(cfg, name)
    assert measured > 20


SOURCE = dict(
    model="RetinaNet",
    config="configs/downstream/dior/retinanet_r50_fpn_24e_dior.py",
    seed=3,
    pretrained=dict(path="/a/b.pth", sha256="ab12", method="GeRSP", arch="ResNet-50", epoch=100),
    seconds=12.345,
)


def test_rows_have_all_fields_of_the_recorded_results(tmp_path):
    made = metrics.result_rows(DIOR, HOST, **SOURCE)
    recorded = json.loads((ROOT / "results" / "demo.jsonl").read_text().splitlines()[0])
    assert [list(one) for one in made] == 2 * [list(recorded)] == 2 * [list(store.FIELDS)]
    first, second = made
    assert (first["metric"], first["value"]) == ("AP50", 61.2)
    assert (second["metric"], second["value"]) == ("AP50:95", 38.0)
    assert first["dataset"] == "DIOR"
    assert first["protocol"] == "horizontal boxes, released protocol, trainval to test"
    assert first["pretraining"] == "GeRSP, 100 epochs"
    assert first["checkpoint_sha256"] == "ab12"
    assert first["seed"] == 3 and first["seconds"] == 12.3
    assert {"python", "gersp_mm", "torch", "mmengine"} <= set(first["versions"])
    assert first["hardware"]
    assert "/a/b.pth" not in json.dumps(made)
    store.append_rows(tmp_path / "new" / "r.jsonl", made)
    assert store.read_rows(tmp_path / "new" / "r.jsonl") == made


@pytest.mark.parametrize(
    "pretrained, text",
    [
        (dict(method="from scratch", path=None, sha256=None), "from scratch"),
        (dict(method=None, path="/home/me/resnet50.pth", sha256="1", epoch=None), "resnet50.pth"),
        (None, None),
    ],
)
def test_pretraining_in_words(pretrained, text):
    (one, _) = metrics.result_rows(DIOR, HOST, **dict(SOURCE, pretrained=pretrained))
    assert one["pretraining"] == text


def test_recorded_results_are_read():
    assert len(store.read_rows(ROOT / "results" / "demo.jsonl")) > 20


def test_names_of_models():
    classifier = dict(type="ImageClassifier", backbone=dict(type="mmpretrain.ResNet", depth=50))
    assert metrics.model_name(dict(model=classifier), "finetune_r50_eurosat.py") == "ResNet-50"
    detector = dict(model=dict(type="RetinaNet"))
    for name in ("retinanet_r50_fpn_24e_dior", "retinanet_r50_fpn_1x_dior-r"):
        assert metrics.model_name(detector, f"a/{name}.py") == "retinanet_r50_fpn"
    assert metrics.model_name(dict(detector, evaluation=dict(model="Mine")), "x.py") == "Mine"


def test_config_names_hold_no_path_of_the_machine(tmp_path):
    relative = "configs/downstream/dior/retinanet_r50_fpn_24e_dior.py"
    assert metrics.config_name(ROOT / relative) == relative
    assert metrics.config_name(tmp_path / "mine.py") == "mine.py"


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


@pytest.mark.parametrize(
    "line, text",
    [
        ('{"dataset": "DIOR"', "line 2 is no JSON"),
        ("[1, 2]", "line 2: not an object"),
        (json.dumps({k: v for k, v in row().items() if k != "seed"}), "line 2: seed is missing"),
        (json.dumps(row(lucky=7)), "line 2: lucky is no field"),
        (json.dumps(row(value="61.2")), "line 2: value must be a finite number, got '61.2'"),
        (json.dumps(row(value=math.nan)), "line 2: value must be a finite number, got nan"),
    ],
)
def test_bad_lines_are_named_by_their_number(line, text, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f"{json.dumps(row())}\n{line}\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, {text}")):
        store.read_rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no results file .*none\.jsonl"):
        store.read_rows(tmp_path / "none.jsonl")


def test_all_rows_are_appended_or_none(tmp_path):
    path = tmp_path / "r.jsonl"
    store.append_rows(path, [row(seed=1)])
    with pytest.raises(UserError, match="value must be a finite number"):
        store.append_rows(path, [row(seed=2), row(value=None)])
    assert [one["seed"] for one in store.read_rows(path)] == [1]


@pytest.mark.parametrize("tail, kept", [('{"dataset": "DI', 1), (json.dumps(row(seed=2)), 2)])
def test_an_unfinished_last_line_is_removed_a_whole_one_kept(tail, kept, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f"{json.dumps(row(seed=1))}\n{tail}")
    store.append_rows(path, [row(seed=3)])
    assert [one["seed"] for one in store.read_rows(path)] == [*range(1, kept + 1), 3]


def _append(path: Path, seed: int) -> None:
    for _ in range(20):
        store.append_rows(path, [row(seed=seed, model="m" * 5000), row(seed=seed)])


def test_processes_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "r.jsonl"
    workers = [context.Process(target=_append, args=(path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    read = [one["seed"] for one in store.read_rows(path)]
    assert sorted(read) == sorted(40 * [0, 1, 2])
    assert all(read[i] == read[i + 1] for i in range(0, len(read), 2))  # calls stay together
