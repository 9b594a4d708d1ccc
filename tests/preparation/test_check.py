"""What check says of a folder, and the files that it leaves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from gersp_mm.augmentation.view import PRESETS
from gersp_mm.commands import check as command
from gersp_mm.preparation import check as tool
from gersp_mm.preparation.common import read_reasons
from gersp_mm.utils.errors import UserError
from tests.support.rasters import surface, write
from tests.support.smoke import write_images

pytest.importorskip("rasterio")


def tiles(folder, count: int = 6, bands: int = 4):
    """Tiles of 12 bits in reflectance, 10 m a pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values = (surface(bands, number, (60, 80)) * 3000 + 500).astype(np.uint16)
        write(folder / f"{number}.tif", values, metres=10, nodata=0)
    return folder


def test_a_folder_of_everything(tmp_path):
    folder = tiles(tmp_path / "images")
    write_images(folder / "photographs", 3, size=(64, 64))
    (folder / "copy.tif").write_bytes((folder / "0.tif").read_bytes())
    (folder / "page.jpg").write_text("<html>")
    (folder / "cut.tif").write_bytes((folder / "1.tif").read_bytes()[:9000])
    write(folder / "nothing.tif", np.zeros((4, 30, 30), np.uint16), metres=10, nodata=0)
    write(folder / "flat.tif", np.full((4, 30, 30), 7, np.uint16), metres=10, nodata=0)
    Image.new("RGB", (30, 30), "red").save(folder / "red.png")
    write(folder / "complex.tif", np.ones((1, 9, 9), np.complex64))
    out = tmp_path / "out"
    text = tool.check(folder, out, bands=(3, 2, 1), rows=1)
    assert text == (out / "report.txt").read_text().rstrip("\n")
    bad = {
        path.rpartition("/")[2]: why for path, why in read_reasons(out / "bad_images.txt").items()
    }
    assert set(bad) == {"page.jpg", "cut.tif", "complex.tif"}
    assert bad["page.jpg"] == "not an image of a known format"
    assert "complex numbers are no picture" in bad["complex.tif"]
    empty = {p.rpartition("/")[2]: why for p, why in read_reasons(out / "empty.txt").items()}
    assert empty == {
        "nothing.tif": "no pixel has data", "flat.tif": "one value in each band",
        "red.png": "one colour",
    }  # fmt: skip
    same = read_reasons(out / "duplicates.txt")
    assert same == {str(folder / "copy.tif"): str(folder / "0.tif")}
    for words in (
        "16 files in", "3 of 16 files cannot be read", "3 of 16 files have no content",
        "GTiff, 4 bands x uint16", "JPEG, 3 bands x uint8", "30 to 80", "bands=(3, 2, 1)",
        f"dict(type='gersp_mm.MillionAID', data_root='{folder}'",
    ):  # fmt: skip
        assert words in text, words
    with Image.open(out / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet)
    side, gap = tool.VIEW_SIDE, 6
    assert pixels.shape == (side + 2 * gap, 4 * (2 * side + gap) + gap, 3)
    query, key = pixels[gap:-gap, gap : gap + side], pixels[gap:-gap, gap + side : gap + 2 * side]
    assert min(query.std(), key.std()) > 10 and not np.array_equal(query, key)


def test_ranges_and_histogram_are_those_of_the_values(tmp_path):
    values = np.arange(1, 10001, dtype=np.uint16).reshape(1, 100, 100)
    write(tmp_path / "ramp.tif", values)
    text = tool.check(tmp_path, tmp_path / "out", rows=1)
    row = next(line for line in text.splitlines() if line.startswith("1 band x uint16, 1")).split()
    assert [float(word) for word in row[5:10]] == pytest.approx([1, 50, 5000, 9950, 10000], abs=5)
    assert row[10] == "█" * tool.BINS
    assert tool.histogram(np.array([0.0, 0, 0, 1]), 0, 1) == "█" + "▁" * 30 + "▄"
    assert tool.histogram(np.ones(4), 1, 1) == "one value"


def test_huge_photographs_and_odd_metadata_say_nothing_on_the_terminal(
    tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for number in range(9):
        Image.new("L", (40, 40), number).save(tmp_path / f"huge{number}.png")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    palette = Image.fromarray(pixels).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(200)))
    values = (surface(1) * 900 + 9).astype(np.uint16)
    values[:, :30] = 0
    write(tmp_path / "border.tif", values)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        command.main([str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "3"])
    out, error = capfd.readouterr()
    assert "Warning" not in error and "huge0.png: one colour" in out
    assert "57.1%" in out  # of the border's file; 0 is no data


@pytest.mark.parametrize("mode, ending, bands", [("L", "jpg", 1), ("RGBA", "png", 4)])
def test_photographs_and_rasters_of_one_kind_have_rows_of_their_own(tmp_path, mode, ending, bands):
    pixels = (surface(bands, 0, (40, 40)) * 250).astype(np.uint8)
    photograph = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
    assert photograph.mode == mode
    photograph.save(tmp_path / f"photograph.{ending}")
    write(tmp_path / "raster.tif", pixels, photometric="minisblack")  # without an alpha band
    kind = f"{bands} band{'s' if bands > 1 else ''} x uint8, "
    text = tool.check(tmp_path, tmp_path / "out", rows=1)
    rows = [line for line in text.splitlines() if line.startswith(kind)]
    assert [int(row[len(kind)]) for row in rows] == [1, 2, 3, *range(1, bands + 1)]


def test_large_rasters_are_scenes_with_a_window(tmp_path):
    values = (surface(1, 0, (700, 1100)) * 900).astype(np.int16)
    values[:, :, :400] = -9999
    write(tmp_path / "a.tif", values, metres=10, nodata=-9999, tiled=True)
    write(tmp_path / "b.tif", values[:, :, :1030], metres=20, nodata=-9999)
    text = tool.check(tmp_path, tmp_path / "out", rows=1)
    assert f"dict(type='gersp_mm.Scenes', data_root='{tmp_path}', window='7680 m')" in text
    assert "10 to 20" in text and "-9999" in text
    text = tool.check(tmp_path, tmp_path / "out", window=128, scale=(0, 900), rows=1)
    assert "window=128, scale=(0, 900))" in text and "0 to 900" in text


def test_bands_are_taken_from_names_or_guessed(tmp_path):
    import rasterio

    tiles(tmp_path / "a", 1)
    assert "bands=(3, 2, 1) is a guess" in tool.check(tmp_path / "a", tmp_path / "out", rows=1)
    with rasterio.open(tmp_path / "a" / "0.tif", "r+") as file:
        file.descriptions = ("Red", "Nir", "Green", "Blue")
    text = tool.check(tmp_path / "a", tmp_path / "out", rows=1)
    assert "bands=(1, 3, 4))" in text and "guess" not in text
    text = tool.check(tmp_path / "a", tmp_path / "out", bands=(9,), rows=1)
    assert "No contact sheet can be drawn" in text and "there is no band 9" in text


def test_a_sample_of_a_long_list_is_stated(tmp_path, monkeypatch):
    folder = tiles(tmp_path / "images", 9, bands=1)
    decoded = []
    for name in ("look_into", "load_pixels"):
        call = getattr(tool, name)
        monkeypatch.setattr(
            tool,
            name,
            lambda path, call=call, **options: decoded.append(path) or call(path, **options),
        )
    (folder / "list.txt").write_text("".join(f"{n}.tif\n" for n in range(9)))
    text = tool.check(folder / "list.txt", tmp_path / "out", sampled=3, rows=1)
    assert "9 files in" in text and "of 3 files were examined, an even sample" in text
    assert {path.rpartition("/")[2] for path in decoded} == {"0.tif", "4.tif", "8.tif"}
    assert f"data_root='{folder}', ann_file='list.txt'" in text
    assert tool.evenly([str(n) for n in range(9)], 3) == ["0", "4", "8"]


def test_the_command_takes_every_preset():
    assert set(command.PRESETS) == set(PRESETS)


def test_nothing_usable_is_an_error_and_bad_files_are_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no")
    with pytest.raises(SystemExit) as left:
        command.main(["bad"])
    assert left.value.code == 2
    assert "None of 1 examined files in bad can be used" in capsys.readouterr().err
    write_images(tmp_path / "bad", 2, size=(64, 64))
    command.main(["bad", "--rows", "1", "--scale", "0", "100"])
    assert "1 of 3 files cannot be read" in capsys.readouterr().out
    assert (tmp_path / "work_dirs/check/bad/contact_sheet.png").is_file()
    for source in ("missing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="does not exist|holds no image"):
            tool.check(tmp_path / source, tmp_path / "out")
