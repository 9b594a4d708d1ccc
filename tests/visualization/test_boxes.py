"""Boxes of detectors beside the annotated ones: which count as found, and what a picture says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.transforms import Bbox
from mmengine.structures import InstanceData
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
    found, truth = (boxes.of_coco(dict(bbox=box) for box in part) for part in (found, TRUTH))
    assert boxes.hits(found, truth) == told
    assert boxes.hits(found, boxes.of_coco([])) == [False] * len(found)


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
    drawn = [to_hex(patch.get_edgecolor()) for patch in found.patches]
    assert drawn == [boxes.HIT, boxes.FALSE]
    boxes.draw_scenes(coco, tmp_path, files, 0.95, tmp_path / "out.png")
    assert [text.get_text() for text in figures[-1].axes[1].texts] == ["nothing found"]


def rectangles(*entries: tuple, scores: list[float] | None = None) -> boxes.Boxes:
    """Boxes (left, top, width, height, class)."""
    made = boxes.of_coco(dict(bbox=entry[:4], category_id=entry[4]) for entry in entries)
    return replace(made, scores=None if scores is None else np.array(scores))


CLASSES = ("storage_tank", "ship")
IMAGE = Image.new("RGB", (200, 100), (60, 90, 60))


def colours(axis) -> list[tuple[str, str]]:
    """Colour and style of the outlines of a panel, in the order of drawing."""
    return [(to_hex(patch.get_edgecolor()), patch.get_linestyle()) for patch in axis.patches]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_right_and_wrong_predictions_have_their_colours():
    truth = rectangles((10, 40, 20, 20, 0), (60, 40, 20, 20, 1), (110, 40, 20, 20, 1))
    others = rectangles((160, 40, 20, 20, 0))
    found = rectangles(
        (11, 40, 20, 20, 0), (60, 41, 20, 20, 0), (10, 41, 20, 20, 0), (161, 40, 20, 20, 0),
        scores=[0.9, 0.8, 0.7, 0.6],
    )  # fmt: skip
    figure = boxes.draw_detections(IMAGE, truth, found, CLASSES, "my tile, my_config", others)
    left, right = figure.axes
    assert colours(left) == [(boxes.PLAIN, "-")] + [(boxes.ANNOTATED, "-")] * 3
    assert colours(right) == [
        (boxes.ANNOTATED, "--"), (boxes.ANNOTATED, "--"),  # not found
        (boxes.HIT, "-"),
        (boxes.FALSE, "-"),  # another class
        (boxes.FALSE, "-"),  # found twice
        (boxes.PLAIN, "-"),  # of an object that does not count
    ]  # fmt: skip
    assert figure.get_suptitle() == "my tile, my_config"
    assert left.get_title() == "truth: 3 objects"
    assert right.get_title() == "prediction: 1 of 3 found, 2 false"
    assert left.get_xlabel() == "ship 2, storage tank 1"
    assert right.get_xlabel().replace("\n", " ") == "ship 0 of 2, storage tank 1 of 1 and 2 false"
    assert legend(figure) == [
        "truth", "truth that is not found", "right prediction",
        "false: class, place (IoU < 0.5) or found twice", "does not count",
    ]  # fmt: skip
    assert len({boxes.ANNOTATED, boxes.HIT, boxes.FALSE, boxes.PLAIN}) == 4


@pytest.mark.parametrize("shape", [(40, 40), (1200, 400)])
def test_labels_stay_in_the_frame_and_hide_no_box(shape):
    width, height = shape
    rng = np.random.default_rng(0)
    places = rng.random((40, 2)) * (0.95 * width, 0.95 * height)
    corner = [(0.98 * width, 0, 0.02 * width, 0.05 * height, 1)]  # Above and right is no room.
    entries = [(x, y, 0.05 * width, 0.05 * height, 1) for x, y in places] + corner
    truth = rectangles(*entries)
    found = replace(truth, scores=np.linspace(1, 0.4, len(entries)))
    figure = boxes.draw_detections(Image.new("RGB", shape), truth, found, CLASSES)
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert axis.texts
        frame = axis.get_window_extent()
        labels = [text.get_bbox_patch().get_window_extent() for text in axis.texts]
        drawn = [patch.get_window_extent() for patch in axis.patches]
        for number, label in enumerate(labels):
            assert frame.x0 - 1 <= label.x0 and label.x1 <= frame.x1 + 1
            assert frame.y0 - 1 <= label.y0 and label.y1 <= frame.y1 + 1
            for box in drawn:
                shared = Bbox.intersection(label, box)
                area = shared.width * shared.height if shared else 0
                assert area <= 1.2 * 0.05 * box.width * box.height + 1
            assert not any(label.overlaps(other) for other in labels[:number])
    assert set(text.get_text() for text in figure.axes[0].texts) == {"ship"}
    assert figure.axes[1].texts[0].get_text() == "ship 1.00"


def test_panels_without_boxes_say_so():
    nothing = rectangles(scores=[])
    left, right = boxes.draw_detections(IMAGE, rectangles(), nothing, CLASSES).axes
    assert [text.get_text() for text in left.texts] == ["nothing annotated"]
    assert [text.get_text() for text in right.texts] == ["nothing found"]
    assert right.get_title() == "prediction: 0 of 0 found, 0 false"


def test_without_annotations_nothing_is_told_right_or_wrong():
    found = rectangles((10, 40, 20, 20, 1), scores=[0.9])
    figure = boxes.draw_detections(IMAGE, None, found, CLASSES)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("image, without truth", "prediction: 1 object")
    assert not left.texts and right.get_xlabel() == "ship 1"
    assert colours(right) == [(boxes.PLAIN, "-")] and legend(figure) == ["prediction"]


def test_rotated_boxes_are_compared_by_their_corners():
    """The upright bounds of two crossing bars are equal; they share a small part of their areas."""
    bars = torch.tensor([[50.0, 50, 60, 6, np.pi / 4], [50.0, 50, 60, 6, -np.pi / 4]])
    both = boxes.Boxes.of(InstanceData(bboxes=bars, labels=torch.zeros(2, dtype=torch.long)))
    assert np.allclose(both.corners[0].mean(0), (50, 50))
    assert np.allclose(both.corners[0].max(0), 50 + 33 / np.sqrt(2))
    table = boxes.overlaps(both, both)
    assert np.allclose(table, [[1, 36 / 684], [36 / 684, 1]], atol=1e-4)
    skew = replace(both, corners=np.array([[[0, 0], [30, 10], [28, 22], [2, 20]]] * 2, float))
    moved = replace(skew, corners=skew.corners[:, ::-1])  # In the other direction.
    assert np.allclose(boxes.overlaps(skew, moved), 1, atol=1e-5)


def test_boxes_of_a_host_come_by_score_above_the_threshold():
    instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 4, 2], [10, 0, 14, 2], [20, 0, 24, 2]]),
        labels=torch.tensor([0, 1, 2]),
        scores=torch.tensor([0.3, 0.5, 0.9]),
    )
    found = boxes.Boxes.of(instances, 0.3)
    assert found.labels.tolist() == [2, 1]
    assert found.corners[0].tolist() == [[20, 0], [24, 0], [24, 2], [20, 2]]
