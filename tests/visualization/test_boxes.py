"""Boxes of detectors beside the annotated ones: which of them count as found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from gersp_mm.visualization import boxes

TRUTH = [(0, 0, 10, 10), (20, 0, 10, 10)]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([(0, 0, 10, 10), (1, 0, 10, 10)], [True, False]),  # a tree is found once
        ([(0, 0, 10, 5)], [True]),  # IoU 0.5
        ([(0, 0, 10, 4.9)], [False]),
        ([(40, 0, 10, 10), (21, 0, 10, 10), (0, 1, 10, 10)], [False, True, True]),
        ([], []),
    ],
)
def test_a_box_is_found_once(found, told):
    assert boxes.hits(found, TRUTH) == told
    assert boxes.hits(found, []) == [False] * len(found)


def test_a_picture_counts_what_is_found(tmp_path: Path, monkeypatch):
    Image.new("RGB", (40, 20)).save(tmp_path / "ABC_1_x0_y0.png")
    coco = dict(
        images=[dict(id=1, file_name="ABC_1_x0_y0.png")],
        annotations=[dict(image_id=1, bbox=box) for box in TRUTH],
    )
    scored = [((0, 0, 10, 10), 0.9), ((1, 0, 10, 10), 0.8), ((20, 0, 10, 10), 0.2)]
    predicted = [dict(image_id=1, bbox=box, score=score) for box, score in scored]
    (tmp_path / "boxes.json").write_text(json.dumps(predicted))
    figures = []
    monkeypatch.setattr(boxes, "save_figure", lambda figure, out: figures.append(figure))
    files = dict(GeRSP=tmp_path / "boxes.json")
    boxes.draw_scenes(coco, tmp_path, files, 0.3, tmp_path / "out.png")
    (figure,) = figures
    truth, found = figure.axes
    assert truth.get_ylabel() == "ABC_1" and truth.get_title() == "annotated: 2"
    assert found.get_title() == "GeRSP: 1 of 2 found, 1 false"
    assert "a score of 0.3" in figure.get_suptitle()
    assert len(figure.legends[0].get_texts()) == 3
    assert not found.texts
    boxes.draw_scenes(coco, tmp_path, files, 0.95, tmp_path / "out.png")
    assert [text.get_text() for text in figures[-1].axes[1].texts] == ["no box"]
