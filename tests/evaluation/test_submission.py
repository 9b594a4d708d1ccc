"""Files for the test servers: LoveDA's labels, DOTA's merged tiles, and what the check finds."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, DefaultScope
from PIL import Image

from gersp_mm.datasets.dota import DOTA_CLASSES
from gersp_mm.evaluation import submission
from gersp_mm.evaluation.submission import check_dota, check_loveda
from gersp_mm.utils.errors import UserError
from tests.support.forked import run
from tests.support.smoke import ROOT

TOOL = ROOT / "tools" / "analysis" / "check_submission.py"

# --------------------------------------------------------------------------------------- LoveDA


def predicted(path: str, labels: np.ndarray) -> dict:
    """What mmseg hands to a metric."""
    return dict(
        img_path=path,
        reduce_zero_label=True,
        pred_sem_seg=dict(data=torch.from_numpy(labels)[None]),
    )


def label_maps(count: int = 3, side: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    maps = {str(4191 + number): rng.integers(0, 7, (side, side)) for number in range(count)}
    next(iter(maps.values()))[:7, 0] = range(7)
    return maps


def write_with_metric(folder: Path, maps: dict[str, np.ndarray], size: int | None = None) -> Path:
    with DefaultScope.overwrite_default_scope("mmseg"):
        metric = METRICS.build(dict(type="gersp_mm.LoveDASubmission", output_dir=str(folder)))
    for name, labels in maps.items():
        metric.process({}, [predicted(f"/data/img_dir/test/{name}.png", labels)])
    assert metric.evaluate(size or len(maps)) == {}
    return folder / "LoveDA_submission.zip"


def read_maps(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return {
            name: np.array(Image.open(io.BytesIO(archive.read(name))))
            for name in archive.namelist()
        }


def test_loveda_labels_are_those_predicted(tmp_path):
    maps = label_maps()
    path = write_with_metric(tmp_path / "out", maps)
    read = read_maps(path)
    assert sorted(read) == sorted(f"{name}.png" for name in maps)
    assert set(np.unique(np.stack(list(read.values())))) == set(range(7))
    for name, labels in maps.items():
        assert read[f"{name}.png"].dtype == np.uint8
        assert np.array_equal(read[f"{name}.png"], labels)
        with Image.open(tmp_path / "out" / f"{name}.png") as single:
            assert single.mode == "L"
            assert np.array_equal(np.array(single), labels)
    assert check_loveda(path, dict.fromkeys(maps, (16, 16))).problems == []


def test_images_that_fill_up_the_last_batch_of_a_process_are_left_out(tmp_path):
    assert len(read_maps(write_with_metric(tmp_path, label_maps(3), size=2))) == 2


@pytest.mark.parametrize("label", [7, -1])
def test_loveda_refuses_labels_that_the_server_does_not_know(label, tmp_path):
    maps = label_maps(1)
    maps["4191"][3, 3] = label
    with pytest.raises(UserError, match=rf"4191\.png: labels from .*{label}.* is num_classes 7"):
        write_with_metric(tmp_path, maps)
    assert not list(tmp_path.iterdir())


def test_two_images_of_one_name_are_refused(tmp_path):
    metric = submission.LoveDASubmission(str(tmp_path))
    (labels,) = label_maps(1).values()
    metric.process({}, [predicted(f"/{area}/7.png", labels) for area in ("Rural", "Urban")])
    with pytest.raises(UserError, match=r"several images have the name 7\.png"):
        metric.evaluate(2)


def write_loveda(path: Path, maps: dict[str, np.ndarray | bytes | Image.Image]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in maps.items():
            if not isinstance(content, bytes):
                png = io.BytesIO()
                if isinstance(content, np.ndarray):
                    content = Image.fromarray(content.astype(np.uint8))
                content.save(png, "PNG")
                content = png.getvalue()
            archive.writestr(name, content)
    return path


def test_check_of_loveda_lists_every_problem_at_once(tmp_path):
    good, seven, many = label_maps(3).values()
    shifted = seven + 1
    many[0, :3] = (9, 100, 255)
    path = write_loveda(tmp_path / "a.zip", {
        "1.png": good, "2.png": shifted, "3.png": many, "4.png": good[:8],
        "5.png": Image.fromarray(good.astype(np.uint8)).convert("RGB"),
        "6.png": b"no image", "8.png": good, "sub/9.png": good, "readme.txt": b"hello",
    })  # fmt: skip
    ids = ("1", "2", "3", "4", "5", "6", "7")
    check = check_loveda(path, dict.fromkeys(ids, (16, 16)))
    text = "\n".join(check.problems)
    assert "2.png: holds the label 7" in text and "reduce_zero_label" in text
    assert "3.png: holds 9, 100, 255, not only 0 to 6" in text
    assert "4.png: 16 x 8 pixels instead of 16 x 16" in text
    assert "5.png: of PIL's mode RGB" in text
    assert "6.png: cannot be read as PNG" in text
    assert "7.png is missing" in text
    assert "8.png: 8 is none of the images" in text
    assert "sub/9.png: files have to lie flat" in text
    assert "readme.txt is no <id>.png" in text
    assert len(check.problems) == 9, text
    assert "not LoveDA's 1,796 test images" in check.notes[0]


def test_check_of_loveda_without_images_wants_1796_of_1024(tmp_path):
    path = write_loveda(tmp_path / "a.zip", {"1.png": label_maps(1)["4191"]})
    problems = check_loveda(path).problems
    assert "there are 1 label maps, LoveDA has 1,796 images" in problems[0]
    assert "1.png: 16 x 16 pixels instead of 1024 x 1024" in problems[1]
    assert len(problems) == 2


def test_many_problems_of_one_kind_are_counted(tmp_path):
    maps = {f"{number}.png": np.full((4, 4), 7) for number in range(50)}
    path = write_loveda(tmp_path / "a.zip", maps)
    problems = check_loveda(path, dict.fromkeys(map(str, range(50)), (4, 4))).problems
    assert len(problems) == 4
    assert problems[3] == "... and 47 more of this kind (label 7)"


# ----------------------------------------------------------------------------------------- DOTA


def tile(name: str, *boxes: tuple[float, ...]) -> dict:
    """What mmrotate hands to its metric: boxes (x, y, width, height, angle, score, label)."""
    rows = torch.tensor(boxes).reshape(-1, 7)
    instances = dict(bboxes=rows[:, :5], scores=rows[:, 5], labels=rows[:, 6].long())
    return dict(img_id=name, gt_instances={}, ignored_instances={}, pred_instances=instances)


def merged(folder: Path, *tiles: dict) -> Path:
    from mmrotate.evaluation import DOTAMetric

    metric = DOTAMetric(format_only=True, merge_patches=True, outfile_prefix=str(folder / "Task1"))
    metric.dataset_meta = dict(classes=DOTA_CLASSES)
    metric.process({}, list(tiles))
    assert metric.evaluate(len(tiles)) == {}
    return folder / "Task1" / "Task1.zip"


def lines_of(path: Path, name: str) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        text = archive.read(f"Task1_{name}.txt").decode()
    return [line.split() for line in text.splitlines()]


def test_tiles_are_merged_to_one_box_in_coordinates_of_the_whole_image(tmp_path):
    """A ship of 60 x 30 px around (1000, 900), seen by two overlapping tiles."""
    ship = DOTA_CLASSES.index("ship")
    path = merged(
        tmp_path,
        tile(
            "P0001__1024__0___0", (1000, 900, 60, 30, 0, 0.804, ship), (50, 60, 20, 10, 0, 0.9, 0)
        ),
        tile("P0001__1024__824___824", (176, 76, 60, 30, 0, 0.956, ship)),
        tile("P0002__1024__0___824", (100, 100, 40, 20, np.pi / 2, 0.5, ship)),
    )
    first, second = lines_of(path, "ship")
    assert first[:2] == ["P0001", "0.96"]  # the better of both, rounded by the host
    corners = np.array(first[2:], float).reshape(4, 2)
    assert sorted(map(tuple, corners)) == [(970, 885), (970, 915), (1030, 885), (1030, 915)]
    assert second[0] == "P0002"
    corners = np.array(second[2:], float).reshape(4, 2)
    assert np.allclose(corners.min(0), (90, 904), atol=0.02)
    assert np.allclose(corners.max(0), (110, 944), atol=0.02)
    assert [line[0] for line in lines_of(path, "plane")] == ["P0001"]
    check = check_dota(path, ["P0001", "P0002", "P0003"])
    assert check.problems == []
    assert "no object was found of baseball-diamond, bridge" in check.notes[0]
    assert check.notes[1] == "no object was found in 1 of 3 images (P0003)"


BOX = "10 10 20 10 20 20 10 20"


def write_dota(path: Path, **changes: str | None) -> Path:
    """A faultless archive but for some files; None leaves one out."""
    files = {f"Task1_{name}.txt": f"P0001 0.5 {BOX}\n" for name in DOTA_CLASSES}
    files.update(changes)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            if text is not None:
                archive.writestr(name, text)
    return path


def test_a_faultless_dota_file(tmp_path):
    path = write_dota(tmp_path / "a.zip")
    assert check_dota(path) == ([], [])
    assert check_dota(path, {"P0001"}) == ([], [])


@pytest.mark.parametrize(
    "line, text",
    [
        (f"P0001__1024__0___0 0.5 {BOX}", "line 2: P0001__1024__0___0 is the name of a tile"),
        (f"P0002 0.5 {BOX}", "line 2: P0002 is none of the images"),
        (f"P0001 1.5 {BOX}", r"line 2: the score 1\.5 is not within 0 and 1"),
        (f"P0001 nan {BOX}", "line 2: a value is not finite"),
        (f"P0001 0.5 inf {BOX[3:]}", "line 2: a value is not finite"),
        ("P0001 0.5 10 10 20 20", "line 2: 6 fields instead of"),
        (f"P0001 high {BOX}", "line 2: could not convert string to float: 'high'"),
        ("", "line 2: 0 fields"),
    ],
)
def test_bad_lines_of_dota(line, text, tmp_path):
    path = write_dota(tmp_path / "a.zip", **{"Task1_ship.txt": f"P0001 0.5 {BOX}\n{line}\n"})
    (problem,) = check_dota(path, {"P0001"}).problems
    assert problem.startswith("Task1_ship.txt, ")
    assert re.search(text, problem), problem


def test_check_of_dota_lists_every_problem_at_once(tmp_path):
    files = {
        "Task1_plane.txt": None, "Task1_ship.txt": "", "Task1_airport.txt": f"P0001 0.5 {BOX}\n",
        "Task1/Task1_harbor.txt": "", "Task1_bridge.txt": f"P0001__1024__0___0 0.5 {BOX}\n" * 9,
    }  # fmt: skip
    check = check_dota(write_dota(tmp_path / "a.zip", **files), {"P0001"})
    text = "\n".join(check.problems)
    assert "Task1_plane.txt is missing" in text
    assert "Task1_airport.txt is none of the 15 files" in text
    assert "Task1/Task1_harbor.txt: files have to lie flat" in text
    assert "merge_patches=True" in text
    assert "... and 6 more of this kind (tile)" in text
    assert check.notes == ["no object was found of ship"]


def test_files_without_any_object_are_a_problem(tmp_path):
    empty = {f"Task1_{name}.txt": "" for name in DOTA_CLASSES}
    check = check_dota(write_dota(tmp_path / "a.zip", **empty))
    assert check.problems == ["there is no object in any file"]


# ----------------------------------------------------------------------------------------- tool


def test_tool_lists_problems_and_exits_with_2(tmp_path):
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for name in ("P0001__1024__0___0.png", "P0001__1024__824___0.png", "P0003__1024__0___0.png"):
        Image.new("RGB", (8, 8)).save(tiles / name)
    lines = f"P0001 0.5 {BOX}\nP0002 7 {BOX}\n"
    bad = write_dota(tmp_path / "bad.zip", **{"Task1_ship.txt": lines})
    done = run(TOOL, "dota", bad, "--images", tiles, output=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"error: {bad} is not fit to submit:" in done.stderr
    assert "Task1_ship.txt, line 2: the score 7.0" in done.stderr
    assert "Task1_ship.txt, line 2: P0002 is none of the images" in done.stderr
    assert "note: no object was found in 1 of 2 images (P0003)" in done.stdout


def test_tool_accepts_a_good_file(tmp_path, capsys):
    path = write_with_metric(tmp_path / "out", label_maps())
    for name in label_maps():
        (tmp_path / "Urban").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "Urban" / f"{name}.png")
    from gersp_mm.commands import check_submission as tool

    tool.run(tool.parse_args(["loveda", str(path), "--images", str(tmp_path / "Urban")]))
    assert f"{path} is fit to submit" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dota", "loveda"])
def test_what_is_no_archive_is_named(kind, tmp_path):
    check = getattr(submission, f"check_{kind}")
    with pytest.raises(UserError, match="is a folder: name the zip archive"):
        check(tmp_path)
    (tmp_path / "half.zip").write_bytes(write_dota(tmp_path / "a.zip").read_bytes()[:500])
    with pytest.raises(UserError, match=r"half\.zip is not there, or no zip archive"):
        check(tmp_path / "half.zip")
    with pytest.raises(UserError, match=r"--images .*: there is no image"):
        submission.images_below(tmp_path)


def test_hidden_and_damaged_test_images(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "P1.png")
    for name in ("._P1.png", ".ipynb_checkpoints/P1-checkpoint.png", "__MACOSX/P1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"of a Mac")
    paths = submission.images_below(tmp_path)
    assert submission.image_sizes(paths, tiles=True) == {"P1": (8, 8)}
    (tmp_path / "P2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"P2\.png cannot be read .*Fetch it again"):
        submission.image_sizes(submission.images_below(tmp_path), tiles=True)
