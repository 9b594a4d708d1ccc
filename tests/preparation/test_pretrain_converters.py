"""tools/dataset_converters/million_aid.py and imagenet.py: counts, lists, labels, refusals."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from gersp_mm.datasets import LabelledImages, MillionAID
from gersp_mm.preparation import common as preparation
from gersp_mm.utils.errors import UserError
from tests.preparation.test_scene_converters import convert, load_converter
from tests.support.smoke import write_images

million_aid = load_converter("million_aid")
imagenet = load_converter("imagenet")


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def take(data: Path, *options: object) -> None:
    convert(million_aid, data, "--allow-incomplete", *options)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def decoded(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[str]:
    """Note the names of the images that are decoded; Ctrl-C before number ``stop_at``."""
    names: list[str] = []

    def load(path: str):
        if len(names) + 1 == stop_at:
            raise KeyboardInterrupt
        names.append(Path(path).name)
        return original(path)

    original = preparation.load_rgb
    monkeypatch.setattr(preparation, "load_rgb", load)
    return names


# ------------------------------------------------------------------------------------- Million-AID


def test_list_has_the_order_and_the_images_of_the_data_set(tmp_path, capsys):
    data = tmp_path / "million_aid"
    files = ["P0000002.jpg", "P0000001.JPG", "part_2/b/P3.jpeg", "part 1/P4.png", "part_2/P5.tif"]
    other = ["readme.txt", ".P6.jpg", "part_2/._P5.tif", "part_2/Thumbs.db", ".cache/P7.jpg"]
    touch(data / "test", *files, *other)
    touch(data / "train", "agriculture/arable/a.jpg", "b.jpg")
    for _ in range(2):
        take(data)
        assert lines(data / "test" / "images.txt") == sorted(files)
    shutil.rmtree(data / "test" / ".cache")
    found, listed = (MillionAID(str(data / "test"), ann_file=a) for a in ("", "images.txt"))
    for dataset in (found, listed):
        paths = [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]
        assert paths == [str(data / "test" / file) for file in sorted(files)]
    printed, warned = capsys.readouterr()
    assert "WARNING: test has 5 images, the official one has 990,848" in warned
    assert "train (not used)       2    10,000" in printed
    assert "test                   5   990,848           0       5" in printed
    assert "labels are not needed" in printed
    assert f"gersp prepare pack {data / 'test'} data/packed/maid --list" in printed
    assert (
        f"remote_sensing.data_root={data / 'test'} "
        "train_dataloader.dataset.remote_sensing.ann_file=images.txt"
    ) in printed


def test_linked_folders_are_listed_once(tmp_path):
    touch(tmp_path / "elsewhere", "a.jpg")
    touch(tmp_path / "data" / "test", "b.jpg")
    (tmp_path / "data" / "test" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data" / "test")
    (tmp_path / "data" / "test" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    take(tmp_path / "data")
    assert lines(tmp_path / "data" / "test" / "images.txt") == ["b.jpg", "link/a.jpg"]


def test_archives_go_to_their_part(tmp_path, capsys):
    content = touch(tmp_path / "content", "P1.jpg", "P2.jpg", "P3.jpg", "c/P4.jpg")
    with zipfile.ZipFile(tmp_path / "test_1.zip", "w") as archive:
        archive.write(content / "P1.jpg", "test/P1.jpg")
    with tarfile.open(tmp_path / "test_2.tar.gz", "w:gz") as archive:
        archive.add(content / "P2.jpg", "P2.jpg")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.write(content / "c" / "P4.jpg", "c/P4.jpg")
    archives = [tmp_path / name for name in ("test_1.zip", "test_2.tar.gz", "train.zip")]
    data = tmp_path / "million_aid"
    for _ in range(2):
        take(data, "--archives", *archives)
        assert lines(data / "test" / "images.txt") == ["test_1/test/P1.jpg", "test_2/P2.jpg"]
    assert (data / "train" / "train" / "c" / "P4.jpg").is_file()
    assert capsys.readouterr().out.count("is not unpacked again") == 3


def test_unreadable_images_are_left_out_until_they_are_mended(tmp_path, monkeypatch, capsys):
    data = tmp_path / "million_aid"
    write_images(data / "test", 5)
    good = (data / "test" / "001.jpg").read_bytes()
    (data / "test" / "001.jpg").write_bytes(good[:300])
    (data / "test" / "003.jpg").write_bytes(b"")
    names = decoded(monkeypatch)
    take(data, "--decode")
    assert len(names) == 5
    assert lines(data / "test" / "images.txt") == ["000.jpg", "002.jpg", "004.jpg"]
    noted = lines(data / "unreadable_test.txt")
    assert [line.split("\t")[0] for line in noted] == ["001.jpg", "003.jpg"]
    assert noted[1] == "003.jpg\tempty file"
    printed = capsys.readouterr().out
    assert "5   990,848           2       3" in printed
    assert "  left out: 003.jpg: empty file" in printed
    take(data)  # without decoding they are left out as well
    assert len(names) == 5
    assert lines(data / "test" / "images.txt") == ["000.jpg", "002.jpg", "004.jpg"]
    (data / "test" / "001.jpg").write_bytes(good)
    names.clear()
    take(data, "--decode")
    assert sorted(names) == ["001.jpg", "003.jpg"]  # what is readable is not decoded again
    assert lines(data / "test" / "images.txt") == ["000.jpg", "001.jpg", "002.jpg", "004.jpg"]
    assert lines(data / "decoded_test.txt") == ["000.jpg", "002.jpg", "004.jpg", "001.jpg"]


def test_decoding_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    data = tmp_path / "million_aid"
    write_images(data / "test", 6)
    with monkeypatch.context() as patch:
        decoded(patch, stop_at=4)
        with pytest.raises(KeyboardInterrupt):
            take(data, "--decode", "--workers", 1)
    assert not (data / "test" / "images.txt").exists()
    record = data / "decoded_test.txt"
    assert lines(record) == ["000.jpg", "001.jpg", "002.jpg"]
    record.write_bytes(record.read_bytes()[:-5])  # killed in the middle of a line
    names = decoded(monkeypatch)
    take(data, "--decode", "--workers", 1)
    assert names == ["002.jpg", "003.jpg", "004.jpg", "005.jpg"]
    assert lines(record) == [f"00{n}.jpg" for n in range(6)]
    assert lines(data / "test" / "images.txt") == [f"00{n}.jpg" for n in range(6)]


def test_million_aid_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*test\. Put the images there"):
        convert(million_aid, tmp_path)
    touch(tmp_path, "test_1.zip", "test_2.zip")
    with pytest.raises(UserError, match="Unpack test_1.zip, test_2.zip with --archives"):
        convert(million_aid, tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="test holds no image: are its archives unpacked"):
        convert(million_aid, tmp_path)
    touch(tmp_path / "test", "a\nb.jpg")
    with pytest.raises(UserError, match="not the complete Million-AID:\n  test has 1 images, "):
        convert(million_aid, tmp_path)
    with pytest.raises(UserError, match=r"'a\\nb.jpg' has a line break"):
        take(tmp_path)


def test_million_aid_without_a_readable_image_gets_no_list(tmp_path):
    odd = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path / "test", odd, "two\nlines.jpg")
    with pytest.raises(UserError, match="None of the 2 images of .*test can be read"):
        take(tmp_path, "--decode")
    assert not (tmp_path / "test" / "images.txt").exists()
    noted = (tmp_path / "unreadable_test.txt").read_text(encoding="utf-8").splitlines()
    assert noted == ["caf\\xe9.jpg\tempty file", "two\\nlines.jpg\tempty file"]
    # such names may be left out of the list, and good images are listed
    write_images(tmp_path / "test", 1)
    take(tmp_path)
    assert lines(tmp_path / "test" / "images.txt") == ["000.jpg"]


# --------------------------------------------------------------------------------------- ImageNet

WNIDS = ("n01440764", "n01443537", "n02102040")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet of three classes and seven images."""
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    monkeypatch.setattr(imagenet, "TRAIN", 7)
    for number, wnid in enumerate(WNIDS):
        touch(
            tmp_path / "ImageNet" / "train", *(f"{wnid}/{wnid}_{i}.JPEG" for i in range(number + 1))
        )
    touch(tmp_path / "ImageNet" / "train", "n01440764/n01440764_18.JPEG")
    return tmp_path / "ImageNet"


def labels(train: Path) -> dict[str, int]:
    dataset = LabelledImages(str(train))
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {os.path.relpath(info["img_path"], train): info["gt_label"] for info in infos}


def test_complete_imagenet_is_what_the_data_set_reads(data, capsys):
    convert(imagenet, data)
    printed = capsys.readouterr().out
    assert "train        3         3       7         7            2 to 3" in printed
    assert "val: not there; not needed for pre-training" in printed
    assert "WARNING" not in printed
    assert f"natural.data_root={data / 'train'}\n" in printed
    assert sorted(path.name for path in data.iterdir()) == ["train"]
    classes = imagenet.find_classes(data / "train")
    assert labels(data / "train") == {
        image: label for label, images in enumerate(classes.values()) for image in images
    }
    assert list(classes) == list(WNIDS)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"], "flat, without labels"),
        (["images/val_0.JPEG", "images/val_1.JPEG"], "flat, without labels"),
        ([f"{wnid}/a.JPEG" for wnid in WNIDS], "one folder per class"),
        ([f"{WNIDS[1]}/a.JPEG"], "1 class folders, train has 3: labels would differ"),
    ],
)
def test_val_may_be_flat_or_foldered(data, capsys, files, kind):
    touch(data / "val", *files, "val_annotations.txt")
    convert(imagenet, data)
    printed = capsys.readouterr().out
    assert f"val: {kind}" in printed
    row = next(line for line in printed.splitlines() if line.startswith("val "))
    assert row.split() == ["val", str(len(files)), "50,000"]


def test_what_is_missing_is_said_and_refused(data, capsys):
    shutil.rmtree(data / "train" / WNIDS[0])
    (data / "train" / WNIDS[2] / f"{WNIDS[2]}_0.JPEG").unlink()
    with pytest.raises(UserError) as refusal:
        convert(imagenet, data)
    assert str(refusal.value).splitlines() == [
        f"{data} is not the complete ImageNet-1k:",
        "  2 classes instead of 3: 1 missing",
        "  4 images instead of 7: 3 missing",
        "Fetch what is missing, or use --allow-incomplete to take a sample",
    ]
    convert(imagenet, data, "--allow-incomplete")
    printed, warned = capsys.readouterr()
    assert "WARNING: 2 classes instead of 3: 1 missing" in warned
    assert printed.rstrip().endswith("model.natural_head.num_classes=2")


def test_folders_that_shift_the_labels_are_found(data):
    (data / "train" / "empty").mkdir()
    touch(data / "train", ".ipynb_checkpoints/a.JPEG", "@eaDir/b.JPEG", "__MACOSX/._c.JPEG")
    touch(data / "train", "misc/a.JPEG", "loose.JPEG", "n02110185.tar")
    with pytest.raises(UserError) as refusal:
        convert(imagenet, data)
    assert [line.strip() for line in str(refusal.value).splitlines()[1:-1]] == [
        "1 archives are not unpacked (n02110185.tar): see --help for how",
        "1 images lie in no class folder (loose.JPEG): not read",
        "2 folders are not called as ImageNet's classes (empty, misc): each is counted as a class "
        "and shifts the labels after it",
        "1 folders hold no image (empty)",
        "5 classes instead of 3: 2 too many",
        "8 images instead of 7: 1 too many",
    ]
    # and that is what they do
    assert labels(data / "train")[f"{WNIDS[2]}/{WNIDS[2]}_0.JPEG"] == 4


def test_tiny_imagenet_is_read_with_the_right_labels(tmp_path, capsys):
    data = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        touch(
            data / "train" / wnid,
            f"{wnid}_boxes.txt",
            f"images/{wnid}_0.JPEG",
            f"images/{wnid}_1.JPEG",
        )
    convert(imagenet, data, "--allow-incomplete")
    assert "WARNING: 3 classes instead of 1,000: 997 missing" in capsys.readouterr().err
    assert labels(data / "train") == {
        f"{wnid}/images/{wnid}_{i}.JPEG": label for label, wnid in enumerate(WNIDS) for i in (0, 1)
    }


def test_imagenet_is_decoded_once(data, monkeypatch):
    for wnid in WNIDS:
        for file in (data / "train" / wnid).iterdir():
            file.unlink()
    write_images(data / "train" / WNIDS[0], 3)
    write_images(data / "train" / WNIDS[1], 2)
    write_images(data / "train" / WNIDS[2], 2)
    write_images(data / "val", 1)
    bad = data / "train" / WNIDS[1] / "001.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    names = decoded(monkeypatch)
    with pytest.raises(UserError, match=f"{bad} cannot be read: not an image of a known format"):
        convert(imagenet, data, "--decode")
    assert len(names) == 8
    assert lines(data / "unreadable_train.txt") == [
        f"{WNIDS[1]}/001.jpg\tnot an image of a known format"
    ]
    assert lines(data / "unreadable_val.txt") == []
    bad.write_bytes(good)
    names.clear()
    convert(imagenet, data, "--decode")
    assert names == ["001.jpg"]
    assert lines(data / "unreadable_train.txt") == []


def test_imagenet_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*train: DATA holds train/ with one"):
        convert(imagenet, tmp_path)
    touch(tmp_path / "train", "n01440764.tar", "n01443537.tar")
    with pytest.raises(UserError, match="no class folder with images: 2 archives are not unpacked"):
        convert(imagenet, tmp_path)
