"""tools/dataset_converters/eurosat.py and resisc45.py: lists, names of the splits, refusals."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from mmpretrain.datasets import CustomDataset
from PIL import Image

from gersp_mm.commands import prepare
from gersp_mm.datasets.known import EUROSAT, RESISC45
from gersp_mm.datasets.splits import EUROSAT_GERSP_1
from gersp_mm.utils.errors import UserError
from tests.support.commands import parse
from tests.support.smoke import write_images


def load_converter(name: str) -> ModuleType:
    return importlib.import_module(f"gersp_mm.preparation.{name}")


eurosat = load_converter("eurosat")
resisc45 = load_converter("resisc45")


def convert(tool: ModuleType, *arguments: object) -> None:
    tool.run(parse(tool, [str(argument) for argument in arguments]))


def contents(data: Path, name: str) -> dict[str, list[str]]:
    files = sorted((data / "splits" / name).iterdir())
    return {file.stem: file.read_text().splitlines() for file in files}


# EuroSAT with two classes of few images, and its split as it has to be for ever
SMALL = dataclasses.replace(
    EUROSAT_GERSP_1,
    sizes={"AnnualCrop": 5, "Forest": 4},
    sha256="849cd71ead3f4755a90591e5bd376cad87fbc15491b4ac448a8c58abd3bf5918",
)
KNOWN = dataclasses.replace(EUROSAT, split=SMALL, classes=SMALL.classes)
SMALL_LISTS = {
    "test": ["2750/AnnualCrop/AnnualCrop_2.jpg 0", "2750/Forest/Forest_3.jpg 1"],
    "train": [
        "2750/AnnualCrop/AnnualCrop_3.jpg 0",
        "2750/AnnualCrop/AnnualCrop_4.jpg 0",
        "2750/AnnualCrop/AnnualCrop_5.jpg 0",
        "2750/Forest/Forest_2.jpg 1",
        "2750/Forest/Forest_4.jpg 1",
    ],
    "val": ["2750/AnnualCrop/AnnualCrop_1.jpg 0", "2750/Forest/Forest_1.jpg 1"],
}


def write_eurosat(folder: Path) -> Path:
    for number, (name, size) in enumerate(SMALL.sizes.items()):
        write_images(folder / name, size, seed=number, size=(64, 64))
        for index in range(size):
            (folder / name / f"{index:03d}.jpg").rename(folder / name / f"{name}_{index + 1}.jpg")
    (folder / "train.csv").write_text(",Filename,Label\n")
    (folder / "label_map.json").write_text("{}")
    (folder / "Forest" / "._Forest_1.jpg").write_bytes(b"of a Mac")
    (folder / "Forest" / "Thumbs.db").write_bytes(b"of Windows")
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("gersp_mm.datasets.known.EUROSAT", KNOWN)
    write_eurosat(tmp_path / "eurosat" / "2750")
    return tmp_path / "eurosat"


# --------------------------------------------------------------------------------- complete data


def test_complete_data_get_the_split_and_its_name(data, capsys):
    convert(eurosat, data)
    assert contents(data, "eurosat-gersp-1") == SMALL_LISTS
    printed = capsys.readouterr().out.splitlines()
    table = printed[printed.index("class       train  val  test  all") :]
    assert table[2:5] == [
        "AnnualCrop      3    1     1    5",
        "Forest          2    1     1    4",
        "all             5    2     2    9",
    ]
    assert printed[0] == "byte-identical images in two classes: 0"
    assert f"split eurosat-gersp-1, sha256 {SMALL.sha256}: wrote" in table[5]
    assert printed[-2:] == [
        f"  export GERSP_DATA={data.parent}",
        "  gersp train configs/downstream/eurosat/finetune_r50_eurosat.py --cfg-options "
        "pretrained=BACKBONE.pth",
    ]


def test_again_and_elsewhere_it_is_the_same(data, tmp_path, capsys):
    convert(eurosat, data)
    convert(eurosat, data, "--allow-incomplete")
    assert contents(data, "eurosat-gersp-1") == SMALL_LISTS
    files = [path.name for path in (data / "splits").rglob("*")]
    assert sorted(files) == ["eurosat-gersp-1", "test.txt", "train.txt", "val.txt"]
    (tmp_path / "other" / "a").mkdir(parents=True)
    shutil.move(data / "2750", tmp_path / "other" / "a" / "b c")
    convert(eurosat, tmp_path / "other")
    lists = contents(tmp_path / "other", "eurosat-gersp-1")
    assert lists == {k: [v.replace("2750", "a/b c") for v in x] for k, x in SMALL_LISTS.items()}
    assert f"ln -s {tmp_path / 'other'} data/eurosat" in capsys.readouterr().out


def test_mmpretrain_reads_the_lists(data):
    convert(eurosat, data)
    dataset = CustomDataset(str(data), ann_file="splits/eurosat-gersp-1/train.txt")
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert [sample["gt_label"] for sample in samples] == [0, 0, 0, 1, 1]
    assert all(Path(sample["img_path"]).is_file() for sample in samples)


def test_linked_class_folders_are_found_once(data):
    shutil.move(data / "2750", data.parent / "elsewhere")
    (data / "2750").symlink_to(data.parent / "elsewhere")
    (data.parent / "elsewhere" / "loop").symlink_to(data)
    convert(eurosat, data)
    assert contents(data, "eurosat-gersp-1") == SMALL_LISTS


# -------------------------------------------------------------------------------- incomplete data


def test_incomplete_data_are_refused_with_what_is_missing_and_unknown(data, capsys):
    (data / "2750" / "Forest" / "Forest_2.jpg").unlink()
    (data / "2750" / "AnnualCrop" / "AnnualCrop_2.jpg").rename(
        data / "2750" / "AnnualCrop" / "copy.png"
    )
    with pytest.raises(UserError) as refusal:
        convert(eurosat, data)
    lines = str(refusal.value).splitlines()
    assert lines[0] == f"{data} is not the complete data set of eurosat-gersp-1:"
    assert lines[1:3] == ["  images by class:", "  class       expected  found  missing  unknown"]
    assert lines[4:8] == [
        "  AnnualCrop         5      5        1        1",
        "  Forest             4      3        1        0",
        "  missing: AnnualCrop/AnnualCrop_2.jpg, Forest/Forest_2.jpg",
        "  unknown: AnnualCrop/copy.png",
    ]
    assert "--allow-incomplete" in lines[-1] and "eurosat-gersp-1-incomplete" in lines[-1]
    assert not (data / "splits").exists()


def test_split_of_incomplete_data_has_another_name(data, capsys):
    shutil.rmtree(data / "2750" / "AnnualCrop")
    convert(eurosat, data, "--allow-incomplete")
    assert contents(data, "eurosat-gersp-1-incomplete") == {
        part: [line for line in lines if "Forest" in line] for part, lines in SMALL_LISTS.items()
    }
    assert not (data / "splits" / "eurosat-gersp-1").exists()
    printed, warned = capsys.readouterr()
    assert "AnnualCrop         5      0        5        0" in warned
    assert (
        "pretrained=BACKBONE.pth "
        "train_dataloader.dataset.ann_file=splits/eurosat-gersp-1-incomplete/train.txt "
        "val_dataloader.dataset.ann_file=splits/eurosat-gersp-1-incomplete/val.txt "
        "test_dataloader.dataset.ann_file=splits/eurosat-gersp-1-incomplete/test.txt"
    ) in printed


def test_damaged_images_and_other_sizes_are_refused_unless_not_looked_at(data):
    forest = data / "2750" / "Forest"
    content = (forest / "Forest_1.jpg").read_bytes()
    (forest / "Forest_1.jpg").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (64, 48)).save(forest / "Forest_3.jpg")
    with pytest.raises(UserError) as refusal:
        convert(eurosat, data)
    message = str(refusal.value)
    assert message.startswith("2 of 9 images cannot be read or have another size; fetch them again")
    assert f"{forest / 'Forest_1.jpg'}: Premature end of JPEG file" in message
    assert f"{forest / 'Forest_3.jpg'}: is 64x48, not 64x64" in message
    assert not (data / "splits").exists()
    convert(eurosat, data, "--no-decode")
    assert contents(data, "eurosat-gersp-1") == SMALL_LISTS


def test_identical_images_are_reported_alone(data, capsys):
    crops, forest = data / "2750" / "AnnualCrop", data / "2750" / "Forest"
    shutil.copy(crops / "AnnualCrop_3.jpg", forest / "Forest_3.jpg")
    shutil.copy(crops / "AnnualCrop_4.jpg", crops / "AnnualCrop_1.jpg")
    convert(eurosat, data)
    lines = capsys.readouterr().out.splitlines()
    across = "  AnnualCrop/AnnualCrop_3.jpg (train) = Forest/Forest_3.jpg (test)"
    within = "  AnnualCrop/AnnualCrop_4.jpg (train) = AnnualCrop/AnnualCrop_1.jpg (val)"
    assert lines[:2] == ["byte-identical images in two classes: 1", across]
    assert lines[2] == "byte-identical images in two parts: 2"
    assert set(lines[3:5]) == {across, within}
    assert contents(data, "eurosat-gersp-1") == SMALL_LISTS


# --------------------------------------------------------------------------------------- refusals


def test_second_copies_are_refused(data):
    """Copies in another format, whose pixels are the same, would be divided over the parts."""
    for name in ("Forest_1", "Forest_2"):
        with Image.open(data / "2750" / "Forest" / f"{name}.jpg") as image:
            image.save(data / "2750" / "Forest" / f"{name}.png")
    with pytest.raises(UserError) as refusal:
        convert(eurosat, data, "--allow-incomplete")
    assert f"In {data}, 2 of 9 images are there twice, as .jpg and .png (" in str(refusal.value)
    assert not (data / "splits").exists()


def test_copies_of_another_name_are_refused(data):
    forest = data / "2750" / "Forest"
    for number in (1, 2, 3, 4):
        shutil.copy(forest / f"Forest_{number}.jpg", forest / f"copy_{number}.jpg")
    with pytest.raises(UserError, match=r"2750/Forest.*Results would be too good. Remove them"):
        convert(eurosat, data, "--allow-incomplete")
    assert not (data / "splits").exists()


def test_multispectral_images_are_refused(data):
    (data / "2750" / "Forest" / "Forest_1.tif").touch()
    with pytest.raises(UserError, match=r"Forest_1.tif belongs to the multispectral EuroSAT.*_RGB"):
        convert(eurosat, data)


def test_class_folder_that_is_there_twice_is_refused(data):
    shutil.copytree(data / "2750" / "Forest", data / "copy" / "Forest")
    with pytest.raises(UserError, match="the class folder Forest appears twice, as .*2750.*copy"):
        convert(eurosat, data)


def test_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no class folder .AnnualCrop, Forest, Herb"):
        convert(eurosat, tmp_path / "nowhere")


def test_file_name_that_a_list_cannot_hold_is_refused(data):
    (data / "2750" / "Forest" / "Forest_2.jpg").rename(data / "2750" / "Forest" / "a\nb.jpg")
    with pytest.raises(UserError, match=r"a\\nb.jpg 1' has a line break"):
        convert(eurosat, data, "--allow-incomplete")


def test_tool_says_what_is_wrong_in_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare.main("eurosat", [str(tmp_path)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"\nerror: {tmp_path} holds no class folder")
    assert len(message.strip().splitlines()) == 1


# --------------------------------------------------------------------------------------- archives


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as content:
        for file in sorted(folder.rglob("*")):
            content.write(file, file.relative_to(folder.parent))
    return archive


def test_archive_is_unpacked_once(data, tmp_path, capsys):
    archive = pack(data / "2750", tmp_path / "EuroSAT_RGB.zip")
    target = tmp_path / "new" / "eurosat"
    convert(eurosat, target, "--archive", archive)
    unpacked = {
        part: [f"EuroSAT_RGB/{line}" for line in lines] for part, lines in SMALL_LISTS.items()
    }
    assert contents(target, "eurosat-gersp-1") == unpacked
    archive.unlink()
    convert(eurosat, target, "--archive", archive)
    assert "EuroSAT_RGB.zip is not unpacked again" in capsys.readouterr().out
    assert contents(target, "eurosat-gersp-1") == unpacked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("EuroSAT.zip", "EuroSAT.zip is no zip or tar archive: was its download complete"),
        ("NWPU.rar", "NWPU.rar is a RAR archive: unpack it yourself"),
    ],
)
def test_archive_that_is_none_leaves_nothing(tmp_path, name, message):
    archive = tmp_path / name
    archive.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(UserError, match=message):
        convert(eurosat, tmp_path / "eurosat", "--archive", archive)
    assert not list((tmp_path / "eurosat").iterdir())


def test_tar_archive_of_a_mac_and_its_side_files(data, tmp_path):
    with tarfile.open(tmp_path / "EuroSAT.tar.gz", "w:gz") as archive:
        archive.add(data / "2750", "2750")
        archive.add(data / "2750" / "Forest" / "Forest_1.jpg", "__MACOSX/2750/Forest/Forest_1.jpg")
    target = tmp_path / "new"
    convert(eurosat, target, "--archive", tmp_path / "EuroSAT.tar.gz")
    assert sorted(p.name for p in (target / "EuroSAT").iterdir()) == ["2750"]
    assert not list(target.rglob("._*"))


def test_damaged_and_locked_archives_are_one_message(data, tmp_path):
    archive = tmp_path / "EuroSAT.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("2750/Forest/Forest_1.jpg", bytes(1000) + bytes(range(256)))
    whole = archive.read_bytes()
    start = whole.index(b"Forest_1.jpg") + len("Forest_1.jpg")
    archive.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])  # no deflate data
    with pytest.raises(UserError, match=r"EuroSAT.zip cannot be unpacked .*: fetch it again"):
        convert(eurosat, tmp_path / "new", "--archive", archive)
    locked = bytearray(whole)
    for header, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # as if it had a password
        locked[whole.index(header) + at] |= 1
    archive.write_bytes(locked)
    with pytest.raises(UserError, match=r"cannot be unpacked here \(.*password.*7z x"):
        convert(eurosat, tmp_path / "new", "--archive", archive)
    method = bytearray(whole)
    for header, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):  # Deflate64, as Windows writes
        method[whole.index(header) + at] = 9
    archive.write_bytes(method)
    with pytest.raises(UserError, match=r"cannot be unpacked here \(.*compression method.*7z x"):
        convert(eurosat, tmp_path / "new", "--archive", archive)
    assert not list((tmp_path / "new").iterdir())


def test_second_copy_in_another_format_is_refused_even_in_a_sample(data):
    for path in list((data / "2750").rglob("*_*.jpg")):
        if not path.name.startswith("."):
            Image.open(path).save(path.with_suffix(".png"))
    for option in ([], ["--allow-incomplete"]):
        with pytest.raises(UserError, match=r"every image is there twice, as .jpg and .png"):
            convert(eurosat, data, *option)
    assert not (data / "splits").exists()


@pytest.mark.parametrize(
    "name", ["dior", "dota", "eurosat", "imagenet", "loveda", "million_aid", "resisc45"]
)
def test_every_converter_takes_samples_by_the_same_words(name, tmp_path, capsys):
    tool = load_converter(name)
    protocol = ["--protocol", "released"] if name == "dota" else []
    given = [str(tmp_path), *protocol]
    assert parse(tool, given).allow_incomplete is False
    assert parse(tool, [*given, "--allow-incomplete"]).allow_incomplete is True
    with pytest.raises(SystemExit):
        parse(tool, ["--help"])
    words = "take a sample: report what differs from the complete data set, and continue"
    assert words in " ".join(capsys.readouterr().out.split())


# --------------------------------------------------------------------------------------- RESISC45


def test_resisc45_of_few_images(tmp_path, capsys):
    data = tmp_path / "resisc45"
    for seed, name in enumerate(("airplane", "wetland")):
        write_images(data / "NWPU-RESISC45" / name, 11, seed, size=(256, 256))
        for index in range(11):
            file = data / "NWPU-RESISC45" / name / f"{index:03d}.jpg"
            file.rename(file.with_name(f"{name}_{index + 1:03d}.jpg"))
    with pytest.raises(UserError, match=r"airport +700 +0 +700 +0"):
        convert(resisc45, data)
    convert(resisc45, data, "--allow-incomplete")
    lists = contents(data, "resisc45-gersp-1-incomplete")
    assert {part: len(lines) for part, lines in lists.items()} == dict(train=4, val=2, test=16)
    lines = [line for part in lists.values() for line in part]
    assert sorted(lines) == sorted(
        f"NWPU-RESISC45/{name}/{name}_{n:03d}.jpg {RESISC45.classes.index(name)}"
        for name in ("airplane", "wetland")
        for n in range(1, 12)
    )
    printed = capsys.readouterr().out
    assert "byte-identical images in two classes: 0" in printed
    assert "finetune_r50_resisc45.py" in printed


def test_resisc45_of_another_size_is_refused(tmp_path):
    write_images(tmp_path / "beach", 2, size=(64, 64))
    with pytest.raises(UserError, match="is 64x64, not 256x256"):
        convert(resisc45, tmp_path, "--allow-incomplete")
