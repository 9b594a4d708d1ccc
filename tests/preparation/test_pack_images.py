"""Packing a data set: what is stored, what survives a kill, what is refused."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
from mmpretrain.datasets import CustomDataset
from PIL import Image

from gersp_mm.commands.options import run_tool
from gersp_mm.datasets import MillionAID, load_rgb
from gersp_mm.images import packed as packed_files
from gersp_mm.preparation import dior
from gersp_mm.preparation import pack as tool
from gersp_mm.utils.errors import UserError
from tests.support.commands import parse


@pytest.fixture(autouse=True)
def nothing_open():
    """Close what a test has read from, since LMDB opens a database once in a process."""
    yield
    packed_files._forget_databases()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some edges, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 20, 30), (width // 4, height // 4, width // 2, height // 3))
    return image


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Three classes of images of all kinds, larger and smaller than 64 px, two of them bad."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("b class", "a", "a-1", "empty"):
        (folder / name).mkdir()
    picture(200, 100, 1).save(folder / "a" / "large.jpg", quality=95)
    picture(60, 90, 2).save(folder / "a" / "small.jpg")
    picture(64, 64, 3).save(folder / "a" / "exact.png")
    picture(300, 150, 4).convert("CMYK").save(folder / "a-1" / "cmyk.jpg", quality=95)
    picture(90, 120, 5).convert("P").save(folder / "a-1" / "palette.png")
    grey = np.asarray(picture(100, 130, 6).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "b class" / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    picture(180, 110, 7).save(folder / "b class" / "turned.jpg", quality=95, exif=exif)
    picture(40, 30, 8).save(folder / "b class" / "turned small.jpg", exif=exif)
    whole = (folder / "a" / "large.jpg").read_bytes()
    (folder / "a" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b class" / "empty.png").touch()
    (folder / "a" / "notes.txt").write_text("no image")
    return folder


BAD = {"a/truncated.jpg", "b class/empty.png"}
SMALL = {"a/small.jpg", "a/exact.png", "b class/turned small.jpg", "b class/grey16.png"}
SHRUNK = {
    "a/large.jpg", "a-1/cmyk.jpg", "a-1/palette.png", "b class/turned.jpg",
}  # fmt: skip


def entries(target: Path) -> dict[str, bytes]:
    path = str(target / "images.lmdb")
    with lmdb.open(path, readonly=True, lock=False) as database, database.begin() as reader:
        return {key.decode(): bytes(value) for key, value in reader.cursor()}


def files(target: Path) -> dict[str, bytes]:
    folder = target / "images"
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def error_of(capsys, *arguments: str | Path) -> str:
    """The one line that the tool ends with."""
    with pytest.raises(SystemExit) as end:
        run_tool(tool.run, parse(tool, [*map(str, arguments), "--workers", "1"]))
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "dst"
    tool.pack(source, target, shorter_side=64, to_lmdb=True, workers=2)
    return target


def test_small_images_stay_byte_for_byte(source, packed):
    stored = entries(packed)
    assert set(stored) == SMALL | SHRUNK
    for name in SMALL:
        assert stored[name] == (source / name).read_bytes()


def test_large_images_are_what_resizing_the_decoded_image_gives(source, packed):
    for name in SHRUNK:
        original = load_rgb(str(source / name))
        scale = 64 / min(original.size)
        size = tuple(round(scale * length) for length in original.size)
        expected = np.asarray(original.resize(size, Image.Resampling.LANCZOS), float)
        stored = load_rgb(str(packed / "images.lmdb" / name))
        assert min(stored.size) == 64 and stored.size == size, name
        error = np.mean((np.asarray(stored, float) - expected) ** 2)
        assert 10 * np.log10(255**2 / error) > 35, name


def test_without_shrinking_every_pixel_is_the_same(source, tmp_path):
    tool.pack(source, tmp_path / "dst", shorter_side=0, to_lmdb=True)
    assert entries(tmp_path / "dst") == {
        name: (source / name).read_bytes() for name in SMALL | SHRUNK
    }
    unpacked, packed = MillionAID(str(source)), MillionAID(str(tmp_path / "dst"))
    paths = [unpacked.get_data_info(index)["img_path"] for index in range(len(unpacked))]
    usable = [path for path in paths if os.path.relpath(path, source) not in BAD]
    assert len(packed) == len(usable) == 8
    for index, path in enumerate(usable):  # the same images in the same order
        stored = load_rgb(packed.get_data_info(index)["img_path"])
        assert np.array_equal(np.asarray(stored), np.asarray(load_rgb(path))), path


def test_folder_holds_the_same_as_the_database(source, packed, tmp_path):
    target = tmp_path / "dst"
    tool.pack(source, target, shorter_side=64, workers=2)
    assert files(target) == entries(packed)
    for listing in ("images.txt", "labelled.txt"):
        text = (target / listing).read_text()
        assert text.replace("images/", "images.lmdb/") == (packed / listing).read_text()


def test_labels_and_order_are_those_of_custom_dataset(source, packed):
    folder = CustomDataset(data_root=str(source))
    listed = CustomDataset(data_root=str(packed), ann_file="labelled.txt")

    def pairs(dataset: CustomDataset, root: Path) -> list[tuple[str, int]]:
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        return [(os.path.relpath(i["img_path"], root), i["gt_label"]) for i in infos]

    expected = [(name, label) for name, label in pairs(folder, source) if name not in BAD]
    assert pairs(listed, packed / "images.lmdb") == expected
    assert {label for _, label in expected} == {0, 1, 2}


def test_bad_images_are_counted_listed_and_tried_again(source, tmp_path, capsys):
    work = tmp_path / "src"
    work.mkdir()
    picture(50, 50).save(work / "a.png")
    (work / "b.png").write_bytes(b"nothing")
    arguments = [str(work), str(tmp_path / "dst"), "--workers", "1"]
    tool.run(parse(tool, arguments))
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["copied"][0] == rows["bad"][0] == "1" and rows["all"][0] == "2"
    bad = (tmp_path / "dst" / "bad_images.txt").read_text()
    assert bad == "b.png\tnot an image of a known format\n"
    assert (tmp_path / "dst" / "images.txt").read_text() == "images/a.png\n"
    assert not (tmp_path / "dst" / "labelled.txt").exists()
    picture(50, 50, 1).save(work / "b.png")
    tool.run(parse(tool, arguments))
    assert (tmp_path / "dst" / "images.txt").read_text() == "images/a.png\nimages/b.png\n"
    assert (tmp_path / "dst" / "bad_images.txt").read_text() == ""


def test_finished_packing_is_not_done_again(source, packed, monkeypatch):
    before = (packed / "images.lmdb" / "data.mdb").read_bytes(), entries(packed)
    decoded = []
    monkeypatch.setattr(tool, "load_rgb", lambda path: decoded.append(path) or load_rgb(path))
    tool.pack(source, packed, shorter_side=64, to_lmdb=True)
    assert {os.path.relpath(path, source) for path in decoded} == BAD
    assert ((packed / "images.lmdb" / "data.mdb").read_bytes(), entries(packed)) == before


@pytest.mark.parametrize("to_lmdb", [True, False], ids=["lmdb", "folder"])
def test_killed_anywhere_and_run_again_it_ends_the_same(tmp_path, monkeypatch, to_lmdb):
    source = tmp_path / "src"
    source.mkdir()
    for number in range(60):
        picture(40 + 60 * (number % 2), 120, number).save(source / f"{number:02d}.jpg")
    monkeypatch.setattr(tool, "COMMIT_IMAGES", 4)
    contents = entries if to_lmdb else files
    tool.pack(source, tmp_path / "whole", shorter_side=64, to_lmdb=to_lmdb)
    target = tmp_path / "dst"
    slow = tool.store

    def slowly(*arguments):
        slow(*arguments)
        time.sleep(0.03)

    monkeypatch.setattr(tool, "store", slowly)
    process_of = multiprocessing.get_context("fork").Process
    done = []
    for kill in itertools.count():
        process = process_of(target=tool.pack, args=(source, target, 64, 95, to_lmdb))
        process.start()
        process.join(0.05 + 0.043 * kill)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        progress = target / "progress.jsonl"
        done.append(progress.read_bytes().count(b"\n") if progress.exists() else 0)
        if to_lmdb and done[-1] > 1:  # all that is called done is there and whole
            stored = entries(target)
            for line in progress.read_bytes().split(b"\n")[1:-1]:
                name, _, _, after, _ = json.loads(line)
                assert len(stored[name]) == after
    assert process.exitcode == 0
    assert any(0 < count < 61 for count in done) and done == sorted(done)
    assert contents(target) == contents(tmp_path / "whole")
    for listing in ("images.txt", "bad_images.txt"):
        assert (target / listing).read_text() == (tmp_path / "whole" / listing).read_text()


def test_half_a_line_of_progress_is_not_taken_for_done(source, tmp_path):
    target = tmp_path / "dst"
    tool.pack(source, target, shorter_side=64)
    expected = files(target)
    text = (target / "progress.jsonl").read_bytes()
    (target / "progress.jsonl").write_bytes(text[:-20])
    (target / "images" / "a" / ".x.jpg.123.tmp").write_bytes(b"half")
    (target / "images" / "b class" / ".y.jpg.123.tmp").write_bytes(b"half")
    tool.pack(source, target, shorter_side=64)
    assert (target / "progress.jsonl").read_bytes().startswith(text[: text.rindex(b"[")])
    leftovers = set(files(target)) - set(expected)
    assert not any(name.startswith("b class") for name in leftovers)
    assert {name: files(target)[name] for name in expected} == expected


def test_list_with_and_without_labels(source, tmp_path):
    plain, labelled = tmp_path / "plain.txt", tmp_path / "labelled.txt"
    plain.write_text("a/small.jpg\n\nb class/turned small.jpg\n")
    tool.pack(source, tmp_path / "one", listing=plain)
    assert set(files(tmp_path / "one")) == {"a/small.jpg", "b class/turned small.jpg"}
    assert not (tmp_path / "one" / "labelled.txt").exists()
    labelled.write_text(f"b class/turned small.jpg 7\n{source}/a/small.jpg 3\n")
    tool.pack(source, tmp_path / "two", to_lmdb=True, listing=labelled)
    assert (tmp_path / "two" / "labelled.txt").read_text().splitlines() == [
        "images.lmdb/b class/turned small.jpg 7",
        "images.lmdb/a/small.jpg 3",
    ]


def test_list_names_what_is_wrong(source, tmp_path, capsys):
    listing = tmp_path / "list.txt"

    def said(text: str) -> str:
        listing.write_text(text)
        return error_of(capsys, source, tmp_path / "dst", "--list", listing)

    twice = said("a/small.jpg 0\na/../a/small.jpg 1\n")
    assert "names a/small.jpg twice" in twice
    assert "../other.jpg is outside of" in said("../other.jpg\n")
    assert "holds no image (looked for: one path per line)" in said("\n")
    listing.unlink()
    missing = error_of(capsys, source, tmp_path / "dst", "--list", listing)
    assert f"{listing} is no file" in missing


def test_what_cannot_work_is_refused_in_one_line(source, packed, tmp_path, capsys):
    assert "is no folder: SRC" in error_of(capsys, tmp_path / "nowhere", tmp_path / "dst")
    assert "is inside" in error_of(capsys, source, source / "dst")
    assert "leave the ending .lmdb away" in error_of(capsys, source, tmp_path / "dst.lmdb")
    other = error_of(capsys, source, packed, "--shorter-side", "32", "--to", "lmdb")
    assert "made with other settings (shorter_side 64 instead of 32)" in other
    assert "at least 0" in error_of(capsys, source, tmp_path / "dst", "--quality", "0")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "was not made by this tool" in error_of(capsys, source, tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in error_of(capsys, tmp_path / "empty", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_names_that_lists_or_databases_cannot_hold(tmp_path):
    tool.check_names(["a b/ä.jpg", "x" * 600], None)
    with pytest.raises(UserError, match="longer than the 511 bytes"):
        tool.check_names(["ä" * 256], tool.LONGEST_KEY)
    for name in ("a\nb.jpg", " a.jpg"):
        with pytest.raises(UserError, match="Rename the file"):
            tool.check_names([name], None)
    with pytest.raises(UserError, match="not UTF-8"):
        tool.check_names([os.fsdecode(b"\xff.jpg")], None)


@pytest.mark.parametrize("to_lmdb", [True, False], ids=["lmdb", "folder"])
def test_full_disk_is_said_in_one_line_and_mended(source, tmp_path, monkeypatch, to_lmdb):
    target = tmp_path / "dst"
    with monkeypatch.context() as patch:
        if to_lmdb:
            patch.setattr(tool, "MAP_SIZE", 40_000)  # LMDB's own limit on its size
        else:

            def full(path):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(tool, "replacing", full)
        with pytest.raises(UserError, match="cannot write to .*dst .*it resumes where it stopped"):
            if not to_lmdb:  # the record of progress itself was still written
                target.mkdir()
                settings = dict(source=str(source), shorter_side=64, quality=95, to="folder")
                (target / "progress.jsonl").write_text(json.dumps(settings) + "\n")
            tool.pack(source, target, shorter_side=64, to_lmdb=to_lmdb, workers=1)
    tool.pack(source, target, shorter_side=64, to_lmdb=to_lmdb)
    assert set(entries(target) if to_lmdb else files(target)) == SMALL | SHRUNK


def test_lost_database_is_noticed(source, tmp_path):
    target = tmp_path / "dst"
    tool.pack(source, target, shorter_side=64, to_lmdb=True)
    (target / "images.lmdb" / "data.mdb").unlink()
    with pytest.raises(UserError, match="holds fewer images than progress.jsonl says"):
        tool.pack(source, target, shorter_side=64, to_lmdb=True)


def test_worker_that_is_ended_from_outside_is_explained(source, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "load_rgb", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="lack of memory: use fewer --workers"):
        tool.pack(source, tmp_path / "dst", workers=1)


def test_nothing_usable_is_an_error_and_writes_no_list(tmp_path, capsys):
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no image")
    (folder / "b.png").touch()
    arguments = parse(tool, [str(folder), str(tmp_path / "dst"), "--workers", "1"])
    with pytest.raises(UserError, match="None of the 2 images can be read, a.jpg for: not an im"):
        tool.run(arguments)
    listed = sorted(path.name for path in (tmp_path / "dst").iterdir())
    assert listed == ["bad_images.txt", "progress.jsonl"]
    assert len((tmp_path / "dst" / "bad_images.txt").read_text().splitlines()) == 2
    picture(30, 20).save(folder / "a.jpg")
    tool.run(arguments)
    assert (tmp_path / "dst" / "images.txt").read_text() == "images/a.jpg\n"


def test_system_folders_and_circles_of_links_are_not_packed(tmp_path):
    folder = tmp_path / "src"
    for name in ("a", "b", "@eaDir/x.jpg", ".ipynb_checkpoints", "__MACOSX"):
        (folder / name).mkdir(parents=True)
        picture(30, 20).save(folder / name / "0.jpg")
    (folder / "b" / "up").symlink_to("..")
    (folder / "loop").symlink_to(".")
    tool.pack(folder, tmp_path / "dst")
    assert (tmp_path / "dst/labelled.txt").read_text() == "images/a/0.jpg 0\nimages/b/0.jpg 1\n"
    assert (tmp_path / "dst/bad_images.txt").read_text() == ""


def test_rasters_keep_their_values(tmp_path, capsys):
    folder = tmp_path / "src"
    folder.mkdir()
    values = np.linspace(0, 2047, 100 * 100).reshape(100, 100).astype(np.uint16)
    Image.fromarray(values).save(folder / "11 bit.png")
    (folder / "cut.png").write_bytes((folder / "11 bit.png").read_bytes()[:500])
    arguments = [str(folder), str(tmp_path / "dst"), "--shorter-side", "50", "--workers", "1"]
    tool.run(parse(tool, arguments))
    assert "1 rasters (more than 8 bits" in capsys.readouterr().out
    stored = tmp_path / "dst" / "images" / "11 bit.png"
    assert stored.read_bytes() == (folder / "11 bit.png").read_bytes()
    assert (tmp_path / "dst" / "bad_images.txt").read_text().startswith("cut.png")


@pytest.mark.parametrize(
    ("text", "said"),
    [("-1", "must be a whole number of at least 0, got '-1'"), ("abc", "at least 0, got 'abc'")],
)
@pytest.mark.parametrize("converter", [dior, tool])
def test_number_of_workers(converter, text, said, capsys):
    places = ["a"] if converter is dior else ["a", "b"]
    assert parse(converter, [*places, "--workers", "0"]).workers == os.cpu_count()
    with pytest.raises(SystemExit):
        parse(converter, [*places, "--workers", text])
    assert said in capsys.readouterr().err
