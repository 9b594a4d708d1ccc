"""DOTA: labels, tiles of both protocols, what is reported, what is refused, what a kill leaves."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gersp_mm.commands.options import run_tool
from gersp_mm.datasets.dota import (
    DOTA_CLASSES,
    LabelledBox,
    area_inside,
    format_labels,
    read_labels,
)
from gersp_mm.preparation import dota as tool
from gersp_mm.preparation.common import findings_text
from gersp_mm.utils.errors import UserError
from tests.support.commands import parse
from tests.support.smoke import ROOT

TOOL = ROOT / "tools" / "dataset_converters" / "dota.py"
PADDING = (124, 116, 104)  # RGB, as mmrotate's configs pad
HEADER = "imagesource:GoogleEarth\r\ngsd:0.11\r\n"

# Writes some tiles, says so, and goes on for a minute.
HANGING_SPLITTER = """
import os, sys, time
def main():
    target = sys.argv[sys.argv.index("--save-dir") + 1]
    os.makedirs(target + "/images")
    open(target + "/images/P1__800__0___0.png", "w").write("half")
    open(os.environ["STARTED"], "w").write(str(os.getpid()))
    time.sleep(60)
"""


def square(left: float, top: float, right: float, bottom: float) -> str:
    return f"{left} {top} {right} {top} {right} {bottom} {left} {bottom}"


def write_image(data: Path, split: str, name: str, width: int, height: int) -> Path:
    path = data / split / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.add.outer(np.arange(height), np.arange(width)) % 251
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(path)
    return path


def write_label(data: Path, split: str, name: str, *lines: str) -> Path:
    path = data / split / "labelTxt" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{line}\r\n" for line in lines), newline="")
    return path


def write_data(data: Path) -> Path:
    """Train: one image of 1000 x 600 and a small one without objects; val and test: one each."""
    write_image(data, "train", "P1", 1000, 600)
    write_label(
        data,
        "train",
        "P1",
        f"{square(10, 20, 40, 60)} ship 0",
        f"{square(300, 300, 320, 320)}  plane  1 ",  # in both tiles; mmrotate alone stops here
        "500 100 520 120 500 140 480 120 harbor 0",
        f"{square(720, 10, 820, 50)} bridge 0",  # four fifths of it are in the first tile
    )
    write_image(data, "train", "P2", 500, 600)
    write_label(data, "train", "P2")
    write_image(data, "val", "P3", 500, 400)
    write_label(data, "val", "P3", f"{square(1, 2, 30, 40)} small-vehicle")
    write_image(data, "test", "P4", 700, 700)
    return data


def convert(data: Path, protocol: str = "released", *arguments: str) -> None:
    options = ["--protocol", protocol, "--workers", "1", "--allow-incomplete", *arguments]
    tool.run(parse(tool, [str(data), *options]))


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "dota")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[Path, str]:
    """The data with the tiles of the released protocol, and what was printed."""
    data = write_data(tmp_path_factory.mktemp("released") / "dota")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        convert(data, "released", "--workers", "2")
    return data, printed.getvalue()


@pytest.fixture
def finished(released, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(released[0], tmp_path / "copy"))


def test_boxes_outside_the_image_are_left_out_and_named():
    findings = defaultdict(list)
    inside = LabelledBox((10, 10, 40, 10, 40, 40, 10, 40), "ship", 0)
    partly = LabelledBox((80, 10, 120, 10, 120, 40, 80, 40), "ship", 0)
    beside = LabelledBox((100, 10, 140, 10, 140, 40, 100, 40), "ship", 0)
    # a diamond whose surrounding rectangle covers the corner that the diamond does not touch
    corner = LabelledBox((120, 85, 155, 120, 120, 155, 85, 120), "ship", 0)
    boxes = [inside, partly, beside, corner]
    assert tool.check_boxes("train/P1.txt", boxes, (100, 100), findings) == [inside, partly]
    assert findings_text(findings).splitlines() == [
        "boxes that reach out of the image, kept whole: 1 (train/P1.txt)",
        "boxes outside the image, left out: 2 (train/P1.txt, train/P1.txt)",
    ]


def test_area_inside():
    square_ = (-10, -10, 10, -10, 10, 10, -10, 10)
    assert area_inside(square_, 100, 100) == 100
    assert area_inside(square_[::-1], 100, 5) == 50  # the other direction of rotation
    diamond = (50, -50, 150, 50, 50, 150, -50, 50)  # 20,000 square pixels, four corners cut off
    assert area_inside(diamond, 100, 100) == 10_000
    assert area_inside((20, 20, 30, 20, 30, 30, 20, 30), 20, 100) == 0


def test_no_box_lies_on_padding(tmp_path, capsys):
    data = tmp_path / "dota"
    for part, name in (("train", "P1"), ("val", "P2")):
        write_image(data, part, name, 500, 400)
        write_label(
            data, part, name,
            f"{square(10, 20, 40, 60)} ship 0",
            f"{square(600, 500, 640, 540)} plane 0",
            f"{square(480, 380, 510, 420)} harbor 0",
        )  # fmt: skip
    convert(data)
    folder = data / "tiles_800_160"
    for part, name in (("train", "P1"), ("val", "P2")):
        tile = read_labels(folder / part / "annfiles" / f"{name}__800__0___0.txt")
        assert [box.name for box in tile] == ["ship", "harbor"]
        content = json.loads((folder / "coco" / f"{part}.json").read_text())
        assert [row["bbox"] for row in content["annotations"]] == [
            [10, 20, 30, 40], [480, 380, 20, 20],
        ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "boxes outside the image, left out: 2 (train/P1.txt, val/P2.txt)" in printed
    assert "horizontal boxes clipped to their tile: 2" in printed


def test_labels_in_utf16_are_read_and_binary_ones_refused(tmp_path):
    path = tmp_path / "P1.txt"
    for encoding in ("utf-16", "utf-8-sig"):
        path.write_bytes("1 2 3 4 5 6 7 8 ship 0\r\n".encode(encoding))
        assert [box.name for box in read_labels(path)] == ["ship"]
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(UserError, match=r"P1\.txt is not a text in UTF-8: it holds zero bytes"):
        read_labels(path)


def test_another_number_of_images_needs_allow_incomplete(data):
    arguments = parse(tool, [str(data), "--protocol", "released", "--workers", "1"])
    with pytest.raises(UserError) as refusal:
        tool.run(arguments)
    assert str(refusal.value).splitlines() == [
        f"{data} is not the complete DOTA v1.0:",
        "  train has 2 images, the official one has 1,411",
        "  val has 1 images, the official one has 458",
        "  images without objects, kept: 1 (train/P2.txt)",
        "  boxes without a difficulty, taken as 0: 1 (val/P3.txt)",
        "Fetch what is missing, or use --allow-incomplete to take a sample",
    ]
    assert not (data / "tiles_800_160").exists()


# ------------------------------------------------------------------------------------- labels


def test_classes_are_those_of_the_host():
    host = pytest.importorskip("mmrotate.datasets").DOTADataset
    assert host.METAINFO["classes"] == DOTA_CLASSES


def test_labels_of_any_spacing(tmp_path):
    path = tmp_path / "P1.txt"
    path.write_bytes(
        b"\xef\xbb\xbfimagesource:GoogleEarth\r\ngsd:None\r\n\r\n"
        b"1 2  3 4\t5 6 7.25 8 ship 1 \r\n 1 2 3 4 5 6 7 8 plane\n"
    )
    first, second = read_labels(path)
    assert first == ((1, 2, 3, 4, 5, 6, 7.25, 8), "ship", 1)
    assert first.around == (1, 2, 7.25, 8)
    assert (second.name, second.difficulty) == ("plane", None)
    assert format_labels([first, second]) == "1 2 3 4 5 6 7.25 8 ship 1\n1 2 3 4 5 6 7 8 plane 0\n"
    path.write_text("")
    assert read_labels(path) == []


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "1 2 3 4 5 6 7 8 boat 0",
            r"P1\.txt, line 3: unknown class 'boat'. The known classes are plane",
        ),
        (
            "1 2 3 4 5 6 7 8 helipad 0",
            "'helipad'. These are labels of DOTA v1.5 or v2.0. Use",
        ),
        ("1 2 3 4 5 6 7 ship 0", "line 3: '1 2 3 4 5 6 7 ship 0' is not 8 coordinates, a class"),
        ("1 2 3 4 5 6 7 8 storage tank 0", "is not 8 coordinates, a class"),
        ("1 2 3 4 5 6 7 nan ship 0", "is not 8 coordinates, a class"),
        ("1 2 3 4 5 6 7 8 ship hard", "a difficulty"),
    ],
)
def test_bad_labels_are_refused(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_labels(write_label(tmp_path, "train", "P1", line))


def test_boxes_that_stop_the_splitter(tmp_path):
    labels = write_label(
        tmp_path,
        "train",
        "P1",
        "0 0 10 10 10 0 0 10 ship 0",  # two sides cross
        "5 5 5 5 5 5 5 5 ship 0",
        "1 1 2 2 3 3 9 9 ship 0",
        f"{square(1, 1, 9, 9)} ship 2",
        f"{square(1, 1, 9, 9)} ship",
    )
    findings = tool.defaultdict(list)
    crossing, *others = tool.check_boxes("P1", read_labels(labels), (100, 100), findings)
    assert crossing.around == pytest.approx((0, 0, 10, 10), abs=1e-5)
    assert sorted(crossing.corners) == pytest.approx([0] * 4 + [10] * 4, abs=1e-5)
    assert [box.difficulty for box in others] == [2, None]
    assert findings_text(findings).splitlines() == [
        "boxes whose sides cross, made rectangles: 1 (P1)",
        "boxes of no area, left out: 2 (P1, P1)",
        "boxes with a difficulty other than 0 and 1, kept: 1 (P1)",
        "boxes without a difficulty, taken as 0: 1 (P1)",
    ]


# -------------------------------------------------------------------------------------- tiles


def test_tiles_of_the_released_protocol(released):
    tiles = released[0] / "tiles_800_160"
    assert names(tiles) == ["coco", "train", "val"]
    assert names(tiles / "train") == ["annfiles", "images", "split.json"]
    stems = ["P1__800__0___0", "P1__800__200___0", "P2__800__0___0"]
    assert names(tiles / "train" / "images") == [f"{stem}.png" for stem in stems]
    assert names(tiles / "train" / "annfiles") == [f"{stem}.txt" for stem in stems]
    boxes = {stem: read_labels(tiles / "train" / "annfiles" / f"{stem}.txt") for stem in stems}
    assert [(box.name, box.difficulty) for box in boxes[stems[0]]] == [
        ("ship", 0), ("plane", 1), ("harbor", 0), ("bridge", 2),
    ]  # fmt: skip
    shifted = [300 - 200, 300, 320 - 200, 300, 320 - 200, 320, 300 - 200, 320]
    assert boxes[stems[1]][0] == (tuple(shifted), "plane", 1)
    assert boxes[stems[2]] == []
    with Image.open(tiles / "train" / "images" / "P1__800__200___0.png") as tile:
        assert tile.size == (800, 800)
        assert tile.getpixel((3, 5)) == (208, 208, 208)
        assert tile.getpixel((3, 700)) == PADDING


def test_horizontal_boxes_of_the_tiles(released):
    tiles = released[0] / "tiles_800_160"
    train = json.loads((tiles / "coco" / "train.json").read_text())
    assert train["categories"] == [dict(id=i, name=n) for i, n in enumerate(DOTA_CLASSES, 1)]
    assert train["images"][0] == dict(
        id=1, file_name="train/images/P1__800__0___0.png", width=800, height=800
    )
    assert [row["id"] for row in train["images"]] == [1, 2, 3]  # the one without objects as well
    found = [(row["image_id"], row["category_id"], row["bbox"]) for row in train["annotations"]]
    number = {name: row for row, name in enumerate(DOTA_CLASSES, 1)}
    assert found == [
        (1, number["ship"], [10, 20, 30, 40]),
        (1, number["plane"], [300, 300, 20, 20]),
        (1, number["harbor"], [480, 100, 40, 40]),
        (1, number["bridge"], [720, 10, 80, 40]),  # cut
        (2, number["plane"], [100, 300, 20, 20]),
        (2, number["harbor"], [280, 100, 40, 40]),
        (2, number["bridge"], [520, 10, 100, 40]),
    ]
    assert [row["id"] for row in train["annotations"]] == list(range(1, 8))
    assert len(json.loads((tiles / "coco" / "val.json").read_text())["annotations"]) == 1


def test_tables_and_findings(released):
    printed = released[1]
    table = rows(printed)
    assert ["train", "2", "4", "1", "3", "1", "7", "1"] in table
    assert ["val", "1", "1", "0", "1", "0", "1", "0"] in table
    assert ["plane", "1", "1", "2", "0", "0", "0"] in table
    assert ["all", "4", "1", "7", "1", "0", "1"] in table
    assert "horizontal boxes clipped to their tile: 1 (P1__800__0___0)" in printed
    assert "images without objects, kept: 1 (train/P2.txt)" in printed
    assert "boxes without a difficulty, taken as 0: 1 (val/P3.txt)" in printed
    assert "WARNING: train has 2 images, the official one has 1,411" in printed
    assert "Filename:" not in printed  # the splitter's own lines
    assert "dota-released.py" in printed


def test_hosts_read_every_box(released):
    CocoDataset = pytest.importorskip("mmdet.datasets").CocoDataset
    DOTADataset = pytest.importorskip("mmrotate.datasets").DOTADataset
    common = dict(
        data_root=str(released[0] / "tiles_800_160"),
        metainfo=dict(classes=DOTA_CLASSES),
        test_mode=True,
        pipeline=[],
    )
    for dataset in (
        CocoDataset(ann_file="coco/train.json", data_prefix=dict(img=""), **common),
        DOTADataset(ann_file="train/annfiles", data_prefix=dict(img_path="train/images"), **common),
    ):
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        labels = Counter(i["bbox_label"] for info in infos for i in info["instances"])
        wanted = dict(ship=1, plane=2, harbor=2, bridge=2)
        assert labels == {DOTA_CLASSES.index(name): count for name, count in wanted.items()}
        assert len(infos) == 3 and all(Path(info["img_path"]).is_file() for info in infos)


def test_tiles_of_the_field_protocol(data, capsys):
    (data / "val" / "labelTxt").rename(data / "val" / "labelTxt-v1.0")
    shutil.move(data / "test", data / "later")
    convert(data, "field")
    assert names(data / "tiles_1024_200") == ["trainval"]
    assert re.search(r"WARNING: .*test is not made, which a submission", capsys.readouterr().err)
    shutil.move(data / "later", data / "test")
    convert(data, "field")
    tiles = data / "tiles_1024_200"
    stems = ["P1__1024__0___0", "P2__1024__0___0", "P3__1024__0___0"]
    assert names(tiles / "trainval" / "annfiles") == [f"{stem}.txt" for stem in stems]
    assert names(tiles / "trainval" / "images") == [f"{stem}.png" for stem in stems]
    assert names(tiles / "test") == ["images", "split.json"]
    assert names(tiles / "test" / "images") == ["P4__1024__0___0.png"]
    printed = capsys.readouterr().out
    assert "trainval is finished already" in printed
    assert ["trainval", "3", "5", "1", "3", "1", "5", "0"] in rows(printed)
    made = json.loads((tiles / "test" / "split.json").read_text())["settings"]
    assert made == dict(
        sizes=[1024], gaps=[200], rates=[1.0], img_rate_thr=0.6, iof_thr=0.7,
        padding_value=[104, 116, 124], save_ext=".png",
    )  # fmt: skip


# ------------------------------------------------------------------------- again, and refusals


def test_finished_tiles_are_left_alone(finished, capsys, monkeypatch):
    tiles = finished / "tiles_800_160"
    (tiles / "coco" / "val.json").unlink()
    monkeypatch.setattr(tool, "run_splitter", None)
    monkeypatch.setattr(tool, "refuse_damaged", None)
    convert(finished)
    printed = capsys.readouterr().out
    assert "train is finished already" in printed and "val is finished already" in printed
    assert (tiles / "coco" / "val.json").is_file()


def test_tiles_of_something_else_need_force(finished, capsys):
    tiles = finished / "tiles_800_160"
    write_label(finished, "val", "P3", f"{square(5, 5, 50, 50)} ship 0")
    with pytest.raises(UserError, match=r"val was made of other images or labels. Add --force"):
        convert(finished)
    convert(finished, "released", "--force")
    assert "ship" in (tiles / "val" / "annfiles" / "P3__800__0___0.txt").read_text()
    assert not list(tiles.glob(".*"))

    (tiles / "val" / "images" / "P3__800__0___0.png").unlink()
    with pytest.raises(UserError, match="val has lost tiles"):
        convert(finished)
    record = tiles / "train" / "split.json"
    record.write_text(record.read_text().replace("0.7", "0.5"))
    with pytest.raises(UserError, match=r"train was made with other settings.*0\.5.*--force"):
        convert(finished)
    record.unlink()
    with pytest.raises(UserError, match=r"train is not this tool's work \(no split\.json\)"):
        convert(finished)


SPOILT = {
    "no images": (lambda d: shutil.rmtree(d / "val" / "images"), r"val/images holds no images"),
    "no labels": (
        lambda d: shutil.rmtree(d / "val" / "labelTxt"), r"val/labelTxt holds no labels.*v1\.0"
    ),
    "image without label": (
        lambda d: write_image(d, "train", "P9", 50, 50), r"1 label files of .*train.*: fetch P9 "
    ),
    "label without image": (
        lambda d: write_label(d, "train", "P9"), r"1 images of .*train are missing: fetch P9 "
    ),
    "image in two splits": (
        lambda d: (write_image(d, "val", "P1", 50, 50), write_label(d, "val", "P1")),
        r"P1 in more than one split",
    ),
    "two images of one name": (
        lambda d: (d / "val" / "images" / "P3.JPG").write_bytes(b""),
        r"P3\.png and .*P3\.JPG have the same name"
    ),
    "later labels": (
        lambda d: write_label(d, "val", "P3", f"{square(1, 2, 3, 4)} container-crane 0"),
        r"val/labelTxt/P3\.txt, line 3: .*'container-crane'\. These are labels of DOTA v1\.5",
    ),
    "no box at all": (
        lambda d: [write_label(d, *p) for p in (("train", "P1"), ("val", "P3"))],
        r"no label file of train, val in .* has a box",
    ),
    "half an image": (
        lambda d: os.truncate(d / "val" / "images" / "P3.png", 400),
        r"(1 of 4 images cannot be read(.|\n)*P3\.png|P3\.png cannot be read)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", SPOILT.values(), ids=SPOILT)
def test_refused(data, spoil, message):
    spoil(data)
    with pytest.raises(UserError, match=message):
        convert(data, "field")
    assert not (data / "tiles_1024_200").exists()


@pytest.mark.parametrize("protocol", ["released", "field"])
def test_an_image_of_two_parts_is_refused(data, protocol):
    if protocol == "released":
        write_image(data, "val", "P1", 1000, 600)
        write_label(data, "val", "P1")
    else:
        write_image(data, "test", "P1", 1000, 600)
    with pytest.raises(UserError, match="P1 in more than one split"):
        convert(data, protocol)
    assert not list(data.glob("tiles_*"))


def test_where_the_splitter_is(tmp_path, monkeypatch):
    def installed(origin: Path | None) -> None:
        spec = origin and importlib.util.spec_from_file_location("mmrotate", origin)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    installed(None)
    with pytest.raises(UserError, match="mmrotate is not installed"):
        tool.find_splitter()
    installed(tmp_path / "mmrotate" / "__init__.py")
    with pytest.raises(UserError, match=r"img_split\.py is in neither of .*\.mim"):
        tool.find_splitter()
    for top in (tmp_path, tmp_path / "mmrotate" / ".mim"):  # editable, then installed
        folder = top / "tools" / "data" / "dota" / "split"
        folder.mkdir(parents=True)
        (folder / "img_split.py").touch()
        assert tool.find_splitter() == folder


@pytest.mark.parametrize(
    "splitter, message",
    [
        ("def main(): raise ValueError('what is wrong')", r"exit code 1; (.|\n)*what is wrong"),
        ("def main(): pass", "cannot write to"),
        (
            "import os, sys\n"
            "def main():\n"
            "    for folder in ('images', 'annfiles'):\n"
            "        os.makedirs(sys.argv[sys.argv.index('--save-dir') + 1] + '/' + folder)\n",
            "made no tile",
        ),
        (
            HANGING_SPLITTER.replace("open(os.environ", "os.makedirs(target + '/annfiles'); #")
            .replace("time.sleep(60)", ""),
            "P1__800__0___0 was not written completely",
        ),
    ],
    ids=["fails", "writes nothing", "makes no tiles", "half a tile"],
)  # fmt: skip
def test_splitter_goes_wrong(data, tmp_path, monkeypatch, splitter, message):
    (tmp_path / "img_split.py").write_text(splitter)
    monkeypatch.setattr(tool, "find_splitter", lambda: tmp_path)
    with pytest.raises(UserError, match=message):
        convert(data)
    assert list((data / "tiles_800_160").iterdir()) == []


def test_killed_while_it_cuts(data, tmp_path, monkeypatch):
    (tmp_path / "img_split.py").write_text(HANGING_SPLITTER)
    started = tmp_path / "started"
    monkeypatch.setenv("STARTED", str(started))
    with monkeypatch.context() as patched:
        patched.setattr(tool, "find_splitter", lambda: tmp_path)
        process = multiprocessing.get_context("fork").Process(target=convert, args=(data,))
        process.start()
        for _ in range(600):
            if started.exists() and started.read_text():
                break
            time.sleep(0.1)
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    splitter = int(started.read_text())
    for _ in range(100):  # it has no one to work for
        if not alive(splitter):
            break
        time.sleep(0.1)
    assert not alive(splitter)
    assert [path.name[:7] for path in (data / "tiles_800_160").iterdir()] == [".train."]
    convert(data)
    assert names(data / "tiles_800_160") == ["coco", "train", "val"]


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_error_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_tool(tool.run, parse(tool, [str(tmp_path), "--protocol", "released"]))
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err
