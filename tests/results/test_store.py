"""Result files: rows of all versions, wrong lines, and several processes that append."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
from collections import Counter
from pathlib import Path

import pytest

from gersp_mm.checkpoints.origin import origin_of
from gersp_mm.evaluation import rows as old_path
from gersp_mm.results import Pretraining, Row, append_rows, read_rows
from gersp_mm.results.paper import read_paper
from gersp_mm.results.protocol import FrozenKNN, ImageInput, Unparsed
from gersp_mm.results.tables import Tables, collect, to_markdown
from gersp_mm.utils.errors import UserError
from tests.support.smoke import ROOT

OLD = ROOT / "tests" / "fixtures" / "rows_0.1.0.jsonl"
KNN = FrozenKNN(image=ImageInput(size=64), k=20, temperature=0.07)


def row(**changes) -> Row:
    fields = dict(
        dataset="D", measured_by=KNN, model="ResNet-18", metric="top-1", value=1.5, seed=0,
        pretraining="IMP", checkpoint_sha256=None, config="c.yml", commit=None, hardware="h",
        versions={}, seconds=None,
    )  # fmt: skip
    return Row(**{**fields, **changes})


def test_a_row_is_written_with_its_sentence_which_is_not_read(tmp_path):
    append_rows(tmp_path / "r.jsonl", [row()])
    line = json.loads((tmp_path / "r.jsonl").read_text())
    assert line["protocol"] == KNN.sentence and line["schema_version"] == 2
    line["protocol"] = "another sentence"
    (tmp_path / "r.jsonl").write_text(json.dumps(line))
    assert read_rows(tmp_path / "r.jsonl") == [row()]


def test_rows_of_release_0_1_0_are_shown_and_averaged_and_never_the_papers():
    rows = read_rows(OLD)
    sentences = [json.loads(line)["protocol"] for line in OLD.read_text().splitlines()]
    assert len(set(sentences)) == len(rows) == 21
    assert [one.measured_by for one in rows] == [Unparsed(text=text) for text in sentences]
    assert [one.protocol for one in rows] == sentences
    assert {one.settings.method for one in rows if one.checkpoint_sha256 is None} == {"random"}
    another = [one.model_copy(update=dict(seed=77, value=one.value + 2)) for one in rows]
    cells, repeats = collect(("here", one) for one in rows + another)
    means = [cell.mean for found in cells.values() for cell in found.values()]
    assert not repeats and means == pytest.approx([one.value + 1 for one in rows])
    paper = read_paper(ROOT / "results" / "paper.csv")
    table = Tables(cells, paper=paper)
    assert not any(value.matches(column) for value in paper for column in cells)
    assert "demo-trees, 4 epochs on two threads, train areas to test areas" in to_markdown(table)


def test_an_old_row_of_the_papers_protocol_is_not_comparable():
    sentence = "horizontal boxes, released protocol, trainval to test"
    (line, *_) = map(json.loads, OLD.read_text().splitlines())
    old = dict(line, dataset="DIOR", model="retinanet_r50_fpn", metric="AP50", protocol=sentence)
    column = Row.model_validate(old).column
    assert not any(v.matches(column) for v in read_paper(ROOT / "results" / "paper.csv"))


def test_recorded_rows_are_typed():
    rows = [one for path in (ROOT / "results").glob("*.jsonl") for one in read_rows(path)]
    assert len(rows) == 72 + 3 + 56 + 915 + 32
    assert not any(isinstance(one.measured_by, Unparsed) for one in rows)
    assert all((one.checkpoint_sha256 is None) == (one.settings.method == "random") for one in rows)
    queue = [one.settings for one in rows if one.pretraining == "GeRSP with a queue of 1,024"]
    assert queue[0] == Pretraining(method="GeRSP", updates=600, options={"model.queue_len": 1024})
    own = [one.settings for one in rows if str(one.pretraining).endswith(", own statistics")]
    assert len(own) == 6 * 27 and {one.statistics for one in own} == {"own"}
    assert Counter(one.threads for one in rows if one.threads) == {2: 4, 1: 94}


def test_settings_are_those_of_the_backbone(tmp_path):
    stored = dict(method="GeRSP", epoch=3, iterations=600, statistics="own", arch="ResNet-18")
    whole = Pretraining(method="GeRSP", epochs=3, updates=600, statistics="own")
    assert Pretraining.of_origin(stored) == whole
    assert Pretraining.of_origin(origin_of(str(tmp_path / "b.pth"), stored)) == whole
    assert Pretraining.of_origin(dict(method="GeRSP")) == Pretraining(method="GeRSP")


def line_of(**changes) -> str:
    return json.dumps({**row().as_dict(), **changes})


@pytest.mark.parametrize(
    "line, text",
    [
        ('{"dataset": "DIOR"', "line 2 is not valid JSON"),
        ("[1, 2]", "line 2: must be a "),
        (json.dumps({"value": 1.0}), "line 2: dataset is missing"),
        (line_of(modle="R"), "line 2: modle is no field. Did you mean model?"),
        (line_of(value="61.2"), "line 2: value must be a valid number, got '61.2'"),
        (line_of(value=math.nan), "line 2: value must be a finite number, got nan"),
        (line_of(measured_by=dict(kind="knn", k=0)), "line 2: measured_by.image is missing"),
        (line_of(measured_by=dict(kind="svm")), "line 2: measured_by.kind must be one of knn, "),
        (line_of(schema_version=3), "line 2: schema_version must be 2, got 3"),
    ],
)
def test_bad_lines_are_named_by_number_field_and_fix(line, text, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f"{line_of()}\n{line}\n")
    with pytest.raises(UserError, match=re.escape(f"{path}, {text}")):
        read_rows(path)


def test_the_old_path_takes_and_gives_dicts(tmp_path):
    path = tmp_path / "r.jsonl"
    (of_0_1_0, *_) = map(json.loads, OLD.read_text().splitlines())
    old_path.append_rows(path, [of_0_1_0, row().as_dict(), row(seed=1)])
    found = old_path.read_rows(path)
    assert found[0]["protocol"] == of_0_1_0["protocol"] and found[1:] == [
        row().as_dict(), row(seed=1).as_dict(),
    ]  # fmt: skip
    assert [one["value"] for one in found] == [of_0_1_0["value"], 1.5, 1.5]
    with pytest.raises(UserError, match="row 1: seed is missing"):
        old_path.append_rows(path, [{k: v for k, v in row().as_dict().items() if k != "seed"}])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no results file .*none\.jsonl"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize("tail, kept", [('{"dataset": "DI', 1), (line_of(seed=2), 2)])
def test_an_unfinished_last_line_is_removed_a_whole_one_kept(tail, kept, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f"{line_of(seed=1)}\n{tail}")
    append_rows(path, [row(seed=3)])
    assert [one.seed for one in read_rows(path)] == [*range(1, kept + 1), 3]


def _append(path: Path, seed: int) -> None:
    for _ in range(20):
        append_rows(path, [row(seed=seed, model="m" * 5000), row(seed=seed)])


def test_processes_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "r.jsonl"
    workers = [context.Process(target=_append, args=(path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    read = [one.seed for one in read_rows(path)]
    assert sorted(read) == sorted(40 * [0, 1, 2])
    assert all(read[i] == read[i + 1] for i in range(0, len(read), 2))  # calls stay together
