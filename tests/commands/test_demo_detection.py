"""The detection demo: how scenes are cut, what a run leaves, and what a second call does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from mmpretrain.models import ResNet
from PIL import Image

from gersp_mm.backbones.exported import export_backbone
from gersp_mm.commands import demo_detection as tool
from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.engine.runs import RunFolder
from gersp_mm.results.store import read_rows
from gersp_mm.utils.errors import UserError
from tests.support.smoke import ROOT

CUT = ROOT / "demo" / "cut_trees.py"
TOOL = ROOT / "tools" / "demo_detection.py"
SIDE = 400  # px, as the scene has in truth: train area x 0 to 208, test area x 272 to 400
# First and last pixel of trees, counted from 1 as Pascal VOC does.
TREES = (
    (11, 21, 40, 60),  # in the first train tile alone
    (301, 181, 330, 220),  # half in either test tile
    (380, 388, 400, 400),  # at the corner of the scene
    (211, 301, 250, 340),  # between the areas
    (193, 101, 232, 140),  # 16 of its 40 columns in two train tiles
    (201, 11, 240, 50),  # 8 of its 40 columns in the train area
)


def write_scene(folder: Path) -> Path:
    """Write the scene OSBS_029 as ``demo/prepare_demo.py`` does, with the trees of ``TREES``.

    A pixel's red and green say where it is; trees are blue.
    """
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    pixels = np.stack([x // 2, y // 2, np.full_like(x, 40)], -1).astype(np.uint8)
    objects = ""
    for x1, y1, x2, y2 in TREES:
        pixels[y1 - 1 : y2, x1 - 1 : x2, 2] = 220
        objects += (
            f"<object><name>Tree</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        )
    for name in ("images", "annotations"):
        (folder / "scenes" / name).mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "scenes/images/OSBS_029.png")
    (folder / "scenes/annotations/OSBS_029.xml").write_text(f"<annotation>{objects}</annotation>")
    counts = dict.fromkeys(("remote_sensing", "natural", "train", "test"), 0)
    request = dict(remote_sensing=None, natural=None)
    manifest = dict(layout=1, request=request, files={}, counts=counts, evaluation=None, tiles={})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def cut_trees(monkeypatch: pytest.MonkeyPatch):
    """The cutting as a module; it imports its neighbour."""
    monkeypatch.syspath_prepend(ROOT / "demo")
    spec = importlib.util.spec_from_file_location("cut_trees", CUT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------ tiles


def test_tiles_are_spread_evenly_from_end_to_end(cut_trees):
    assert cut_trees.spread(0, 400, 200, 200) == [(0, 200), (200, 400)]
    assert cut_trees.spread(0, 400, 200, 100) == [(0, 200), (100, 300), (200, 400)]
    assert cut_trees.spread(272, 400, 200, 200) == [(272, 400)]
    for stride in (100, 200):
        pieces = cut_trees.spread(1500, 2299, 200, stride)
        assert pieces[0][0] == 1500 and pieces[-1][1] == 2299
        steps = np.diff(pieces, axis=0)
        assert steps.min() >= stride - 2 and steps.max() <= stride + 2
        assert all(abs(right - left - 200) <= 2 for left, right in pieces)
    edges = cut_trees.spread(0, 2472, 200, 200)
    assert [a[1] for a in edges[:-1]] == [b[0] for b in edges[1:]], "side by side"


def test_boxes_are_clipped_and_small_remains_dropped(cut_trees):
    boxes = np.array(
        [
            [110, 210, 140, 240],  # inside
            [90, 250, 130, 290],  # three quarters
            [80, 300, 110, 330],  # a third, just
            [79, 340, 109, 370],  # less than a third
            [93, 200, 107, 230],  # half, but 7 px wide
            [0, 0, 100, 200],  # touches a corner alone
            [300, 300, 340, 340],  # elsewhere
        ],
        dtype=float,
    )
    kept, dropped = cut_trees.clip_boxes(boxes, (100, 200, 300, 400))
    assert kept.tolist() == [[10, 10, 40, 40], [0, 50, 30, 90], [0, 100, 10, 130]]
    assert dropped == 2
    assert cut_trees.clip_boxes(boxes[:0], (0, 0, 200, 200))[0].shape == (0, 4)


def test_boxes_outside_the_scene_are_left_out_and_named(cut_trees, tmp_path, capsys):
    boxes = np.array([[0, 0, 10, 10], [90, 5, 130, 15], [100, 5, 130, 15], [5, -20, 15, 0]], float)
    kept = cut_trees.inside_scene(boxes, (50, 100, 3), tmp_path / "a.xml")
    assert kept.tolist() == boxes[:2].tolist()
    file = tmp_path / "a.xml"
    warned = f"WARNING: {file}: boxes outside the scene, left out: objects 3, 4\n"
    assert capsys.readouterr().err == warned


@pytest.mark.parametrize("edge", ["nan", "inf"])
def test_boxes_without_numbers_are_refused(cut_trees, tmp_path, edge):
    box = f"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{edge}</xmax><ymax>5</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><object>{box}</object></annotation>")
    with pytest.raises(UserError, match="a.xml: object 1 has a box without extent"):
        cut_trees.read_boxes(tmp_path / "a.xml")


def test_scene_to_tiles_and_coco(cut_trees, tmp_path: Path, capsys):
    data = write_scene(tmp_path / "demo")
    cut_trees.main(cut_trees.parse_args([str(data)]))
    counts = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train,", "all", "3", "3", "1"] in counts and ["test,", "all", "2", "3", "0"] in counts

    found = {}
    for part in ("train", "test"):
        coco = json.loads((data / "trees" / "coco" / f"{part}.json").read_text())
        assert coco["categories"] == [dict(id=1, name="tree")]
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        assert len({entry["id"] for entry in coco["annotations"]}) == len(coco["annotations"])
        found[part] = [(names[e["image_id"]], e["bbox"]) for e in coco["annotations"]]
        for image in coco["images"]:
            with Image.open(data / "trees" / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"])
                pixels = np.asarray(opened).astype(int)
            left, top = (int(text[1:]) for text in Path(image["file_name"]).stem.split("_")[-2:])
            right = left + image["width"]
            assert right <= 208 if part == "train" else left >= 272 and right <= 400
            plain = pixels[..., 2] < 60  # no tree
            x = (left + np.arange(image["width"])) // 2
            y = (top + np.arange(image["height"])) // 2
            assert abs(pixels[..., 0] - x)[plain].max() < 8
            assert abs(pixels[..., 1] - y[:, None])[plain].max() < 8
            blue = pixels[..., 2] > 130
            for entry in coco["annotations"]:
                if entry["image_id"] == image["id"]:
                    x, y, w, h = map(int, entry["bbox"])
                    assert entry["area"] == w * h == blue[y : y + h, x : x + w].sum()
    assert found["train"] == [
        ("train/OSBS_029_x0000_y0000.jpg", [10, 20, 30, 40]),
        ("train/OSBS_029_x0000_y0000.jpg", [192, 100, 16, 40]),
        ("train/OSBS_029_x0000_y0100.jpg", [192, 0, 16, 40]),
    ]
    assert found["test"] == [
        ("test/OSBS_029_x0272_y0000.jpg", [28, 180, 30, 20]),
        ("test/OSBS_029_x0272_y0200.jpg", [28, 0, 30, 20]),
        ("test/OSBS_029_x0272_y0200.jpg", [107, 187, 21, 13]),
    ]


def test_what_cannot_be_cut(cut_trees, tmp_path: Path):
    with pytest.raises(UserError, match=r"no \.xml: run python demo/prepare_demo\.py first"):
        cut_trees.cut_scenes(tmp_path)
    data = write_scene(tmp_path / "demo")
    image, boxes = data / "scenes/images/OSBS_029.png", data / "scenes/annotations/OSBS_029.xml"
    Image.new("RGB", (400, 300)).save(image)
    with pytest.raises(UserError, match="OSBS_029.png is smaller than its train area"):
        cut_trees.cut_scenes(data)
    image.write_bytes(b"no image")
    with pytest.raises(UserError, match="OSBS_029.png cannot be read"):
        cut_trees.cut_scenes(data)
    text = boxes.read_text()
    boxes.write_text(text.replace("<xmin>301<", "<xmin>331<"))
    with pytest.raises(UserError, match="OSBS_029.xml: object 2 has a box without extent"):
        cut_trees.cut_scenes(data)
    boxes.write_text(text.replace("<xmin>301</xmin>", ""))
    with pytest.raises(UserError, match="OSBS_029.xml is not a Pascal VOC annotation"):
        cut_trees.cut_scenes(data)
    assert not (data / "trees" / "coco").exists()


# ------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--checkpoint", "/no/such.pth"), "/no/such.pth. Run bash tools/quickstart.sh first"),
        (("--checkpoint", __file__, "--epochs", "0"), "--epochs must be at least 1, got 0"),
        (("--checkpoint", __file__, "--seeds", "1", "1"), "--seeds must be different"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(options, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.parse_args([*options])
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path):
    assert tool.claim(RunFolder(tmp_path), dict(epochs=2, seed=0)) is None
    assert tool.claim(RunFolder(tmp_path), dict(epochs=2, seed=0)) is None, "begun, not finished"
    with pytest.raises(UserError, match="a run with epochs 2 instead of 3: choose another"):
        tool.claim(RunFolder(tmp_path), dict(epochs=3, seed=0))
    assert json.loads((tmp_path / tool.RUN).read_text()) == dict(settings=dict(epochs=2, seed=0))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
def test_both_starts_from_scene_to_report(tmp_path: Path, monkeypatch, capfd):
    write_scene(tmp_path / "data" / "demo")
    network = ResNet(18)
    network.init_weights()
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    backbone = tmp_path / "backbone.pth"
    export_backbone(state, backbone, "ResNet-18", "GeRSP", list(RGB_MEAN), list(RGB_STD))
    monkeypatch.setenv("GERSP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work_dir = tmp_path / "work"
    args = tool.parse_args(
        ["--checkpoint", str(backbone), "--epochs", "1", "--work-dir", str(work_dir)]
    )
    tool.run(args)
    out = capfd.readouterr().out
    assert "2 test tiles with 3 trees" in out and "epoch 1, iteration 1" in out
    assert "tensors of model.backbone are those of" in out

    report = json.loads((work_dir / tool.REPORT).read_text())
    (random,), (gersp,) = report["runs"]["random"], report["runs"]["gersp"]
    assert random["pretrained"] == dict(method="random", path=None, sha256=None)
    assert gersp["pretrained"]["sha256"] == gersp["settings"]["checkpoint_sha256"]
    assert gersp["pretrained"]["method"] == "GeRSP"
    rows = read_rows(work_dir / tool.ROWS)
    assert [row.as_dict() for row in rows] == [*random["rows"], *gersp["rows"]]
    found = [(row.pretraining, row.metric, row.model) for row in rows]
    model = "faster-rcnn_r18_fpn"
    assert found == [
        (start, metric, model) for start in ("random", "GeRSP") for metric in ("AP50", "AP50:95")
    ]
    for run in (random, gersp):
        assert {row["protocol"] for row in run["rows"]} == {
            "Horizontal boxes, demo's protocol, 1 epoch, demo areas, train to test"
        }
        assert [row["value"] for row in run["rows"]] == pytest.approx(
            [100 * run["metrics"][f"coco/bbox_{key}"] for key in ("mAP_50", "mAP")]
        )
    for start in ("random", "gersp"):
        found = json.loads((work_dir / f"{start}_seed0" / "predictions.bbox.json").read_text())
        assert {entry["image_id"] for entry in found} <= {1, 2}
    with Image.open(work_dir / tool.PICTURE) as picture:
        assert picture.size == (990, 407)  # one row of three panels

    test_tiles = json.loads((tmp_path / "data/demo/trees/coco/test.json").read_text())
    monkeypatch.setattr(tool, "prepare", lambda data: test_tiles)
    trained = (work_dir / "gersp_seed0" / "epoch_1.pth").stat().st_mtime_ns
    tool.run(args)
    assert capfd.readouterr().out.count("holds the finished run") == 2
    again = json.loads((work_dir / tool.REPORT).read_text())
    assert again["runs"] == report["runs"]
    assert read_rows(work_dir / tool.ROWS) == rows
    assert (work_dir / "gersp_seed0" / "epoch_1.pth").stat().st_mtime_ns == trained
    assert os.environ["GERSP_DATA"] == str(tmp_path / "data")


def test_result_table():

    def run(ap50, ap):
        return dict(rows=[dict(metric="AP50", value=ap50), dict(metric="AP50:95", value=ap)])

    lines = tool.result_table(
        dict(random=[run(10.0, 4.0), run(14.0, 5.0)], gersp=[run(20.0, 8.0), run(22.0, 9.0)]), 4
    ).splitlines()
    cells = [re.split(r" {2,}", line) for line in lines]
    assert cells[0] == ["start of 4 epochs", "runs", "AP50 (%)", "AP50:95 (%)"]
    assert cells[2] == ["random initialisation", "2", "12.0 (10.0 to 14.0)", "4.5 (4.0 to 5.0)"]
    assert cells[3] == ["GeRSP", "2", "21.0 (20.0 to 22.0)", "8.5 (8.0 to 9.0)"]
