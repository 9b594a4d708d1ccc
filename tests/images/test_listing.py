"""What is an image and a class, in which order; and lists as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mmpretrain.datasets import CustomDataset

from gersp_mm.datasets import LabelledImages, MillionAID
from gersp_mm.evaluation.features import read_source
from gersp_mm.images import listing
from gersp_mm.images.listing import ImageList, find_classes, find_images, write_list
from gersp_mm.preparation.pack import find_names
from gersp_mm.utils.errors import UserError

CLASSES = {"bird": ["bird/0.jpg", "bird/sub/1.jpg"], "cat": ["cat/0.jpg"], "dog": ["dog/0.jpg"]}
JUNK = (
    ".ipynb_checkpoints/0-checkpoint.jpg", ".Trash-1000/files/old.jpg", "@eaDir/0.jpg/THUMB_M.jpg",
    "__MACOSX/0.jpg", "bird/._0.jpg", "bird/Thumbs.db", ".DS_Store", "lost+found/a.jpg",
    "$RECYCLE.BIN/b.png", "System Volume Information/c.tif", "dog/@eaDir/0.jpg/SYNO_THUMB.jpg",
)  # fmt: skip


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch(tmp_path / "images", *(path for paths in CLASSES.values() for path in paths))


def everywhere(root: Path) -> dict[str, list[tuple[str, int]]]:
    """What each reader of class folders makes of them."""
    labelled = LabelledImages(str(root))
    infos = map(labelled.get_data_info, range(len(labelled)))
    names, labels = find_names(root, None)
    return dict(
        training=[(os.path.relpath(i["img_path"], root), i["gt_label"]) for i in infos],
        evaluation=[(os.path.relpath(path, root), label) for path, label in read_source(root)],
        packing=sorted(labels.items()),
        unlabelled=[(name, labels[name]) for name in find_images(root)],
        packed=[(name, labels[name]) for name in names],
    )


def expected() -> list[tuple[str, int]]:
    return [(path, label) for label, paths in enumerate(CLASSES.values()) for path in paths]


def test_hidden_and_system_folders_are_neither_images_nor_classes(root, monkeypatch):
    touch(root, *JUNK)
    said: list[str] = []
    monkeypatch.setattr(listing, "print_log", lambda text, **_: said.append(text))
    for reader, found in everywhere(root).items():
        assert found == expected(), reader
    assert LabelledImages(str(root)).metainfo["classes"] == ("bird", "cat", "dog")
    assert len(MillionAID(str(root))) == 4
    # 8 entries of the folder, 2 in bird, 1 in dog; every later reader is silent
    (text,) = said
    expected_start = f"{root}: 4 images. Passed over hidden or system files and folders: 11 ("
    assert text.startswith(expected_start)


def test_ordinary_folders_have_the_order_and_labels_of_custom_dataset(tmp_path):
    files = ["a-b/x.jpg", "a/z.jpg", "a/sub/b.jpg", "a/c.jpg", "B/0.PNG", "empty/readme.txt"]
    root = touch(tmp_path, *files, "a b/1.jpg")
    theirs = CustomDataset(str(root))
    infos = [theirs.get_data_info(index) for index in range(len(theirs))]
    rows = [(os.path.relpath(info["img_path"], root), info["gt_label"]) for info in infos]
    assert everywhere(root)["training"] == everywhere(root)["evaluation"] == rows
    assert LabelledImages(str(root)).metainfo["classes"] == theirs.metainfo["classes"]
    assert find_images(root) == sorted(path for path, _ in rows)


@pytest.mark.parametrize(
    "links",
    [
        {"loop": "."},
        {"bird/up": "..", "cat/here": "."},
        {"bird/self": "self", "bird/nowhere": "missing"},
        {"up": "..", "cat/top": "/"},
        {"aaa": "bird", "bird/other": "../dog", "cat/deep": "../bird/sub"},
    ],
    ids=str,
)
def test_circles_of_links_end_and_each_folder_counts_once(root, links):
    for name, target in links.items():
        (root / name).symlink_to(target)
    for reader, found in everywhere(root).items():
        assert found == expected(), reader


def test_linked_images_and_classes_are_used(root, tmp_path):
    elsewhere = touch(tmp_path / "elsewhere", "cow/0.jpg", "cow/1.jpg", "file.jpg")
    (root / "cow").symlink_to(elsewhere / "cow")
    (root / "cat" / "1.jpg").symlink_to(elsewhere / "file.jpg")
    (root / "cat" / "2.jpg").symlink_to(elsewhere / "missing.jpg")
    assert find_classes(root) == {
        "bird": CLASSES["bird"],
        "cat": ["cat/0.jpg", "cat/1.jpg"],
        "cow": ["cow/0.jpg", "cow/1.jpg"],
        "dog": CLASSES["dog"],
    }


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    for find in (find_images, find_classes):
        with pytest.raises(UserError, match=r"The folder .*cat cannot be listed \(Permission"):
            find(root)


# ------------------------------------------------------------------------------------------ lists

LINES = ["bird/0.jpg 0", "bird/sub/1.jpg 0", "cat/0.jpg 1", "dog/0.jpg 12"]
WRITTEN = {
    "plain": lambda text: text.encode(),
    "bom": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 of the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "cr": lambda text: text.replace("\n", "\r").encode(),
    "backslashes": lambda text: text.replace("/", "\\").encode(),
    "bom, crlf, backslashes": (
        lambda text: text.replace("/", "\\").replace("\n", "\r\n").encode("utf-8-sig")
    ),
    "mixed slashes": lambda text: text.replace("sub/", "sub\\").encode(),
    "tabs": lambda text: text.replace(" ", "\t").encode(),
    "no last line end": lambda text: text.strip().encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n  \n").encode(),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_lists_are_read_by_every_reader_alike(root, kind):
    file = root / "list.txt"
    file.write_bytes(WRITTEN[kind]("\n".join([*LINES, ""])))
    paths, labels = zip(*(line.split() for line in LINES))
    rows = [(path, int(label)) for path, label in zip(paths, labels)]
    assert [(os.path.relpath(p, root), label) for p, label in read_source(file)] == rows
    assert sorted(find_names(root, file)[1].items()) == sorted(rows)
    labelled = LabelledImages(str(root), ann_file="list.txt")
    infos = [labelled.get_data_info(index) for index in range(len(labelled))]
    assert [(os.path.relpath(i["img_path"], root), i["gt_label"]) for i in infos] == rows
    file.write_bytes(WRITTEN[kind]("".join(f"{path}\n" for path in paths)))
    unlabelled = MillionAID(str(root), ann_file="list.txt")
    infos = [unlabelled.get_data_info(index) for index in range(len(unlabelled))]
    assert [os.path.relpath(info["img_path"], root) for info in infos] == list(paths)
    assert find_names(root, file) == (list(paths), {})


def test_a_backslash_in_a_name_stays(tmp_path):
    touch(tmp_path, "a\\b.jpg", "c.jpg")
    names = find_images(tmp_path)
    ImageList(names, [3, 4]).write(tmp_path / "list.txt")
    read = ImageList.read(tmp_path / "list.txt", tmp_path)
    assert read == ImageList(["a\\b.jpg", "c.jpg"], [3, 4])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            LINES[0].encode("utf-16-le"),
            "not a text in UTF-8: it holds zero bytes, like UTF-16 without",
        ),
        (b"\xff\xfea", "begins as UTF-16, but is not"),
        ("café.jpg 1\n".encode("latin-1"), r"is not UTF-8: its line 'caf\\\\xe9.jpg' names no"),
        (b"a.jpg 1\nb.jpg\n", "line 2: expected `path label`, found 'b.jpg'"),
        (b"a.jpg,1\n", "line 1: expected `path label`, found 'a.jpg,1'"),
        (b"a.jpg -1\n", "line 1"),
        (b"7\n", "line 1: expected `path label`, found '7'"),
    ],
)
def test_what_is_no_list_is_refused_with_what_was_found(tmp_path, content, expected):
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    for read in (ImageList.read, read_source, lambda f: LabelledImages(str(tmp_path), str(f))):
        with pytest.raises(UserError, match=expected) as error:
            read(file)
        assert str(file) in str(error.value)


def test_bytes_that_are_no_utf_8_may_name_a_file(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path, name)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg 2\n")
    assert ImageList.read(tmp_path / "list.txt", tmp_path).paths == [name]


@pytest.mark.parametrize("name", ["two\nlines", " begins", "ends ", "caf\udce9", "\ufeffmark", ""])
def test_names_that_lists_cannot_hold_are_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(UserError, match="which lists cannot hold. Rename the file"):
        write_list(tmp_path / "list.txt", ["a.jpg", name])
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_formats_are_counted_and_sidecars_are_not(tmp_path, capfd):
    for name in ("a.tif", "b.nc", "c.IMG", "d.vrt", "e.vrt", "f.tfw", "g.txt", "h.aux.xml"):
        (tmp_path / name).write_bytes(b"x")
    assert find_images(tmp_path) == ["a.tif", "b.nc"]
    said = f"{tmp_path}: 2 images. Passed over files of other formats: 3 (.img, .vrt), which"
    assert said in capfd.readouterr().out


def test_links_that_lead_to_no_file_are_named(tmp_path, capfd):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert find_images(tmp_path) == ["a.jpg"]
    said = f"{tmp_path}: 1 images. Passed over links that lead to no file: 1 (gone.jpg)"
    assert said in capfd.readouterr().out
