"""DIOR: what is written of it, what is reported, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from gersp_mm.commands.options import run_tool
from gersp_mm.datasets.dior import DIOR_CLASSES, HORIZONTAL, ORIENTED, read_annotation
from gersp_mm.preparation import dior as tool
from gersp_mm.utils.errors import UserError
from tests.support.commands import parse
from tests.support.smoke import write_images

WIDTH, HEIGHT = 120, 100
REAL = Path(os.environ.get("GERSP_REAL_DATA", ""), "DIOR")


def corners(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    return left, top, right, top, right, bottom, left, bottom


def write_xml(
    data: Path, name: str, *objects: tuple, size: tuple[int, int] | None = (WIDTH, HEIGHT)
) -> None:
    """Write both XML files of an image, as the release has them.

    Args:
        data: folder of the data set.
        name: of the image.
        objects: (class, left, top, right, bottom), or (class, horizontal box, oriented corners).
        size: width and height; None writes none.
    """
    for kind in (HORIZONTAL, ORIENTED):
        text = f"<annotation><filename>{name}.jpg</filename>"
        if size:
            text += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        for label, *box in objects:
            flat, turned = box if len(box) == 2 else (box, corners(*box))
            text += f"<object><name>{label}</name><pose>Unspecified</pose>"
            if kind == HORIZONTAL:
                tags = zip(("xmin", "ymin", "xmax", "ymax"), flat)
                text += "<bndbox>" + "".join(f"<{k}>{v}</{k}>" for k, v in tags) + "</bndbox>"
            else:
                places = ("left_top", "right_top", "right_bottom", "left_bottom")
                tags = zip((f"{axis}_{place}" for place in places for axis in "xy"), turned)
                inner = "".join(f"<{k}>{v}</{k}>" for k, v in tags)
                text += f"<difficult>0</difficult><robndbox>{inner}</robndbox>"
            text += "</object>"
        path = data / "Annotations" / kind / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}</annotation>")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images to train, one to validate, two to test; the last is without objects."""
    data = tmp_path / "dior"
    lists = {"train": ("00001", "00002"), "val": ("00003",), "test": ("00007", "00008")}
    (data / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in lists.items():
        text = "".join(f"{name}\r\n" for name in names)  # as in the release
        (data / "ImageSets" / "Main" / f"{split}.txt").write_text(text + "\r\n", newline="")
        folder = data / tool.IMAGE_FOLDERS[split]
        made = write_images(folder / "new", len(names), size=(HEIGHT, WIDTH))
        for name, path in zip(names, sorted(made.iterdir())):
            path.rename(folder / f"{name}.jpg")
        made.rmdir()
    write_xml(data, "00001", ("Expressway-toll-station", 10, 20, 40, 60), ("ship", 1, 1, 5, 9))
    write_xml(data, "00002", ("vehicle", (10, 10, 30, 30), (20, 10, 30, 20, 20, 30, 10, 20)))
    write_xml(data, "00003", ("windmill", 50, 50, 60, 60))
    write_xml(data, "00007", ("Dam", 0, 0, 120, 100))
    write_xml(data, "00008")
    return data


def convert(data: Path, *arguments: str) -> None:
    tool.run(parse(tool, [str(data), "--allow-incomplete", *arguments]))


def coco(data: Path, part: str) -> dict:
    return json.loads((data / "coco" / f"{part}.json").read_text())


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


def test_classes_are_those_of_the_host():
    host = pytest.importorskip("mmrotate.datasets").DIORDataset
    assert host.METAINFO["classes"] == DIOR_CLASSES


def test_horizontal_boxes(data, capsys):
    convert(data)
    train = coco(data, "train")
    assert train["images"][0] == dict(
        id=1, file_name="JPEGImages-trainval/00001.jpg", width=WIDTH, height=HEIGHT
    )
    assert [row["name"] for row in train["categories"]] == list(DIOR_CLASSES)
    assert [row["id"] for row in train["categories"]] == list(range(1, 21))
    toll_station = DIOR_CLASSES.index("expressway-toll-station") + 1
    assert train["annotations"][0] == dict(
        id=10001, image_id=1, category_id=toll_station, bbox=[10, 20, 30, 40], area=1200, iscrowd=0
    )
    assert len(train["annotations"]) == 3
    both = coco(data, "trainval")
    assert both["images"] == train["images"] + coco(data, "val")["images"]
    assert both["annotations"] == train["annotations"] + coco(data, "val")["annotations"]
    test = coco(data, "test")
    assert [row["file_name"] for row in test["images"]] == [
        "JPEGImages-test/00007.jpg", "JPEGImages-test/00008.jpg",
    ]  # fmt: skip
    assert [row["image_id"] for row in test["annotations"]] == [7]
    assert "nothing odd was found" in capsys.readouterr().out


def test_oriented_boxes(data):
    convert(data)
    files = {p.relative_to(data / "obb").as_posix(): p.read_text() for p in data.rglob("*/*.txt")
             if p.is_relative_to(data / "obb")}  # fmt: skip
    assert files["train/00001.txt"] == (
        "10 20 40 20 40 60 10 60 expressway-toll-station 0\n1 1 5 1 5 9 1 9 ship 0\n"
    )
    assert files["train/00002.txt"] == "20 10 30 20 20 30 10 20 vehicle 0\n"
    assert files["test/00008.txt"] == ""
    names = {
        part: {k.split("/")[1] for k in files if k.startswith(part + "/")} for part in tool.PARTS
    }
    assert names["trainval"] == names["train"] | names["val"] == {f"0000{i}.txt" for i in (1, 2, 3)}
    assert files["trainval/00002.txt"] == files["train/00002.txt"]


def test_table_and_warnings(data, capsys):
    convert(data)
    printed = capsys.readouterr()
    table = rows(printed.out)
    assert table.count(["ship", "1", "0", "1", "0"]) == 2  # in both tables
    assert table.count(["all boxes", "3", "1", "4", "1"]) == 2
    assert ["images", "2", "1", "3", "2"] in table
    assert ["images without boxes", "0", "0", "0", "1"] in table
    assert "WARNING: test has 2 images, the official one has 11,738" in printed.err
    assert "WARNING: val has no oriented box of airplane, airport" in printed.err


def test_odd_boxes_are_mended_or_left_out_and_counted(data, capsys):
    write_xml(
        data,
        "00003",
        ("ship", 5, 5, 9, 9),
        ("ship", 5, 5, 9, 9),
        ("dam", (100, 90, 130, 120), (110, 80, 130, 90, 120, 110, 100, 100)),
        ("ship", 30, 30, 30, 40),
        ("ship", (60, 50, 40, 70), (1, 1, 2, 2, 3, 3, 4, 4)),
        ("ship", 120, 10, 140, 30),
    )
    convert(data)
    boxes = coco(data, "val")["annotations"]
    assert [(row["id"], row["bbox"]) for row in boxes] == [
        (30001, [5, 5, 4, 4]), (30002, [5, 5, 4, 4]), (30003, [100, 90, 20, 10]),
    ]  # fmt: skip
    assert (data / "obb" / "val" / "00003.txt").read_text().splitlines()[2:] == [
        "110 80 130 90 120 110 100 100 dam 0"
    ]
    printed = capsys.readouterr().out.splitlines()
    for line in (
        "images with horizontal boxes that come twice, kept: 1 (00003)",
        "horizontal boxes of no area, left out: 2 (00003, 00003)",
        "horizontal boxes clipped to the image: 1 (00003)",
        "horizontal boxes outside the image, left out: 1 (00003)",
        "oriented boxes of no area, left out: 2 (00003, 00003)",
        "oriented boxes that reach out of the image, kept whole: 1 (00003)",
        "oriented boxes outside the image, left out: 1 (00003)",
    ):
        assert line in printed


def test_sizes(data, capsys):
    write_xml(data, "00001", ("ship", 1, 1, 5, 9), size=None)
    write_xml(data, "00002", ("ship", 1, 1, 5, 900), size=(200, 1000))
    write_xml(data, "00003", ("ship", 1, 1, 5, 900), size=None)
    convert(data)
    sizes = {row["id"]: (row["width"], row["height"]) for row in coco(data, "trainval")["images"]}
    assert sizes == dict.fromkeys((1, 2, 3), (WIDTH, HEIGHT))
    printed = capsys.readouterr().out
    assert "horizontal XML files with another size, not used: 1 (00002)" in printed

    shutil.rmtree(data / "JPEGImages-trainval")
    convert(data, "--annotations-only")
    sizes = {row["id"]: (row["width"], row["height"]) for row in coco(data, "trainval")["images"]}
    assert sizes == {1: (800, 800), 2: (200, 1000), 3: (800, 800)}
    printed = capsys.readouterr().out
    assert "images without a size in any XML file, taken as 800 x 800: 2 (00001, 00003)" in printed


def test_one_kind_of_boxes_is_enough(data, capsys):
    shutil.rmtree(data / "Annotations" / ORIENTED)
    convert(data)
    assert len(coco(data, "trainval")["annotations"]) == 4
    assert not (data / "obb").exists()
    assert re.search(
        r"WARNING: .*obb is not written: there is no .*Oriented", capsys.readouterr().err
    )
    shutil.rmtree(data / "Annotations" / HORIZONTAL)
    with pytest.raises(UserError, match="neither of the folders"):
        convert(data)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


MAIN = "ImageSets/Main"
SPOILT = {
    "no list": (lambda d: (d / MAIN / "val.txt").unlink(), r"val\.txt does not exist.*ImageSets"),
    "empty list": (lambda d: (d / MAIN / "val.txt").write_text("\n"), r"val\.txt is empty"),
    "no number": (
        lambda d: (d / MAIN / "val.txt").write_text("00003.jpg\n"),
        r"val\.txt, line 1: '00003\.jpg' is not an image number",
    ),
    "twice": (
        lambda d: (d / MAIN / "val.txt").write_text("00003\n3\n"),
        r"val\.txt, line 2: 3 appears twice",
    ),
    "overlap": (
        lambda d: (d / MAIN / "val.txt").write_text("00003\n00001\n"),
        r"image 00001 is in train\.txt and in val\.txt",
    ),
    "not an XML file": (
        lambda d: (d / "Annotations" / ORIENTED / "00002.xml").unlink(),
        r"1 of 5 files do not exist.*'Oriented Bounding Boxes'(.|\n)*Boxes/00002\.xml",
    ),
    "no XML": (
        lambda d: (d / "Annotations" / HORIZONTAL / "00002.xml").write_text("<annotation><obj"),
        r"Horizontal Bounding Boxes/00002\.xml is not an XML file",
    ),
    "class": (
        lambda d: replace(d / "Annotations" / ORIENTED / "00002.xml", "vehicle", "Car"),
        r"Oriented .*00002\.xml, object 1: unknown class 'Car'.*airplane.*windmill",
    ),
    "coordinate": (
        lambda d: replace(d / "Annotations" / HORIZONTAL / "00002.xml", ">10<", ">ten<"),
        r"00002\.xml, object 1 \(vehicle\): <bndbox> needs numbers in xmin",
    ),
    "no box": (
        lambda d: replace(d / "Annotations" / ORIENTED / "00002.xml", "robndbox", "box"),
        r"00002\.xml, object 1 \(vehicle\): <robndbox> needs numbers in x_left_top",
    ),
    "size": (
        lambda d: replace(d / "Annotations" / HORIZONTAL / "00002.xml", ">120<", "><"),
        r"00002\.xml: <size> has .*, not whole numbers",
    ),
    "no image": (
        lambda d: (d / "JPEGImages-test" / "00008.jpg").unlink(),
        r"1 of 5 files do not exist.*--annotations-only(.|\n)*JPEGImages-test/00008\.jpg",
    ),
    "half an image": (
        lambda d: os.truncate(d / "JPEGImages-test" / "00008.jpg", 900),
        r"1 of 5 images cannot be read(.|\n)*JPEGImages-test/00008\.jpg",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", SPOILT.values(), ids=SPOILT)
def test_refused(data, spoil, message):
    spoil(data)
    with pytest.raises(UserError, match=message):
        convert(data)
    assert not (data / "coco").exists() and not (data / "obb").exists()


def test_without_decoding(data, capsys):
    image = data / "JPEGImages-test" / "00008.jpg"
    os.truncate(image, 900)  # its header is there
    convert(data, "--no-decode")
    assert (coco(data, "test")["images"][1]["width"]) == WIDTH
    image.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stopped:
        run_tool(tool.run, parse(tool, [str(data), "--no-decode"]))
    assert stopped.value.code == 2
    assert "00008.jpg cannot be read" in capsys.readouterr().err


def test_files_that_stay_the_same_are_left_alone(data):
    convert(data)
    untouched, changed = (data / "obb" / part / "00001.txt" for part in ("train", "trainval"))
    inodes = untouched.stat().st_ino, changed.stat().st_ino
    (changed.parent / "00003.txt").write_text("")
    convert(data)
    assert untouched.stat().st_ino == inodes[0] and changed.stat().st_ino != inodes[1]
    assert "windmill" in (changed.parent / "00003.txt").read_text()


def test_killed_while_it_writes(data):
    convert(data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    write_xml(data, "00001", ("dam", 10, 20, 40, 60))

    def run() -> None:
        def die_after_the_first(texts, *description, **options):
            for number, text in enumerate(texts):
                if number and "writing obb/train" in description:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield text

        tool.progress = die_after_the_first
        convert(data)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((data / "obb").glob(".train.*"))
    for path, content in before.items():
        if path.is_relative_to(data / "obb"):
            assert path.read_bytes() == content  # the earlier state, whole
    convert(data)
    assert (data / "obb" / "train" / "00001.txt").read_text() == "10 20 40 20 40 60 10 60 dam 0\n"
    assert not list(data.rglob(".*"))


def test_hosts_read_every_box(data):
    CocoDataset = pytest.importorskip("mmdet.datasets").CocoDataset
    DOTADataset = pytest.importorskip("mmrotate.datasets").DOTADataset
    convert(data)
    common = dict(
        data_root=str(data), metainfo=dict(classes=DIOR_CLASSES), test_mode=True, pipeline=[]
    )
    horizontal = CocoDataset(ann_file="coco/trainval.json", data_prefix=dict(img=""), **common)
    oriented = DOTADataset(
        ann_file="obb/trainval",
        data_prefix=dict(img_path="JPEGImages-trainval"),
        img_suffix="jpg",
        **common,
    )
    for dataset in (horizontal, oriented):
        infos = [dataset.get_data_info(index) for index in range(3)]
        labels = Counter(i["bbox_label"] for info in infos for i in info["instances"])
        wanted = ("expressway-toll-station", "ship", "vehicle", "windmill")
        assert labels == Counter(DIOR_CLASSES.index(name) for name in wanted)
        assert all(Path(info["img_path"]).is_file() for info in infos)


@pytest.mark.skipif(not (REAL / "Annotations").is_dir(), reason="no DIOR in GERSP_REAL_DATA")
def test_the_release(tmp_path, capsys):
    for folder in ("Annotations", "ImageSets"):
        (tmp_path / folder).symlink_to((REAL / folder).resolve())
    convert(tmp_path, "--annotations-only")
    table = rows(capsys.readouterr().out)
    # The files have 192,518 objects of each kind; 6 horizontal and 4 oriented boxes are empty.
    assert ["all boxes", "32,633", "35,437", "68,070", "124,442"] in table
    assert ["all boxes", "32,633", "35,438", "68,071", "124,443"] in table
    assert ["images", "5,862", "5,863", "11,725", "11,738"] in table
    assert (
        len(read_annotation(REAL / "Annotations" / ORIENTED / "00001.xml", ORIENTED).objects) == 1
    )


def test_oriented_box_next_to_a_corner_is_left_out(data, capsys):
    # its surrounding rectangle reaches into the image, the box itself does not
    outside = (WIDTH + 15, 95, WIDTH + 35, 115, WIDTH + 15, 135, WIDTH - 5, 115)
    write_xml(data, "00003", ("ship", (50, 50, 60, 60), outside))
    convert(data)
    assert (data / "obb" / "val" / "00003.txt").read_text() == ""
    assert "oriented boxes outside the image, left out: 1 (00003)" in capsys.readouterr().out


def test_lists_in_utf16_are_read(data):
    path = data / "ImageSets" / "Main" / "train.txt"
    path.write_bytes("00001\r\n00002\r\n".encode("utf-16"))
    convert(data)
    assert [row["id"] for row in coco(data, "train")["images"]] == [1, 2]
    path.write_bytes("00001\n00002\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"train\.txt is not a text in UTF-8: it holds zero bytes"):
        convert(data)


def test_one_image_folder_is_refused_with_the_links_that_repair_it(data):
    folders = [data / name for name in ("JPEGImages-trainval", "JPEGImages-test")]
    single = data / "JPEGImages"
    single.mkdir()
    for folder in folders:
        for path in folder.iterdir():
            path.rename(single / path.name)
        folder.rmdir()
    with pytest.raises(UserError, match="has one folder JPEGImages instead of JPEG") as refusal:
        convert(data)
    assert not (data / "coco").exists()
    commands = str(refusal.value).partition("Link it: ")[2]
    subprocess.run(["bash", "-ec", commands], check=True)
    convert(data)
    assert coco(data, "test")["images"][0]["file_name"] == "JPEGImages-test/00007.jpg"


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".png"])
def test_other_endings_are_refused_with_what_was_found(data, ending):
    folder = data / "JPEGImages-trainval"
    for path in folder.iterdir():
        path.rename(path.with_suffix(ending))
    message = f"3 images that end with {ending} instead of .jpg, the first being 00001{ending}"
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        convert(data)
    assert not (data / "coco").exists()
    commands = str(refusal.value).partition("Rename them: ")[2]
    subprocess.run(["bash", "-ec", commands], check=True)
    convert(data)
    assert [row["id"] for row in coco(data, "train")["images"]] == [1, 2]


def test_other_lists_need_allow_incomplete(data):
    with pytest.raises(UserError, match="not the complete DIOR:\n  train has 2 images, the offic"):
        tool.run(parse(tool, [str(data)]))
    assert not (data / "coco").exists()
