"""demo/prepare_demo.py: built from small stand-ins of the two wheels, without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.smoke import ROOT, write_classes, write_images

TOOL = ROOT / "demo" / "prepare_demo.py"
NATURAL = ((0, 243), (1, 22), (2, 243))
SCENE_SIZE = (300, 200)


def load_tool():
    spec = importlib.util.spec_from_file_location("prepare_demo", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_demo"] = module
    spec.loader.exec_module(module)
    return module


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def position_image(width: int, height: int) -> np.ndarray:
    """An image whose red and green channels say where a pixel is, in steps of two pixels."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x // 2, y // 2, np.full_like(x, 90)], -1).astype(np.uint8)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tool, pointed at two small wheels in ``tmp_path / 'wheels'`` with their real hashes."""
    module = load_tool()
    areas = []
    for scene in module.SCENES:
        areas.append(module.Area(scene, scene, "train", 0, 0, 130, 200))
        areas.append(module.Area(scene, scene, "test", 200, 0, 300, 200))
    monkeypatch.setattr(module, "AREAS", tuple(areas))
    monkeypatch.setattr(module, "PRETRAIN_CUTS", dict.fromkeys(module.SCENES, module.Cut(96, 17)))
    monkeypatch.setattr(module, "SITE_CUT", module.Cut(64, 30, limit=4))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    trees = {module.SCENES[name][:-4] + ".xml": name for name in ("OSBS_029", "SOAP_061")}
    contents = {
        "DEEPFOREST": {
            **dict.fromkeys(module.SCENES.values(), png(position_image(*SCENE_SIZE))),
            **{
                member: f"<annotation><filename>{name}.tif</filename></annotation>".encode()
                for member, name in trees.items()
            },
            "deepforest/main.py": b"raise SystemExit('imported')",
            "deepforest-2.1.0.dist-info/licenses/LICENSE": b"MIT License",
        },
        "FOOLBOX": {
            **{
                f"foolbox/data/imagenet_{i:02d}_{c}.jpg": png(position_image(80, 60), "JPEG")
                for i, c in NATURAL
            },
            "foolbox/data/cifar10_00_3.png": png(position_image(8, 8)),
            "foolbox-3.3.4.dist-info/LICENSE": b"MIT License",
        },
    }
    for constant, members in contents.items():
        wheel = getattr(module, constant)
        path = wheels / f"{wheel.name}-{wheel.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(module, constant, wheel._replace(sha256=digest))
    return module


def run(tool, tmp_path: Path, *options: str) -> int:
    wheels = str(tmp_path / "wheels")
    try:
        tool.main(["--out", str(tmp_path / "demo"), "--wheels", wheels, *options])
    except SystemExit as ended:
        return ended.code
    return 0


def listed(path: Path) -> list[tuple[str, int]]:
    lines = path.read_text().splitlines()
    return [(line.rsplit(" ", 1)[0], int(line.rsplit(" ", 1)[1])) for line in lines]


def no_leftovers(tmp_path: Path) -> bool:
    return not list(tmp_path.glob(".demo*"))


def test_layout_counts_and_lists(tool, tmp_path: Path, capsys):
    assert run(tool, tmp_path) == 0
    out = tmp_path / "demo"
    manifest = json.loads((out / "manifest.json").read_text())
    # (130 - 96) / 17 + 1 = 3 columns and (200 - 96) / 17 + 1 = 7 rows of 5 scenes
    paths = (out / "remote_sensing.txt").read_text().splitlines()
    assert len(paths) == len(set(paths)) == 3 * 7 * 5
    assert all((out / path).is_file() for path in paths)
    assert listed(out / "natural.txt") == [
        ("natural/0022/imagenet_01_22.jpg", 22),
        ("natural/0243/imagenet_00_243.jpg", 243),
        ("natural/0243/imagenet_02_243.jpg", 243),
    ]
    for part in ("train", "test"):
        samples = listed(out / f"sites_{part}.txt")
        assert len(samples) == 4 * 5
        for path, label in samples:
            assert Path(path).parts[:3] == ("sites", part, manifest["evaluation"]["classes"][label])
    assert manifest["counts"] == dict(remote_sensing=105, natural=3, train=20, test=20)
    assert (out / "licenses" / "deepforest-LICENSE").read_text() == "MIT License"
    assert sorted(p.name for p in (out / "scenes" / "annotations").iterdir()) == [
        "OSBS_029.xml", "SOAP_061.xml",
    ]  # fmt: skip
    assert "<filename>OSBS_029.png<" in (out / "scenes/annotations/OSBS_029.xml").read_text()
    assert not list(out.rglob("*.py"))
    assert "remote sensing, unlabelled" in capsys.readouterr().out
    assert no_leftovers(tmp_path)


def test_tiles_hold_the_recorded_pixels(tool, tmp_path: Path):
    run(tool, tmp_path)
    out = tmp_path / "demo"
    tiles = json.loads((out / "manifest.json").read_text())["tiles"]
    for tile in (tiles["pretrain"][5], tiles["train"][3], tiles["test"][-1]):
        pixels = np.asarray(Image.open(out / tile["path"])).astype(int)
        side = tile["side"]
        assert pixels.shape == (side, side, 3)
        expected = position_image(*SCENE_SIZE)
        expected = expected[tile["y"] : tile["y"] + side, tile["x"] : tile["x"] + side].astype(int)
        assert np.abs(pixels - expected).mean() < 1.5  # JPEG


def test_no_train_pixel_is_in_a_test_tile(tool, tmp_path: Path):
    run(tool, tmp_path)
    manifest = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert_disjoint(manifest["tiles"], SCENE_SIZE)


def assert_disjoint(tiles: dict[str, list[dict]], size: tuple[int, int]) -> None:
    for scene in {tile["scene"] for tile in tiles["test"]}:
        used = {}
        for part, entries in tiles.items():
            used[part] = np.zeros(size[::-1], bool)
            for t in (t for t in entries if t["scene"] == scene):
                used[part][t["y"] : t["y"] + t["side"], t["x"] : t["x"] + t["side"]] = True
        assert used["test"].any() and used["pretrain"].any()
        assert not (used["test"] & used["train"]).any()
        assert not (used["test"] & used["pretrain"]).any()


def test_the_real_cuts_are_disjoint_balanced_and_enough():
    module = load_tool()
    tiles = {"pretrain": [], "train": [], "test": []}
    per_site: dict[tuple[str, str], int] = {}
    for area in module.AREAS:
        cuts = {area.part: module.SITE_CUT}
        if area.part == "train":
            cuts["pretrain"] = module.PRETRAIN_CUTS[area.scene]
        for part, cut in cuts.items():
            corners = module.tile_corners(area, cut)
            assert corners == module.tile_corners(area, cut)  # the same draw every time
            for x, y in corners:
                assert area.left <= x <= area.right - cut.side
                assert area.top <= y <= area.bottom - cut.side
            tiles[part] += [dict(scene=area.scene, x=x, y=y, side=cut.side) for x, y in corners]
        per_site[area.site, area.part] = len(module.tile_corners(area, module.SITE_CUT))
    assert 1800 <= len(tiles["pretrain"]) <= 2200
    assert set(per_site.values()) == {100}
    assert_disjoint(tiles, (2299, 2472))
    for train, test in product(module.AREAS, module.AREAS):
        if (train.scene, train.part, test.part) == (test.scene, "train", "test"):
            assert test.left - train.right >= module.SITE_CUT.side


def test_second_run_changes_nothing_and_damage_is_mended(tool, tmp_path: Path, capsys):
    run(tool, tmp_path)
    out = tmp_path / "demo"
    stamp = (out / "manifest.json").stat().st_mtime_ns
    (tmp_path / "wheels").rename(tmp_path / "gone")
    assert run(tool, tmp_path) == 0  # complete: the wheels are not asked for
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    (tmp_path / "gone").rename(tmp_path / "wheels")
    victim = out / (out / "remote_sensing.txt").read_text().split()[0]
    content = victim.read_bytes()
    victim.write_bytes(content[:100])
    capsys.readouterr()
    assert run(tool, tmp_path) == 0
    assert "missing or damaged (1 such files)" in capsys.readouterr().out
    assert victim.read_bytes() == content


def test_wrong_sha256(tool, tmp_path: Path, capsys):
    wheel = next((tmp_path / "wheels").glob("deepforest*"))
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert run(tool, tmp_path) == 2
    message = capsys.readouterr().err
    assert wheel.name in message and tool.DEEPFOREST.sha256 in message
    assert "not the published deepforest==2.1.0" in message
    assert not (tmp_path / "demo").exists() and no_leftovers(tmp_path)


def test_a_failed_rebuild_keeps_the_old_folder(tool, tmp_path: Path):
    run(tool, tmp_path)
    before = (tmp_path / "demo" / "manifest.json").read_bytes()
    wheel = next((tmp_path / "wheels").glob("foolbox*"))
    wheel.write_bytes(b"not a wheel")
    assert run(tool, tmp_path, "--force") == 2
    assert (tmp_path / "demo" / "manifest.json").read_bytes() == before
    assert no_leftovers(tmp_path)


def test_network_failure_is_one_line(tmp_path: Path, monkeypatch, capsys):
    # An index that refuses connections: port 9 of this machine.
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        load_tool().main(["--out", str(tmp_path / "demo")])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1
    assert "cannot download deepforest==2.1.0" in message
    assert "--remote-sensing DIR --natural DIR" in message
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(tool, tmp_path: Path, monkeypatch, capsys):
    def interrupted(archive, out):
        (out / "half").write_text("written")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "copy_photographs", interrupted)
        assert run(tool, tmp_path) == 130
    assert "run it again" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists() and no_leftovers(tmp_path)
    assert run(tool, tmp_path) == 0


def test_a_folder_of_somebody_else_is_left_alone(tool, tmp_path: Path, capsys):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("all of it")
    assert run(tool, tmp_path, "--force") == 2
    assert "was not made by this tool" in capsys.readouterr().err
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "all of it"


def test_own_folders_are_listed_where_they_are(tool, tmp_path: Path, capsys):
    rs = write_classes(tmp_path / "own rs", classes=2, per_class=10)
    natural = write_classes(tmp_path / "own natural", classes=3, per_class=2)
    write_images(natural / "@eaDir", 1)
    (natural / "class_0" / "up").symlink_to("..")
    options = ("--remote-sensing", str(rs), "--natural", str(natural))
    assert run(tool, tmp_path, *options) == 0
    out = tmp_path / "demo"
    paths = (out / "remote_sensing.txt").read_text().splitlines()
    assert sorted(paths) == sorted(str(p) for p in rs.rglob("*.jpg"))
    samples = listed(out / "natural.txt")
    assert {Path(path).parent.name: label for path, label in samples} == {
        "class_0": 0, "class_1": 1, "class_2": 2,
    }  # fmt: skip
    assert not list(out.rglob("*.jpg"))
    train, test = listed(out / "sites_train.txt"), listed(out / "sites_test.txt")
    assert (len(train), len(test)) == (14, 6) and not set(train) & set(test)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["evaluation"]["classes"] == ["class_0", "class_1"]
    assert "pre-training sees all of these images" in manifest["evaluation"]["what"]
    # a new image is found by the next run
    write_images(rs / "class_2", 3)
    assert run(tool, tmp_path, *options) == 0
    assert len((out / "remote_sensing.txt").read_text().splitlines()) == 23


def test_own_unlabelled_images_have_no_evaluation(tool, tmp_path: Path, capsys):
    rs = write_images(tmp_path / "flat", 4)
    assert run(tool, tmp_path, "--remote-sensing", str(rs)) == 0
    assert "no evaluation set" in capsys.readouterr().out
    assert not (tmp_path / "demo" / "sites_train.txt").exists()
    assert len(listed(tmp_path / "demo" / "natural.txt")) == len(NATURAL)  # the demo's


@pytest.mark.parametrize(
    ("option", "make", "expected"),
    [
        ("--remote-sensing", None, "there is no such folder"),
        ("--remote-sensing", "empty", "no image in it"),
        ("--natural", "flat", "one sub-folder per class"),
    ],
)
def test_useless_own_folders(tool, tmp_path: Path, capsys, option, make, expected):
    folder = tmp_path / "own"
    if make:
        folder.mkdir()
    if make == "flat":
        write_images(folder, 2)
    assert run(tool, tmp_path, option, str(folder)) == 2
    message = capsys.readouterr().err
    assert f"{option} {folder}" in message and expected in message
    assert not (tmp_path / "demo").exists()
