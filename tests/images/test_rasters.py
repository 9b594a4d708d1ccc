"""Rasters as 8-bit RGB: the values of the file, stretched as stated, in the chosen bands."""

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from gersp_mm.images import BadImageError, load_pixels, load_rgb
from gersp_mm.images.pixels import BandsError, PixelScale
from gersp_mm.images.rasters import describe, opened, read
from gersp_mm.images.scaling import find_scale
from gersp_mm.utils.errors import UserError
from tests.support.rasters import surface, write

rasterio = pytest.importorskip("rasterio")

HEIGHT, WIDTH = 70, 90
HIGHEST = dict(uint8=255, uint16=10_000, int16=9_000, uint32=10**5, float32=1, float64=0.5)
LAYOUTS = {
    "strips": dict(),
    "tiles": dict(tiled=True, blockxsize=32, blockysize=32),
    "planar": dict(interleave="band", compress="lzw"),
    "predictor": dict(compress="deflate", predictor=2),
    "zstd": dict(compress="zstd", tiled=True, blockxsize=16, blockysize=16),
    "big": dict(BIGTIFF="YES", compress="lzw"),
}


def stretched(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    limits = [np.percentile(band[valid], (0.5, 99.5)) for band in values]
    return np.stack([
        np.clip((band.astype(float) - low) / (high - low) * 255, 0, 255)
        for band, (low, high) in zip(values, limits)
    ])  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", None), ("uint16", None), ("uint16", 0), ("int16", -9999), ("uint32", None),
        ("float32", None), ("float32", float("nan")), ("float32", -3.4e38), ("float64", -1.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_every_form_has_its_values(tmp_path, dtype, nodata, layout, bands):
    profile = dict(LAYOUTS[layout])
    if dtype.startswith("float") and "predictor" in profile:
        profile["predictor"] = 3
    values = (surface(bands) * HIGHEST[dtype]).astype(dtype)
    valid = np.ones((HEIGHT, WIDTH), bool)
    if nodata is not None:
        valid[:25] = False
        values[:, :25] = nodata
        if nodata == 0:  # the lowest value of the image proper
            values[:, 25:] = values[:, 25:].clip(1)
    path = write(tmp_path / "a.tif", values, nodata=nodata, **profile)
    chosen = (4, 2, 5) if bands == 5 else None
    rgb = load_pixels(path, scale=None if chosen is None else own_scale(path, chosen)).numpy()
    used = values[[3, 1, 4]] if chosen else np.repeat(values, 3, 0) if bands == 1 else values
    expected = used if dtype == "uint8" else stretched(used, valid)
    assert np.abs(rgb[:, valid] - expected[:, valid].astype(float)).max() <= 1
    if dtype != "uint8":
        assert all(len(np.unique(band[valid])) > 200 for band in rgb)
    if not valid.all():  # the median of the band, and not black
        medians = np.median(expected[:, valid], axis=1)
        assert np.abs(rgb[:, ~valid] - medians[:, None]).max() <= 1


def own_scale(path: str, bands: tuple) -> PixelScale:
    with opened(path) as file:
        raster = read(file, PixelScale(bands=bands).choose(describe(file)))
        kind = describe(file).kind
    return PixelScale(bands=bands).find({kind: [raster.values[:, raster.valid]]})


def test_a_mask_alpha_and_scale_tags_are_read(tmp_path):
    values = (surface(3) * 4000).astype(np.uint16)
    alpha = np.full((1, HEIGHT, WIDTH), 65535, np.uint16)
    alpha[:, :, :40] = 0
    path = write(
        tmp_path / "alpha.tif", np.concatenate([values, alpha]), photometric="RGB", ALPHA="YES"
    )
    with opened(path) as file:
        info = describe(file)
        assert info.kind == "3 bands x uint16" and info.bands == (1, 2, 3)
        assert not read(file, (1, 2, 3)).valid[:, :40].any()
        assert read(file, (1, 2, 3)).valid[:, 40:].all()
    path = write(tmp_path / "scaled.tif", values)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 3, (-0.1,) * 3
        file.write_mask(values[0] > 1000)
    with opened(path) as file:
        raster = read(file, (3, 1, 1))
    assert np.allclose(raster.values[0], values[2] * 1e-4 - 0.1, atol=1e-6)
    assert np.array_equal(raster.valid, values[0] > 1000)


@pytest.mark.parametrize("suffix", ["png", "pgm", "jp2"])
def test_other_formats_of_16_bits(tmp_path, suffix):
    values = (surface(1) * 3000).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "jp2":
        write(path, values, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    else:
        Image.fromarray(values[0]).save(path)
    rgb = np.asarray(load_rgb(str(path)))
    expected = stretched(values, np.ones(values.shape[1:], bool))[0]
    assert np.abs(rgb[..., 1] - expected).max() <= 1


def test_a_compression_that_pillow_lacks_is_read_all_the_same(tmp_path):
    values = (surface(3) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", values, compress="lerc", MAX_Z_ERROR=0)
    with pytest.raises(Exception), Image.open(path) as image:  # noqa: B017
        image.load()
    assert np.array_equal(load_pixels(path).numpy(), values)


def test_photographs_are_used_as_they_are_whatever_the_scale(tmp_path):
    values = (surface(3) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", values, nodata=0)
    scale = PixelScale((10.0, 20.0), bands=(4, 3, 2))
    assert np.array_equal(load_pixels(path, scale=scale).numpy(), values)


@pytest.mark.parametrize(
    ("bands", "dtype", "words"),
    [
        (4, "uint16", "4 bands x uint16: choose the bands for red, green and blue"),
        (2, "float32", "2 bands x float32: choose .* such as bands=(1,)"),
        (13, "int16", "13 bands x int16: choose"),
        (1, "complex64", "1 band x complex64: complex numbers are no picture"),
    ],
)
def test_what_needs_a_choice_is_refused_with_it(tmp_path, bands, dtype, words):
    path = write(tmp_path / "a.tif", surface(bands).astype(dtype))
    with pytest.raises(BadImageError, match=words.replace("(", r"\(").replace(")", r"\)")):
        load_rgb(path)


def test_bands_are_chosen_by_name_and_named_when_missing(tmp_path):
    values = (surface(4) * 900).astype(np.uint16)
    path = write(tmp_path / "a.tif", values, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Blue", "green", "red", "nir")
    with opened(path) as file:
        info = describe(file)
    assert PixelScale(bands=("NIR", "red", 1)).choose(info) == (4, 3, 1)
    assert PixelScale(bands="red").choose(info) == (3, 3, 3)
    listed = r"4 bands x uint16 \(1 Blue, 2 green, 3 red, 4 nir\)"
    with pytest.raises(BandsError, match=f"{listed}: no band is called 'swir'"):
        PixelScale(bands=("swir", "red", 1)).choose(info)
    with pytest.raises(BandsError, match="there is no band 5"):
        PixelScale(bands=(5, 3, 2)).choose(info)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(scale="percentiles"), "scale='percentiles': choose 'percentile', 'none', a pair"),
        (dict(scale=(5, 5)), "choose 'percentile'"),
        (dict(scale=(0, float("nan"))), "choose 'percentile'"),
        (dict(scale=[(0, 1), (0, 1)]), r"give one \(lowest, highest\) pair, or one for each of"),
        (dict(bands=(1, 2)), r"bands=\(1, 2\): choose three bands, or one"),
        (dict(bands=(0, 1, 2)), "choose three bands, or one"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        PixelScale(**options)


def test_bands_marked_as_transparency_can_be_chosen(tmp_path):
    values = (surface(4) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", values, photometric="RGB", ALPHA="YES")
    rgb = load_pixels(path, scale=PixelScale(bands=(4, 1, 2))).numpy()
    assert np.array_equal(rgb, values[:3])  # a photograph
    with opened(path) as file:
        assert PixelScale(bands=(4, 1, 2)).choose(describe(file)) == (4, 1, 2)
        raster = read(file, (4, 1, 2))
    assert raster.valid.all() and np.array_equal(raster.values, values[[3, 0, 1]])


def test_large_integers_keep_their_grey_levels(tmp_path):
    values = (surface(1) * 200 + 3e9).astype(np.uint32)
    path = write(tmp_path / "a.tif", values)
    assert len(np.unique(load_pixels(path).numpy())) > 150
    given = PixelScale((0, 40)).to_rgb(
        read_all(write(tmp_path / "b.tif", (surface(4) * 40).astype(np.uint8))), "4 bands x uint8"
    )
    assert given.max() == 255  # limits that are given hold for 8 bits as well


def read_all(path: str):
    with opened(path) as file:
        return read(file, (1, 2, 3))


def test_given_limits_and_plain_data():
    from gersp_mm.images.rasters import Raster

    values = np.float32([[[0, 50, 100, 300, np.nan]]] * 3)
    raster = Raster(values, np.isfinite(values).all(0))
    one = PixelScale((0, 100)).to_rgb(raster, "3 bands x float32")
    assert one[0, 0].tolist() == [0, 127, 255, 255, 128]
    each = PixelScale([(0, 100), (100, 300), (-100, 100)])
    assert each.to_rgb(raster, "3 bands x float32")[:, 0, 2].tolist() == [255, 0, 255]
    found = each.find({"3 bands x float32": [values[:, raster.valid]]})
    assert found.limits["3 bands x float32"] == ((0, 100), (100, 300), (-100, 100))
    assert found.fill["3 bands x float32"] == (191, 0, 223)
    again = PixelScale.stored(found.as_dict())
    assert again == found and PixelScale.stored(dict(scale="no")) is None
    assert PixelScale("none").to_rgb(raster, "x")[0, 0].tolist() == [0, 50, 100, 255, 128]
    constant = PixelScale().find({"k": [np.full((3, 9), 7.0)]})
    assert constant.to_rgb(Raster(np.full((3, 1, 1), 7.0), np.ones((1, 1), bool)), "k").max() == 128


def test_the_scale_of_a_source_is_that_of_all_its_files(tmp_path):
    dark, bright = (surface(1) * 500).astype(np.uint16), (surface(1, 1) * 500 + 1500)
    paths = [
        write(tmp_path / "dark.tif", dark),
        write(tmp_path / "bright.tif", bright.astype(np.uint16)),
        write(tmp_path / "unit.tif", surface(1).astype(np.float32)),
    ]
    (tmp_path / "cut.tif").write_bytes((tmp_path / "dark.tif").read_bytes()[:300])
    Image.new("RGB", (9, 9)).save(tmp_path / "photograph.png")
    paths += [str(tmp_path / "cut.tif"), str(tmp_path / "photograph.png")]
    found = find_scale("folder", len(paths), paths.__getitem__, PixelScale())
    assert list(found.limits) == ["1 band x uint16", "1 band x float32"]
    both = np.concatenate([dark.ravel(), bright.astype(np.uint16).ravel()])
    assert np.allclose(found.limits["1 band x uint16"][0], np.percentile(both, (0.5, 99.5)), 0.01)
    assert load_pixels(paths[0], scale=found).max() < 80
    assert load_pixels(paths[1], scale=found).min() > 170
    with pytest.raises(BadImageError, match=r"1 band x uint32: no pixel scale is known for this"):
        load_pixels(write(tmp_path / "b.tif", (surface(1) * 9e4).astype(np.uint32)), scale=found)
    four = write(tmp_path / "four.tif", surface(4).astype(np.float32))
    words = r"1 sampled images of folder cannot be used, such as .*four.tif: 4 bands"
    with pytest.raises(UserError, match=words.replace("1 images", "1 of 1 images")):
        find_scale("folder", 1, [four].__getitem__, PixelScale())
    assert find_scale("folder", 1, [paths[-1]].__getitem__, scale := PixelScale()) is scale


@pytest.mark.parametrize("dtype, nodata", [("int16", -9999), ("uint16", 0), ("float32", -1.0)])
def test_nodata_of_tiles_that_do_not_declare_it_is_suspected(tmp_path, capfd, dtype, nodata):
    from gersp_mm.datasets import MillionAID

    for number in range(3):
        values = (surface(1, number) * 900 + 100).astype(dtype)
        # A small border is noticed through the others.
        values[:, : (0, 70, 20)[number], : (0, 30, 8)[number]] = nodata
        write(tmp_path / f"{number}.tif", values)
    source = MillionAID(str(tmp_path))
    kind = f"1 band x {dtype}"
    assert source.pixel_scale.nodata == {kind: nodata}
    assert source.pixel_scale.limits[kind][0][0] >= 100
    said = f"1 of 3 sampled rasters of {tmp_path}/ ({kind}) have a large border"
    text = capfd.readouterr().out
    assert said in text and "Set nodata=None" in text
    (described,) = source.pixel_scale.describe()
    assert described.endswith(f"{nodata:g} is no data")
    stored = PixelScale.stored(source.pixel_scale.as_dict())
    assert stored == source.pixel_scale
    for number, lacking in ((1, 30), (2, 8)):
        rgb = load_pixels(str(tmp_path / f"{number}.tif"), scale=stored)
        assert len(rgb[:, :20, :lacking].unique()) == 1 and 60 < rgb[0, 0, 0] < 200
    trusting = MillionAID(str(tmp_path), nodata=None).pixel_scale
    assert trusting.nodata == {} and "nodata" not in trusting.as_dict()
    assert trusting.limits[kind][0][0] == pytest.approx(nodata)
    assert MillionAID(str(tmp_path), nodata=nodata).pixel_scale == source.pixel_scale
    with pytest.raises(UserError, match="MillionAID: nodata='0': give a number"):
        MillionAID(str(tmp_path), nodata="0")


def test_bright_borders_and_values_within_the_image_are_not_suspected(tmp_path, capfd):
    from gersp_mm.datasets import MillionAID

    for number in range(3):
        values = (surface(3, number) * 900 + 100).astype(np.uint16)
        values[:, :30] = (4095, 500, 65535)[number]  # snow, a roof, clouds
        write(tmp_path / f"{number}.tif", values)
    Image.new("L", (90, 70)).save(tmp_path / "black.png")  # a photograph
    assert MillionAID(str(tmp_path)).pixel_scale.nodata == {}
    assert "WARNING" not in capfd.readouterr().out


def test_large_rasters_without_overviews_are_sampled_by_spots(tmp_path, monkeypatch):
    from gersp_mm.images import scaling

    values = np.tile((surface(1) * 5000).astype(np.uint16), (1, 8, 8))
    path = write(tmp_path / "a.tif", values, tiled=True, blockxsize=64, blockysize=64)
    whole = find_scale("a", 1, [path].__getitem__, PixelScale()).limits["1 band x uint16"]
    monkeypatch.setattr(scaling, "WHOLE_SIDE", 256)
    sizes = []
    inner = scaling.rasters.read
    monkeypatch.setattr(
        scaling.rasters, "read", lambda *a, **k: sizes.append(a[2:]) or inner(*a, **k)
    )
    spots = find_scale("a", 1, [path].__getitem__, PixelScale()).limits["1 band x uint16"]
    assert len(sizes) == 64 and {size[0][2:] for size in sizes} == {(16, 16)}
    assert np.allclose(spots, whole, atol=400)


FORMS = {
    "strips.tif": {},
    "deflate.tif": dict(compress="deflate", tiled=True, blockxsize=32, blockysize=32),
    "planar.tif": dict(interleave="band", BIGTIFF="YES"),
    "cog.tif": dict(driver="COG", compress="deflate"),
    "tiles.jp2": dict(driver="JP2OpenJPEG", BLOCKXSIZE=64, BLOCKYSIZE=64),
}


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", [*FORMS, "a.nc"])
def test_what_is_cut_off_is_never_read_as_zeros(tmp_path, name, share):
    from gersp_mm.datasets import Scenes

    path = tmp_path / name
    if name == "a.nc":
        write_netcdf(path, (surface(1)[0] * 900).astype(np.int16))
    else:
        write(path, (surface(3, size=(200, 220)) * 900 + 1).astype(np.uint16), **FORMS[name])
    assert load_pixels(str(path)).shape[0] == 3
    content = path.read_bytes()
    (cut := path.with_stem("cut")).write_bytes(content[: int(len(content) * share)])
    said = rf"^cut off: its header needs \d[\d,]* bytes, it has {int(len(content) * share):,}$"
    if name.endswith("jp2"):
        said = "opj_get_decoded_tile"
    with pytest.raises(BadImageError, match=said):
        load_pixels(str(cut))
    with pytest.raises(UserError, match=f"none of 1 scenes.*: .*{said.strip('^')}"):
        Scenes("", [str(cut)], window=64)


def write_netcdf(path, values: np.ndarray, version: int = 1, records: bool = False) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    with scipy_io.netcdf_file(path, "w", version=version) as file:
        file.title = "a title"
        file.createDimension("y", None if records else len(values))
        file.createDimension("x", values.shape[1])
        file.createVariable("band", values.dtype, ("y", "x"))[:] = values
        if records:
            file.createVariable("row", "i1", ("y",))[:] = np.arange(len(values))


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("width", [7, 8])
def test_the_length_that_a_netcdf_needs_is_that_of_the_file(tmp_path, version, records, width):
    from gersp_mm.images.bands import cut_off

    write_netcdf(path := tmp_path / "a.nc", np.ones((5, width), np.int16), version, records)
    content = path.read_bytes()
    with open(path, "rb") as file:
        assert cut_off(file) == ""
    path.write_bytes(content[:-4])
    with open(path, "rb") as file:
        assert cut_off(file).endswith(f"it has {len(content) - 4:,}")


def test_a_netcdf_of_several_images_names_them(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    with scipy_io.netcdf_file(tmp_path / "a.nc", "w") as file:
        file.createDimension("y", 8)
        file.createDimension("x", 9)
        for name in ("red", "nir"):
            file.createVariable(name, "i2", ("y", "x"))[:] = np.ones((8, 9))
    with pytest.raises(BadImageError, match=r"^2 images in one file \(red, nir\). Store each"):
        load_rgb(str(tmp_path / "a.nc"))


def test_an_odd_header_of_a_whole_file_is_used(tmp_path):
    """The last strip claims more bytes than it has, which GDAL does not need."""
    from gersp_mm.datasets import Scenes

    values = (surface(1, size=(64, 64)) * 900).astype(np.uint16)
    path = write(tmp_path / "a.tif", values, blockysize=16)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    sizes = np.full(4, 16 * 64 * 2, np.uint16).tobytes()
    at = content.index(sizes)
    content[at + 6 : at + 8] = np.uint16(2**15).tobytes()
    (tmp_path / "a.tif").write_bytes(content)
    assert len(Scenes("", [path], window=32).scenes) == 1


def test_damaged_rasters_name_their_reason(tmp_path):
    path = tmp_path / "a.tif"
    write(path, (surface(3) * 900).astype(np.uint16), compress="deflate")
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], content[:200] + bytes(400) + content[600:]):
        path.write_bytes(broken)
        with pytest.raises(BadImageError) as error:
            load_rgb(str(path))
        assert not re.search("0x|[0-9a-f]{8}-", str(error.value))  # the same in every run
        assert len(str(error.value)) > 10
    assert len(list(itertools.islice(tmp_path.iterdir(), 2))) == 1  # nothing was written beside it


def test_without_rasterio_the_way_to_it_is_said(tmp_path, monkeypatch):
    import builtins

    path = write(tmp_path / "a.tif", (surface(1) * 900).astype(np.uint16))
    photograph = write(tmp_path / "b.tif", (surface(3) * 255).astype(np.uint8))
    inner = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "rasterio":
            raise ImportError(name)
        return inner(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install rasterio"):
        load_rgb(path)
    assert load_rgb(photograph).size == (WIDTH, HEIGHT)
