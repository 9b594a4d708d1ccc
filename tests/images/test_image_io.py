"""Reading image files: odd ones are used as they should look, damaged ones are refused."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gersp_mm.datasets import BadImageError, load_pixels, load_rgb
from gersp_mm.images import decode as image_io

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def grey16() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)


def read(path: Path) -> np.ndarray:
    image = load_rgb(str(path))
    assert image.mode == "RGB"
    assert np.array_equal(load_pixels(str(path)).permute(1, 2, 0).numpy(), np.asarray(image))
    return np.asarray(image)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tiff(path: Path, values: np.ndarray, byte_order: str = "<", orientation: int = 1) -> Path:
    """Write an uncompressed one-channel TIFF of any number type by hand."""
    bits = 8 * values.dtype.itemsize
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(byte_order)).tobytes()
    height, width = values.shape
    short, long = 3, 4
    tags = [
        (256, long, width),
        (257, long, height),
        (258, short, bits),
        (259, short, 1),  # no compression
        (262, short, 1),  # black is zero
        (273, long, 8),  # the pixels follow the header
        (274, short, orientation),
        (277, short, 1),
        (278, long, height),
        (279, long, len(data)),
        (339, short, sample_format),
    ]
    content = {"<": b"II", ">": b"MM"}[byte_order]
    content += struct.pack(byte_order + "HI", 42, 8 + len(data))
    content += data + struct.pack(byte_order + "H", len(tags))
    for tag, kind, value in tags:
        form = "HHIHxx" if kind == short else "HHII"
        content += struct.pack(byte_order + form, tag, kind, 1, value)
    path.write_bytes(content + bytes(4))
    return path


def reason(path: Path) -> str:
    with pytest.raises(BadImageError) as error:
        load_rgb(str(path))
    with pytest.raises(BadImageError) as other:
        load_pixels(str(path))
    assert str(other.value) == str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_file_is_refused(tmp_path, pixels, kind, share):
    content = encoded(pixels, kind)
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert read(path).shape == (HEIGHT, WIDTH, 3)
    path.write_bytes(content[: int(share * len(content))])
    assert reason(path)


def test_what_is_no_image_is_refused_with_the_reason(tmp_path):
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("<html>404 not found</html>")
    assert reason(empty) == "empty file"
    # without the memory address that PIL puts there: the same file has the same reason every time
    assert reason(text) == "not an image of a known format"
    assert "No such file" in reason(tmp_path / "missing.jpg")
    assert "directory" in reason(tmp_path).lower()


def test_the_content_decides_not_the_name(tmp_path, pixels):
    path = tmp_path / "really_png.jpg"
    path.write_bytes(encoded(pixels, "PNG"))
    assert np.array_equal(read(path), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, dict(progressive=True), dict(subsampling=0)], ids=str)
def test_jpegs_have_pils_values_without_pil(tmp_path, pixels, mode, options, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).convert(mode).save(path, **options)
    expected = np.asarray(load_rgb(str(path)))
    monkeypatch.setattr(image_io.Image, "open", None)
    assert np.array_equal(load_pixels(str(path)).permute(1, 2, 0).numpy(), expected)


def test_greyscale_and_grey_with_alpha(tmp_path, pixels):
    grey = pixels[..., 0]
    Image.fromarray(grey).save(tmp_path / "l.png")
    with_alpha = Image.fromarray(np.stack([grey, pixels[..., 1]], -1), "LA")
    with_alpha.save(tmp_path / "la.png")
    for name in ("l.png", "la.png"):
        assert np.array_equal(read(tmp_path / name), np.repeat(grey[..., None], 3, -1))


def test_black_and_white(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[..., 1], 255 * np.eye(8))


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.fromarray((np.arange(64, dtype=np.uint8) % 3).reshape(8, 8))
    image.putpalette([10, 20, 30, 200, 100, 0, 5, 250, 7])
    image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    with Image.open(tmp_path / "p.png") as stored:
        assert stored.mode == "P" and "transparency" in stored.info
    expected = np.array([[10, 20, 30], [200, 100, 0], [5, 250, 7]])[np.arange(64) % 3]
    assert np.array_equal(read(tmp_path / "p.png").reshape(-1, 3), expected)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    with Image.open(tmp_path / "c.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(read(tmp_path / "c.jpg") - np.array([255.0, 0, 0])).max() <= 3  # red


def test_rgba_drops_the_transparency(tmp_path, pixels):
    alpha = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], -1)).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), pixels)


# what the viewer does to the stored pixels, by EXIF orientation
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_turns_the_pixels(tmp_path, pixels, grey16, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), UPRIGHT[orientation](pixels))
    # in a JPEG as cameras write it: which corner is bright
    bright_corner = np.zeros((32, 64, 3), np.uint8)
    bright_corner[:16, :16] = 255
    Image.fromarray(bright_corner).save(tmp_path / "a.jpg", exif=exif)
    difference = read(tmp_path / "a.jpg").astype(float) - UPRIGHT[orientation](bright_corner)
    assert np.abs(difference).max() < 40
    # PIL turns TIFF images by itself: not twice
    grey = grey16.astype(np.uint8)
    tiff = read(write_tiff(tmp_path / "a.tif", grey, orientation=orientation))
    assert np.array_equal(tiff[..., 0], UPRIGHT[orientation](grey))


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0garbage, not a TIFF header", False),
        # orientation 6, then a resolution that is a text instead of a fraction
        (
            b"Exif\0\0II*\0\x08\0\0\0\x02\0"
            + struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
            + struct.pack("<HHII", 0x011A, 2, 1, 65),
            True,
        ),
        # orientation 6, then a pointer beyond the end
        (
            b"Exif\0\0II*\0\x08\0\0\0\x02\0"
            + struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
            + struct.pack("<HHII", 0x8769, 4, 1, 99999),
            True,
        ),
        # an orientation that does not exist
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHxx", 0x0112, 3, 1, 77), False),
    ],
)
def test_malformed_metadata_does_not_make_an_image_unusable(tmp_path, pixels, exif, turned):
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape = read(tmp_path / "a.jpg").shape
    assert shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))


# ------------------------------------------------------------------------------- damaged JPEGs


@pytest.fixture(params=["simplejpeg", "torchvision"])
def decoder(request, monkeypatch) -> str:
    if request.param == "torchvision":
        monkeypatch.setattr(image_io, "simplejpeg", None)
    return request.param


def photograph(side: int = 96, **options: object) -> bytes:
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = coarse.resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def damaged(content: bytes) -> dict[str, bytes]:
    """Copies of a JPEG whose pixels are wrong, though PIL finds nothing."""
    start = content.rindex(b"\xff\xda")  # of the last scan
    body = len(content) - start
    a, b = start + body * 35 // 100, start + body * 65 // 100
    scan = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return {
        "middle zeroed": content[:a] + bytes(b - a) + content[b:],
        "block missing": content[:a] + content[b:],
        "header and end": content[:scan] + b"\xff\xd9",
        "cut off and ended": content[:b] + b"\xff\xd9",
        "cut off and filled up": content[:a] + bytes(len(content) - a),
        "truncated": content[:b],
        "end alone missing": content[:-2],
    }


KINDS = [
    dict(), dict(subsampling=0), dict(mode="L"), dict(mode="CMYK"), dict(optimize=True),
    dict(restart_marker_rows=1), dict(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
]  # fmt: skip


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_damaged_jpegs_are_refused_with_the_decoders_words(tmp_path, decoder, options, capfd):
    content = photograph(quality=80, **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert read(path).shape == (96, 96, 3)
    for kind, broken in damaged(content).items():
        path.write_bytes(broken)
        words = reason(path)
        assert words.startswith(("Corrupt JPEG data: ", "Premature end of JPEG file")), kind
    assert capfd.readouterr().err == ""


def test_odd_but_whole_jpegs_are_used(tmp_path, decoder):
    content = photograph(quality=80)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    path = tmp_path / "a.jpg"
    for odd in (
        content + bytes(range(256)) * 8,  # bytes after the end
        content + b"\xff\xd8" + content[:300],  # a broken second image after the end
        content[:2] + b"\xff\xff\xff" + content[2:],  # fill bytes
        content[:2] + b"\xff\xfe\x00\x0acomments" + content[2:],
    ):
        path.write_bytes(odd)
        assert np.array_equal(read(path), expected)
    path.write_bytes(photograph(quality=80, progressive=True))
    assert read(path).shape == (96, 96, 3)


def test_what_others_write_to_stderr_is_passed_on(tmp_path, decoder, capfd, monkeypatch):
    def decode(data):
        os.write(2, b"another thread\nCorrupt JPEG data: bad Huffman code\nspeaks\n")
        raise RuntimeError("as torchvision does")

    monkeypatch.setattr(image_io, "simplejpeg", None)
    monkeypatch.setattr(image_io, "decode_jpeg", decode)
    path = tmp_path / "a.jpg"
    path.write_bytes(photograph())
    with pytest.raises(BadImageError, match="^Corrupt JPEG data: bad Huffman code$"):
        load_pixels(str(path))
    assert capfd.readouterr().err.split() == ["another", "thread", "speaks"]


# ------------------------------------------------------------------------------------------ size


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small image file whose header claims another size."""
    small = Image.new("RGB", (8, 8), (9, 8, 7))
    buffer = io.BytesIO()
    small.save(buffer, kind)
    content = bytearray(buffer.getvalue())
    if kind == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "PPM":
        return f"P6 {width} {height} 255\n".encode() + bytes(192)
    elif kind == "TIFF":
        for tag, claim in ((256, width), (257, height)):
            for form, number in (("<HHIHxx", 3), ("<HHII", 4)):
                new = struct.pack("<HHII", tag, 4, 1, claim)
                content = content.replace(struct.pack(form, tag, number, 1, 8), new)
    else:
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize(
    ("size", "limit"),
    [((40_000, 40_000), "limit of 536,870,912 pixels"), ((20_000, 9_000), "pixels for each byte")],
)
def test_bombs_are_refused_from_their_header(tmp_path, decoder, kind, size, limit, monkeypatch):
    path = tmp_path / "bomb"
    path.write_bytes(claiming(kind, *size))
    monkeypatch.setattr(Image.Image, "load", None)  # nothing is decoded
    for name in ("simplejpeg", "decode_jpeg"):
        monkeypatch.setattr(image_io, name, None)
    words = reason(path)
    assert f"claims {size[0]:,} x {size[1]:,} pixels in {path.stat().st_size:,} bytes" in words
    assert words.endswith(limit)


def test_a_large_mask_in_group_4_is_read(tmp_path):
    """Black and white masks take less than a thousandth of a byte per pixel."""
    mask = Image.new("1", (8_300, 8_300))
    mask.paste(1, (100, 100, 200, 300))
    mask.save(tmp_path / "mask.tif", compression="group4")
    size = (tmp_path / "mask.tif").stat().st_size
    assert image_io.MAX_PIXELS_PER_BYTE * size < 8_300**2
    pixels = image_io.load_rgb(str(tmp_path / "mask.tif"))
    assert pixels.getbbox() == (100, 100, 200, 300) and pixels.getpixel((150, 150)) == (255,) * 3
    with pytest.raises(image_io.BadImageError, match="limit of 66,400 pixels for each byte"):
        image_io.check_size(8_300, 8_300, 1_000, group4=True)


def test_limits_leave_room_for_real_images():
    image_io.check_size(24_000, 15_900, 40_000_000)  # the largest of Million-AID
    image_io.check_size(8_192, 8_192, 20)  # cheap, whatever is behind it
    side, raw = 20_000, 20_000 * 20_001
    image_io.check_size(side, side, raw // 1_032)  # 8-bit grey of one colour, as a PNG
    with pytest.raises(BadImageError, match="pixels for each byte"):
        image_io.check_size(side, side, raw // 1_032 // 8)  # 1 bit of one colour


@pytest.mark.parametrize("where", ["simplejpeg.decode_jpeg", "Image.open"])
def test_too_little_memory_makes_a_bad_image(tmp_path, where, monkeypatch, pixels):
    path = tmp_path / "a.img"
    Image.fromarray(pixels).save(path, "JPEG" if "jpeg" in where else "PNG")

    def fail(*args, **kwargs):
        raise np._core._exceptions._ArrayMemoryError((65000, 65000, 3), np.dtype("uint8"))

    owner, name = where.split(".")
    monkeypatch.setattr(getattr(image_io, owner), name, fail)
    assert reason(path) == "not enough memory to decode it"


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_tiff_that_is_cut_off_is_not_called_one_of_other_bands(tmp_path, compression, share):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(share * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's, about metadata
        assert re.search("cut off|truncated|decoder error", reason(tmp_path / "a.tif"))


def test_very_wide_image_is_used(tmp_path):
    Image.new("RGB", (20_000, 30), (1, 2, 3)).save(tmp_path / "wide.png")
    image = load_rgb(str(tmp_path / "wide.png"))
    assert image.size == (20_000, 30)
    assert image.getpixel((19_999, 29)) == (1, 2, 3)


def test_size_is_unlimited_while_reading_only(tmp_path, pixels, monkeypatch):
    # PIL warns above the limit and refuses above twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(tmp_path / "a.png"), pixels)
    assert Image.MAX_IMAGE_PIXELS == HEIGHT * WIDTH // 3
    (tmp_path / "a.png").write_bytes(b"no image")
    assert reason(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == HEIGHT * WIDTH // 3
    with pytest.raises(Image.DecompressionBombError):
        Image.fromarray(pixels).crop((1, 0, WIDTH, HEIGHT))
